"""CPU cores and threads: the physical cores this process may use, less what its cgroup and its neighbours take.

Threads that compute one token meet at a thousand barriers. When a neighbour takes the core of one of them, all wait for
it: with two threads on two cores, one busy process costs two thirds of the speed, with one thread next to nothing. So
who decodes looks twice or more a second what the cores are doing, and uses as many threads as there are cores for.
"""

import contextlib
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fieldlm.hardware.limits import LIVE, allowed_cpus, cpu_limit
from fieldlm.hardware.processor_kinds import Processor, fast, processors

LOOK_EVERY_S = 0.25
# A core counts as taken when others use it for more than 45 % of the time: there, two threads on two cores fall to the
# speed of one. It counts as free again under 30 %; between the two, things stay as they are.
TAKEN, FREE = 0.45, 0.30
LOOKS_TO_LOWER = 2
LOOKS_TO_RAISE = 6  # raising too early costs more than raising late


def physical_cores(root: Path = LIVE, visible: Collection[int] | None = None) -> int:
    """Return the number of physical cores among the `visible` processors that are switched on, at least 1.

    Visible are those this process may run on, unless given.

    Two hyperthreads of one core share the units that multiply, so the second one only makes both wait. Of a quota of
    processor time, whole cores count: a thread above them is stopped for most of each period.
    """
    known = processors(root)
    # macOS shows neither; Python counts there.
    usable = visible or allowed_cpus(root) or known or range(os.cpu_count() or 1 if root == LIVE else 0)
    cores = {known[cpu].core for cpu in usable if cpu in known} or {str(cpu) for cpu in usable}
    return max(1, min(len(cores), int(cpu_limit(root) or len(cores))))


def fast_cores(root: Path = LIVE) -> int:
    """Return the number of physical cores that decoding gains from, at least 1: those usable, less the small ones.

    A small core beside large ones makes them wait at each barrier: eight threads on an RK3588's two kinds decode at
    0.6 of what its four large cores reach (llama.cpp PR 14532).
    """
    known = processors(root)
    usable = {cpu: each for cpu, each in known.items() if cpu in (allowed_cpus(root) or known)}
    return physical_cores(root, fast(usable) or None)


def home(threads: int, root: Path = LIVE, visible: Collection[int] | None = None) -> frozenset[int]:
    """Return the processors that `threads` should stay on: the fast cores of a mixed set, where they have room for all.

    Empty where all cores are alike, or nobody says. Threads meet at barriers, so one that the kernel puts on a slow
    core makes all of them as slow (llama.cpp issue 21763).
    """
    known = processors(root)
    visible = visible or allowed_cpus(root) or frozenset(known)
    usable = {cpu: known.get(cpu, Processor(str(cpu), 0)) for cpu in visible}
    quick = fast(usable)
    has_room = threads <= len({usable[cpu].core for cpu in quick})
    return quick if has_room and len(quick) < len(visible) else frozenset()


def stay(processors: Collection[int]) -> None:
    """Keep this thread, and those it starts, on `processors`; where that is not possible it stays free."""
    if processors:
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setaffinity(0, processors)


@dataclass(frozen=True)
class CpuTime:
    """Seconds until `at_s` that the `cores` we may use were busy, and that this process was."""

    at_s: float
    cores: int
    busy_s: float
    own_s: float

    def others_since(self, before: "CpuTime") -> float:
        """Return how many cores others kept busy on average since `before`."""
        passed_s = max(self.at_s - before.at_s, 1e-9)
        return max(0.0, (self.busy_s - before.busy_s - self.own_s + before.own_s) / passed_s)


class ThreadCount:
    """How many threads decode, after what others were seen to take of the cores. Knows no clock and no files."""

    def __init__(self, most: int) -> None:
        self.threads = self._most = most
        self._lower = self._raise = 0

    def observe(self, cores: int, others: float) -> int:
        """Take in that others kept `others` of our `cores` busy; return the threads to use from now on."""
        below, above = (self._fit(cores - others + share) for share in (TAKEN, FREE))
        self._lower = self._lower + 1 if below < self.threads else 0
        self._raise = self._raise + 1 if above > self.threads else 0
        if self._lower >= LOOKS_TO_LOWER:
            self.threads, self._lower = below, 0
        elif self._raise >= LOOKS_TO_RAISE:
            self.threads, self._raise = above, 0
        return self.threads

    def _fit(self, cores: float) -> int:
        return max(1, min(self._most, int(cores)))


class CoreWatch:
    """Looks at the machine now and then, and says how many threads to use. For one thread."""

    def __init__(self, most: int) -> None:
        self._count = ThreadCount(most)
        self._last = read_cpu_time()

    def threads(self) -> int:
        """Return how many threads to use now. Between two looks this costs a look at the clock."""
        if self._last is None or time.monotonic() < self._last.at_s + LOOK_EVERY_S:
            return self._count.threads
        last, self._last = self._last, read_cpu_time()
        if self._last is not None:
            self._count.observe(self._last.cores, self._last.others_since(last))
        return self._count.threads


def read_cpu_time(root: Path = LIVE) -> CpuTime | None:
    """Read what the processors we may run on have done; None where the system does not say.

    Time of niced processes counts as free, unless we are one: they give way to us.
    """
    try:
        lines = (root / "proc/stat").read_text().splitlines()
        ticks = {line.split()[0]: [int(word) for word in line.split()[1:9]] for line in lines if line.startswith("cpu")}
        visible = os.sched_getaffinity(0)
        busy = sum(_busy(ticks[f"cpu{cpu}"]) for cpu in visible) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, KeyError):
        return None
    return CpuTime(at_s=time.monotonic(), cores=len(visible), busy_s=busy, own_s=time.process_time())


def _busy(ticks: list[int]) -> int:
    """Ticks of user, nice, system, idle, iowait, irq, softirq, steal: all but nice and idleness."""
    user, nice, system, _, _, irq, softirq, steal = ticks
    return user + system + irq + softirq + steal + (nice if os.nice(0) > 0 else 0)
