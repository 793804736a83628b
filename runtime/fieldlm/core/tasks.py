"""Supervised background threads: each has a name and an owner who joins it; what escapes from it is logged and counted.

Left alone, a thread that raises prints a traceback and is gone, and a device goes on without what it did: it would look
for no update any more, or send nothing home, until somebody wonders.
"""

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from fieldlm.core.logs import logger

RESTART_S, MOST_RESTART_S = 1.0, 60.0
"""How long a task that crashed waits before it begins again: doubled each time, up to the second."""
JOIN_S = 10.0
"""How long an owner waits for a task that was told to end."""
FRAMES = 3

log = logger(__name__)


class TaskStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The names of the tasks that run, and how often each has crashed since the start."""

    running: tuple[str, ...]
    crashes: dict[str, int]


class BackgroundTask:
    """A thread that runs one function, once more after each crash where it `restarts`. `Tasks.start` makes it."""

    def __init__(self, owner: "Tasks", name: str, run: Callable[[], object], *, restarts: bool) -> None:
        self.name = name
        self._owner = owner
        self._run = run
        self._restarts = restarts
        self._is_over = threading.Event()
        self._is_late = False
        self.thread = threading.Thread(target=self._supervise, name=name, daemon=True)

    def expect_end(self) -> None:
        """Begin again after no crash from now on; what runs is ended by who knows how."""
        self._is_over.set()

    def join(self, timeout_s: float = JOIN_S) -> bool:
        """Wait for the end, which somebody has asked for. False when time is up, which the log says with the name.

        What was late once is not waited for again. A task that joins itself does not wait.
        """
        self.expect_end()
        if self._is_late or self.thread is threading.current_thread():
            return not self._is_late
        self.thread.join(timeout_s)
        self._is_late = self.thread.is_alive()
        if self._is_late:
            log.warning(f"task {self.name} does not end; it is left behind after {timeout_s:g} s")
        return not self._is_late

    def _supervise(self) -> None:
        wait_s = self._owner.restart_s
        try:
            while True:
                began_s = time.monotonic()
                try:
                    self._run()
                    return
                except BaseException as error:  # what is written in Rust panics with a BaseException
                    self._owner.crashed(self.name, error)
                if time.monotonic() - began_s > MOST_RESTART_S:
                    wait_s = self._owner.restart_s
                if not self._restarts or self._is_over.wait(wait_s):
                    return
                wait_s = min(2 * wait_s, MOST_RESTART_S)
        finally:
            self._run = _nothing  # who keeps a task that is over keeps nothing of what it worked on
            self._owner.ended(self)


class Tasks:
    """The tasks of one part; the `owner`, if it has one, sees and counts them as well. Safe from any thread."""

    def __init__(self, owner: "Tasks | None" = None, *, restart_s: float = RESTART_S) -> None:
        self.restart_s = owner.restart_s if owner else restart_s
        self._owner = owner
        self._lock = threading.Lock()
        self._tasks: list[BackgroundTask] = []
        self._crashes = Counter[str]()

    def start(self, name: str, run: Callable[[], object], *, restarts: bool = False) -> BackgroundTask:
        """Run `run` in a thread of its own; after a crash once more, later and later, where it `restarts`."""
        task = BackgroundTask(self, name, run, restarts=restarts)
        self._began(task)
        try:
            task.thread.start()
        except RuntimeError:  # there are too many threads
            self.ended(task)
            raise
        return task

    def crashed(self, name: str, error: BaseException) -> None:
        """Log and count what escaped from the task `name`, or what it caught and must not end for."""
        with self._lock:
            # An engine's thread bears its model's name, of which there are ever more.
            self._crashes[name.partition("[")[0]] += 1
        if self._owner:
            self._owner.crashed(name, error)
        else:
            log.error(f"task {name} crashed: {_told(error)}")

    def status(self) -> TaskStatus:
        with self._lock:
            return TaskStatus(running=tuple(sorted(task.name for task in self._tasks)), crashes=dict(self._crashes))

    def close(self, timeout_s: float = JOIN_S) -> None:
        """Wait for all tasks, which were told to end before, for `timeout_s` together; the log names who is late."""
        with self._lock:
            tasks = list(self._tasks)
        for task in tasks:
            task.expect_end()
        end_s = time.monotonic() + timeout_s
        for task in tasks:
            task.join(max(0.0, end_s - time.monotonic()))

    def _began(self, task: BackgroundTask) -> None:
        with self._lock:
            self._tasks.append(task)
        if self._owner:
            self._owner._began(task)

    def ended(self, task: BackgroundTask) -> None:
        """Forget `task`: its thread says so itself, as the last thing it does."""
        with self._lock:
            self._tasks.remove(task)
        if self._owner:
            self._owner.ended(task)


PROCESS = Tasks()
"""What belongs to no device: an engine's threads, which begin and end with it, and the limits of single calls."""


def _nothing() -> None:
    pass


def _told(error: BaseException) -> str:
    """Return what happened and where, the innermost frame first.

    Not what the error says, unless the system says it: the message may quote what it choked on, a prompt for example.
    """
    frames = traceback.extract_tb(error.__traceback__)[: -FRAMES - 1 : -1]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    says = f" ({error})" if isinstance(error, OSError) else ""
    return f"{type(error).__name__}{says} at {where}"
