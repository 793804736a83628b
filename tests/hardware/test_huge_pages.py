import mmap
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fieldlm.hardware.huge_pages import LARGE, added, ask, huge_pages, mappings, move

SMAPS = Path("/proc/self/smaps")


def fresh(size: int) -> NDArray[np.uint32]:
    """Return numbers in memory of their own, in pages of the usual size: numpy's own asks for huge ones."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(memory, np.uint32)
    numbers[:] = np.arange(size // 4, dtype=np.uint32)
    return numbers


def huge_mb() -> float:
    sizes = re.findall(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps").read_text())
    return sum(map(int, sizes)) * 1024 / 1e6


def test_memory_that_was_moved_holds_what_it_held() -> None:
    before = mappings()
    numbers = fresh(4 * LARGE)
    new = added(before, mappings())
    before_mb = huge_mb()
    moved_mb = move(new)
    # A kernel that cannot do it says so; one that can moves all but the ends, which fill no huge page.
    assert huge_mb() - before_mb >= (moved_mb and numbers.nbytes / 1e6 - 4.2)
    assert (numbers == np.arange(LARGE, dtype=np.uint32)).all()


def test_only_large_new_memory_is_meant() -> None:
    before = mappings()
    small, large = fresh(LARGE // 4), fresh(LARGE * 2)

    def holds(numbers: NDArray[np.uint32]) -> bool:
        return any(begin <= numbers.ctypes.data < end for begin, end in added(before, mappings()))

    assert holds(large)
    assert holds(small) is (abs(small.ctypes.data - large.ctypes.data) <= 2 * LARGE), "only as a part of one mapping"


def test_what_the_kernel_joined_to_new_memory_stays_where_it_is() -> None:
    old, gap = 3 * LARGE, 64
    before = [(0, old), (old + LARGE + gap, 2 * old)]
    assert added(before, [(0, 3 * old)]) == [(old, old + LARGE + gap), (2 * old, 3 * old)]
    assert added(before, [(0, old + gap), (old + LARGE, 2 * old)]) == []
    assert added([], [(gap, gap + LARGE), (old, old + gap)]) == [(gap, gap + LARGE)]


def test_what_is_allocated_meanwhile_stays_what_it_was() -> None:
    with huge_pages():
        numbers = fresh(LARGE * 2)
    for _ in range(20):
        assert numbers[LARGE // 4] == LARGE // 4


def test_memory_that_was_asked_for_in_time_is_huge_where_the_system_lets_a_program_ask() -> None:
    with huge_pages() as ask_for_huge:
        memory = mmap.mmap(-1, 4 * LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        ask_for_huge()
        numbers = np.frombuffer(memory, np.uint32)
        numbers[:] = np.arange(LARGE, dtype=np.uint32)
    assert (numbers == np.arange(LARGE, dtype=np.uint32)).all()
    here = [(numbers.ctypes.data, numbers.ctypes.data + numbers.nbytes)]
    assert is_advised(numbers.ctypes.data) == (ask(here) > 0), "unless the kernel takes no such advice"


def is_advised(address: int) -> bool:
    """Whether the mapping at `address` was asked to be in huge pages: "hg" among its flags."""
    for begin, end, flags in re.findall(r"^(\w+)-(\w+) (?:.*\n)*?VmFlags: (.*)$", SMAPS.read_text(), re.MULTILINE):
        if int(begin, 16) <= address < int(end, 16):
            return "hg" in flags.split()
    return False


def test_memory_that_is_gone_is_no_error() -> None:
    begin = 1 << 45
    assert move({(begin, begin + LARGE)}) == 0.0
