"""Rehearsal: try a generation in a process of its own before the one that serves ever touches it.

Whatever is wrong with a release happens to the child: it crashes, hangs or eats memory there, and nobody waits longer
for an answer. The child says how far it is, a line each step; the parent ends it when it is not heard of for too long.
It computes when nothing else wants the processor: threads that answer meet at barriers, and one that waits for its core
keeps all of them. So what counts is the time it computed, less what its threads waited for a core while others of them
spun; only a child that sleeps is ended by the clock, and where the device is never idle, one that gives way less is
started in its place.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fieldlm.core.errors import BundleError, EngineError, FieldlmError, InputError
from fieldlm.core.tasks import PROCESS
from fieldlm.engines import EngineOptions, engine_kind
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile
from fieldlm.hardware.sensors import memory_available_mb
from fieldlm.updates import gates
from fieldlm.updates.gates import TrialMeasurements, UnhealthyError

PROGRAM = "from fieldlm.updates.rehearsal import child; child()"
# Before anything else: what a child imports is a third of its work. A wish: who is not allowed to give way rehearses,
# too. A service may be refused it, as by a filter of system calls.
WAYS = {"nice": "import contextlib, os\nwith contextlib.suppress(OSError):\n    os.nice(10)\n"}
WAYS["idle"] = WAYS["nice"]
if sys.platform == "linux":
    WAYS["idle"] += "    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
STARVED_S = 90.0  # of waiting for a processor, after which a child gets its small share instead of what is left over
PATIENCE_S, SLOWEST_MB_S = 20.0, 10.0  # of computing for one step, and what the slowest card reads
ASLEEP = 4  # times the patience on the clock, for a child that waits instead of computing
SPINNING = 10  # times the patience, for one whose threads wait for each other all the time
LOOK_S = 0.05
ENGINE_MB = 400.0  # what a process with a loaded engine needs beside the weights: Python, libraries, KV of one answer
AWKWARD = ("Naïve café ☕ 你好 \N{GRINNING FACE}", "x" * 400, "\t\n", "{}[]()<|im_start|>", "Привет, как дела?")
"""What customers type sooner or later. Their answers are not judged; there have to be some."""


class RehearsalLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How the device would run the generation, and what its profile gives a model; 0 is no limit, None no profile."""

    context: int = 0
    parallel: int = 1
    threads: int = 1
    budget_mb: float = 0.0
    profile: Profile | None = None


class ChildReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the child: how far it is, or how it came out."""

    step: str
    reason: str = ""
    error: str = ""
    measured: TrialMeasurements | None = None


def has_room(bundle: Bundle) -> bool:
    """Whether a second copy of the bundle fits beside what runs. A machine that does not say what it has, has room."""
    free_mb = memory_available_mb()
    weights_mb = sum(file.size for file in bundle.manifest.files if file.role in ("base", "adapter")) / 1e6
    return not free_mb or weights_mb * 1.2 + ENGINE_MB < free_mb


def patience_s(bundle: Bundle) -> float:
    """Return how many seconds one step may take: to read the bundle from a slow card, and to be slow with it."""
    return PATIENCE_S + bundle.manifest.size / 1e6 / SLOWEST_MB_S


def rehearse(bundle: Bundle, limits: RehearsalLimits) -> TrialMeasurements:
    """Load `bundle` in a child, ask what it carries and what people type; return what was measured.

    Raises UnhealthyError with why it is not good enough, EngineError or BundleError when it cannot be loaded.
    """
    try:
        return _rehearse(bundle, limits, "idle")
    except _StarvedError:
        return _rehearse(bundle, limits, "nice")


def _rehearse(bundle: Bundle, limits: RehearsalLimits, way: str) -> TrialMeasurements:
    child = subprocess.Popen(
        [sys.executable, "-c", WAYS[way] + PROGRAM, str(bundle.folder), msgspec.json.encode(limits).decode()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    with child:
        told = ChildWatch(child, patience_s(bundle), starved_s=STARVED_S if way == "idle" else math.inf)
        try:
            return _listen(told)
        finally:
            child.kill()
            told.close()


class _StarvedError(Exception):
    """The child got no processor."""


class TimeSpent(NamedTuple):
    """Seconds of a process: on a processor, and waiting for one, all threads and the worst off alone; on the clock."""

    computed_s: float
    held_up_s: float
    waited_s: float
    clock_s: float


def _waited_s(proc: Path) -> float:
    """Return how long the thread whose folder in /proc this is waited for a processor; 0 once it has ended."""
    try:
        # Linux' Documentation/scheduler/sched-stats.rst: nanoseconds on a processor, and waiting for one.
        return int((proc / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class ChildWatch:
    """The child as its parent sees it."""

    def __init__(self, process: "subprocess.Popen[bytes]", patience_s: float, *, starved_s: float) -> None:
        self.step = "start"
        self.result: ChildReport | None = None
        self._process = process
        self._patience_s = patience_s
        self._starved_s = starved_s
        self._step_began = self.spent()
        self._reader = PROCESS.start("rehearsal", self._read)

    def _read(self) -> None:
        assert self._process.stdout, "it is a pipe"
        for line in self._process.stdout:
            with contextlib.suppress(msgspec.MsgspecError):
                word = msgspec.json.decode(line, type=ChildReport)
                self.step, self._step_began = word.step, self.spent()
                if word.step == "end":
                    self.result = word

    def spent(self) -> TimeSpent:
        """Return what the process has spent; 0 where there is no /proc, or no child any more."""
        computed_s = held_up_s = waited_s = 0.0
        proc = Path(f"/proc/{self._process.pid}")
        with contextlib.suppress(OSError, ValueError, IndexError):
            # proc_pid_stat(5): utime and stime are the 12th and 13th fields behind the name, which may hold anything.
            fields = (proc / "stat").read_text().rpartition(")")[2].split()
            computed_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            waits_s = [_waited_s(thread) for thread in (proc / "task").iterdir()]
            held_up_s, waited_s = sum(waits_s), max(waits_s)
        return TimeSpent(computed_s, held_up_s, waited_s, time.monotonic())

    def wait(self) -> bool:
        """Wait a moment; True once there is nothing more to hear.

        Raises UnhealthyError when it hangs, _StarvedError when it gets no processor.
        """
        self._reader.thread.join(LOOK_S)
        if not self._reader.thread.is_alive():
            return True
        now, began = self.spent(), self._step_began
        computed_s, held_up_s = now.computed_s - began.computed_s, max(0.0, now.held_up_s - began.held_up_s)
        # A thread at a barrier spins, and seems to compute, while the one that it waits for has no core.
        useful_s = computed_s - held_up_s
        asleep_s = now.clock_s - began.clock_s - computed_s - held_up_s
        limits_s = (self._patience_s, SPINNING * self._patience_s, ASLEEP * self._patience_s)
        if any(spent > limit for spent, limit in zip((useful_s, computed_s, asleep_s), limits_s, strict=True)):
            raise UnhealthyError("hang", f"tried beside the running one, it hangs at: {self.step}")
        if now.waited_s > self._starved_s:
            raise _StarvedError
        return False

    def close(self) -> None:
        """Wait for who reads what it says; it was killed before."""
        self._reader.join()

    def crashed(self) -> UnhealthyError:
        code = self._process.wait()
        what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return UnhealthyError("crash", f"tried beside the running one, it crashed at: {self.step} ({what})")


def _listen(child: ChildWatch) -> TrialMeasurements:
    while not child.wait():
        pass
    word = child.result
    if word is None:
        raise child.crashed()
    if word.measured is not None:
        return word.measured
    if word.reason == "bundle":
        raise BundleError(word.error)
    if word.reason == "engine":
        raise EngineError(word.error)
    raise UnhealthyError(msgspec.convert(word.reason, gates.Reason), word.error)


# ── in the child ─────────────────────────────────────────────────────────────────────────────────────────────────


def child(argv: Sequence[str] | None = None) -> None:
    """Be the child: load, ask, and print a line before each step and one at the end."""
    folder, limits = (sys.argv[1:] if argv is None else argv)[:2]
    _die_with_parent()
    # llama.cpp and its like print to stdout; the lines to the parent have it to themselves.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(word: ChildReport) -> None:
        print(msgspec.json.encode(word).decode(), file=out, flush=True)

    try:
        measured = _try(Path(folder), msgspec.json.decode(limits, type=RehearsalLimits), say)
        say(ChildReport(step="end", measured=measured))
    except UnhealthyError as error:
        say(ChildReport(step="end", reason=error.reason, error=str(error)))
    except (BundleError, InputError) as error:
        say(ChildReport(step="end", reason="bundle", error=str(error)))
    except FieldlmError as error:
        say(ChildReport(step="end", reason="engine", error=str(error)))
    # What is half taken down after a failure may hang; nothing here has to be kept.
    os._exit(0)


def _try(folder: Path, limits: RehearsalLimits, say: Any) -> TrialMeasurements:
    from fieldlm.inference.generations import Generations
    from fieldlm.inference.probe import answer, score

    bundle = open_bundle(folder, digests=False)
    say(ChildReport(step="plan"))
    memory_mb = foreseen_mb(bundle, limits)
    gates.check_memory(memory_mb, limits.budget_mb)
    say(ChildReport(step="load"))
    context = min(limits.context or bundle.manifest.model.context, bundle.manifest.model.context)
    live = Generations(
        bundle, EngineOptions(threads=limits.threads, context=context, parallel=1, profile=limits.profile)
    )
    serving = live.current
    say(ChildReport(step="template"))
    prompt_tokens = gates.shortest_prompt(serving)
    gates.check_context(prompt_tokens, serving.engine.context)
    say(ChildReport(step="probes"))
    found = score(serving, on_answer=lambda answered: say(ChildReport(step=f"probes, {answered} answered")))
    gates.check_score(found)
    for number, text in enumerate(AWKWARD, start=1):
        say(ChildReport(step=f"request {number}"))
        answer(serving, msgspec.structs.replace(gates.HELLO, messages=[{"role": "user", "content": text}]))
    return TrialMeasurements(
        score=found, prompt_tokens=prompt_tokens, context=serving.engine.context, memory_mb=memory_mb
    )


def foreseen_mb(bundle: Bundle, limits: RehearsalLimits) -> float:
    """Return the megabytes that the device would give the generation with all its answers at a time; 0 if unknown."""
    context = limits.context or bundle.manifest.model.context
    kind = engine_kind(bundle.manifest.engine)
    return kind.foreseen_mb(bundle, context=context, parallel=limits.parallel, profile=limits.profile) or 0.0


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it ends: prctl(PR_SET_PDEATHSIG, SIGKILL)."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
