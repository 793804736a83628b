"""Huge pages: weights in pages of 2 MB instead of 4 KB.

A token reads all weights, and a third of its time can go into looking their pages up: SmolLM2-135M Q8_0 on one thread
took 12.8 ms of CPU a token, 8.9 ms in huge pages, 9.9 ms mapped from the file.

Who asks before the memory is written to gets huge pages at once, where the system's setting lets a program ask, and a
load is over sooner: SmolLM2's 148 MB were read in 120 ms instead of 162, and 40 ms of moving were saved. Linux 6.1 and
later move on request what was written, whatever the setting is; elsewhere it stays.
"""

import ctypes
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fieldlm.core.tasks import PROCESS, Tasks

MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
LARGE = 16 << 20  # bytes; what is smaller is not weights

_moves = Tasks(PROCESS)
Mapping = tuple[int, int]
"""First byte and the one behind the last."""


@contextmanager
def huge_pages() -> Generator[Callable[[], object]]:
    """Have the large memory that is allocated in this block in huge pages.

    What is yielded asks for them: called when the memory is there, and before it is written to. What is in small pages
    all the same when the block is over is moved, in a thread of its own.
    """
    before = mappings()
    yield lambda: ask(added(before, mappings()))
    if new := added(before, mappings()):
        _moves.start("huge-pages", lambda: move(new))


def stop_moving() -> None:
    """Wait until nothing is being moved: for the end of who loaded it."""
    _moves.close()


def mappings() -> list[Mapping]:
    """Return the writable memory of this process that is no file's, in the order of its addresses."""
    try:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return []
    anonymous = [words[0].split("-") for words in lines if len(words) == 5 and words[1] == "rw-p"]
    return [(int(begin, 16), int(end, 16)) for begin, end in anonymous]


def added(before: Sequence[Mapping], after: Sequence[Mapping]) -> list[Mapping]:
    """Return the large parts of `after` that lie in nothing of `before`.

    The kernel joins neighbours to one mapping, and moving the old one as well would fill what nobody has written to yet
    (44 MB beside SmolLM2: the work space that numpy's OpenBLAS reserves).
    """
    parts: list[Mapping] = []
    for begin, end in after:
        at = begin
        for old_begin, old_end in (old for old in before if old[1] > begin and old[0] < end):
            parts.append((at, old_begin))
            at = old_end
        parts.append((at, end))
    return [(begin, end) for begin, end in parts if end - begin >= LARGE]


def ask(memory: Collection[Mapping]) -> float:
    """Ask the kernel to fill `memory` with huge pages from now on; return the megabytes (1e6 bytes) it agreed to."""
    return _advise(memory, MADV_HUGEPAGE)


def move(memory: Collection[Mapping]) -> float:
    """Ask the kernel to move `memory`; return the megabytes (1e6 bytes) it agreed to.

    What cannot be moved, for want of free huge pages or of a kernel that can, stays as it is. So does what was freed.
    """
    return _advise(memory, MADV_COLLAPSE)


def _advise(memory: Collection[Mapping], advice: int) -> float:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(end - begin for begin, end in memory if not madvise(begin, end - begin, advice)) / 1e6
