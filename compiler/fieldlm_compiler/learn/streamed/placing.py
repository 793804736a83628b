"""Every example of a file is put to the task of most of its nearest neighbours, a block of lines at a time.

What a block needs is in one object, so that blocks may go to other machines: the same lines give the same labels there.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from fieldlm.core import terminal
from fieldlm.hardware.cores import physical_cores
from fieldlm_compiler.learn.communities import Labels, Voter
from fieldlm_compiler.learn.curated import CuratedExample, example_of
from fieldlm_compiler.learn.points import Locator, digest_of

if TYPE_CHECKING:
    from fieldlm_compiler.learn.embed import Vectors

T = TypeVar("T")
BLOCK_BYTES = 1 << 20
"""Some thousand examples."""
Run = Callable[["Placer", Iterator[bytes]], Generator[Labels]]
"""Gives the labels of each block, in their order."""


class Placer:
    """Which task each example of a block of lines belongs to."""

    def __init__(
        self, locator: Locator, vectors: "Vectors", labels: Labels, digests: Sequence[str], *, seed: int
    ) -> None:
        """Know the `labels` of requests, with points `vectors`, that `locator` was fitted to; `digests` are theirs."""
        self._locator = locator
        with threadpool_limits(limits=1):
            self._voter = Voter(vectors, labels, seed=seed)
        known = np.array([int(one, 16) for one in digests], np.uint32)
        order = known.argsort()
        self._known, self._labels = known[order], labels[order]

    def __call__(self, block: bytes) -> Labels:
        """Return a label per line: of a request that is known its own, of another one what its neighbours say.

        Whoever calls this limits libraries to one thread, so that the same sums are made everywhere.
        """
        examples = [example_of(line, "a block of examples") for line in block.split(b"\n") if line.strip()]
        digests, first, of_example = np.unique(
            np.array([int(digest_of(each), 16) for each in examples], np.uint32),
            return_index=True,
            return_inverse=True,
        )
        places = np.searchsorted(self._known, digests).clip(max=len(self._known) - 1)
        labels = self._labels[places]
        is_new = self._known[places] != digests
        if is_new.any():
            labels[is_new] = self._vote([examples[int(at)] for at in first[is_new]])
        return labels[of_example]

    def _vote(self, examples: Sequence[CuratedExample]) -> Labels:
        return self._voter(self._locator(examples))


def place(file: Path, placer: Placer, digests: npt.NDArray[np.uint32], run: Run) -> Labels:
    """Return the label of each example in `file`; `digests` are those of their requests.

    What a request would be said to be in another block, by other values of its arguments, does not count: the first
    example of it does.
    """
    found: list[Labels] = []
    total = -(-file.stat().st_size // BLOCK_BYTES)
    with (
        terminal.progress("put all requests to these tasks", max(1, total)) as told,
        closing(run(placer, blocks(file))) as ran,
    ):
        for labels in ran:
            found.append(labels)
            told.update(len(found))
    labels = np.concatenate(found)
    _, first, of = np.unique(digests, return_index=True, return_inverse=True)
    return labels[first][of] if len(of) == len(labels) else labels  # another file by now, which is found out


def here(placer: Placer, lines: Iterator[bytes]) -> Generator[Labels]:
    """Place the blocks in this process, one on each core."""
    cores = physical_cores()
    pool = ThreadPoolExecutor(cores)
    # Around all of them: the limit is the whole process's, and blocks that set and lifted it would undo each other's.
    with threadpool_limits(limits=1):
        try:
            yield from in_turn(lines, cores + 1, lambda block: pool.submit(placer, block), Future[Labels].result)
        finally:
            pool.shutdown(cancel_futures=True)


def in_turn(
    lines: Iterator[bytes], ahead: int, begin: Callable[[bytes], T], end: Callable[[T], Labels]
) -> Generator[Labels]:
    """Yield what comes of each block, in their order, while as many as `ahead` are begun."""
    begun = deque[T]()
    for block in lines:
        begun.append(begin(block))
        if len(begun) >= ahead:
            yield end(begun.popleft())
    while begun:
        yield end(begun.popleft())


def blocks(file: Path) -> Iterator[bytes]:
    """Yield the file in whole lines, BLOCK_BYTES and the rest of a line each."""
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            yield block + opened.readline()
