"""The engine watchdog: an engine is alive while nothing is asked of it, and while what it was asked for makes progress.

One that hangs in its library is replaced within the process, long before anybody would restart that.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from fieldlm.core.errors import FieldlmError
from fieldlm.core.tasks import Tasks
from fieldlm.engines import Chunk, Engine, RunningAnswer, SupportsRestart

STUCK_S = 600.0
"""How long running answers may produce nothing at all: the longest prompt on the slowest board is read in less."""


LOOK_S, IDLE_LOOK_S = 1.0, 15.0
"""Between two looks at an engine that is at work, and at one that has nothing to do; hanging takes it 30 s at least."""
STOOD_STILL_S = 5.0
"""Longer than planned between two looks: nobody here ran, by SIGSTOP, a frozen cgroup, a debugger."""
GRACE_S = 30.0
"""After that, for the step that stood still as well: what was so long was none of its doing."""


@runtime_checkable
class _Counts(Protocol):
    """An engine that says how many answers it computes, and how many wait."""

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...


class EngineWatchdog:
    """Replaces an engine that hangs, from a thread of its own; what it cannot replace is left to systemd's watchdog."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        on_event: Callable[[str], None],
        *,
        look_s: float = LOOK_S,
        idle_look_s: float = IDLE_LOOK_S,
        tasks: Tasks | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._on_event = on_event
        self._look_s, self._idle_look_s = look_s, idle_look_s
        self._now_s = now_s
        self._is_over = threading.Event()
        self._tasks = Tasks(tasks)

    def __enter__(self) -> Self:
        self._tasks.start("rescue", self._run, restarts=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        self._tasks.close()

    def _run(self) -> None:
        given_up: Engine | None = None
        wait_s = self._look_s
        looked_s, patient_s = self._now_s(), float("-inf")
        while not self._is_over.wait(wait_s):
            before_s, looked_s = looked_s, self._now_s()
            if looked_s - before_s > wait_s + STOOD_STILL_S:
                patient_s = looked_s + GRACE_S
            if looked_s < patient_s:
                wait_s = self._look_s
                continue
            engine = self._engine()
            is_idle = isinstance(engine, _Counts) and not engine.running and not engine.waiting
            wait_s = self._idle_look_s if is_idle else self._look_s
            if engine is given_up or not isinstance(engine, SupportsRestart) or not engine.is_wedged:
                continue
            try:
                engine.revive()
                self._on_event("the engine hung and was replaced")
            except FieldlmError as error:
                given_up = engine
                self._on_event(f"the engine hangs and cannot be replaced: {error}")


class ProgressMonitor:
    """Sees every chunk of the answers it is shown. Safe from any thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        # Weak: an answer that its reader let go of does not count as stuck for ever.
        self._running = weakref.WeakSet[_Watched]()
        self._last_s = now_s()

    def watch(self, generation: RunningAnswer) -> RunningAnswer:
        """Return `generation`, of which every sign of life is noted; it counts as running until it has ended."""
        if not len(self._running):
            self._last_s = self._now_s()
        return _Watched(generation, self._note, self._running)

    def is_alive(self, stuck_s: float = STUCK_S) -> bool:
        """Whether nothing runs, or something has come in the last `stuck_s` seconds."""
        return not len(self._running) or self._now_s() - self._last_s < stuck_s

    def _note(self) -> None:
        self._last_s = self._now_s()


class _Watched:
    """A `RunningAnswer` that tells of its chunks."""

    def __init__(
        self, generation: RunningAnswer, note: Callable[[], None], running: "weakref.WeakSet[_Watched]"
    ) -> None:
        self.timings = generation.timings
        self._generation = generation
        self._note = note
        self._running = running
        running.add(self)

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._generation:
            self._see(chunk)
            yield chunk

    def subscribe(self, receive: Callable[[Chunk], None]) -> None:
        def seen(chunk: Chunk) -> None:
            self._see(chunk)
            receive(chunk)

        self._generation.subscribe(seen)

    def cancel(self) -> None:
        self._generation.cancel()

    def _see(self, chunk: Chunk) -> None:
        self._note()
        if chunk.outcome is not None:
            self._running.discard(self)
