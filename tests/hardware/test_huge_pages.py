import mmap
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fieldlm.hardware.huge_pages import LARGE, added, huge_pages, mappings, move


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


def test_memory_that_is_gone_is_no_error() -> None:
    begin = 1 << 45
    assert move({(begin, begin + LARGE)}) == 0.0
