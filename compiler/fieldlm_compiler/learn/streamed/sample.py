"""The examples among which tasks are found: all there are, or those of the requests with the smallest digests.

What is among the smallest of many was among those of fewer: a request that is looked at was looked at before, unless it
is new, so that tasks keep their ids.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.curated import EXAMPLES, CuratedExample, iterate_examples, read_examples
from fieldlm_compiler.learn.points import digest_of

MOST = 100_000
"""Distinct requests that are looked at together: 1.4 GB, where each was made once."""
MOST_EXAMPLES = 4 * MOST
"""Examples that are held; of requests that were made very often, not all."""
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledExamples:
    """Examples that are held in memory, and of all that there are the digests of their requests; None: they are all."""

    examples: list[CuratedExample]
    digests: "npt.NDArray[np.uint32] | None" = None


def sample_of(folder: Path, always: Collection[str] = ()) -> SampledExamples:
    """Return the examples in `folder`, or where there are more than MOST a part of them; raises InputError.

    Requests whose digests are in `always` are among them.
    """
    file = folder / EXAMPLES
    if not file.is_file() or _lines(file) <= MOST:
        return _all(folder)
    with terminal.progress("choose the requests to look at"):
        digests = np.fromiter((int(digest_of(each), 16) for each in iterate_examples(folder)), np.uint32)
        distinct, counts = np.unique(digests, return_counts=True)
        if len(distinct) <= MOST and len(digests) <= MOST_EXAMPLES:
            return _all(folder)
        wanted = np.isin(distinct, np.array([int(one, 16) for one in always], np.uint32))
        wanted[:MOST] = True
        most_alike = int(counts[wanted].max())
        while most_alike > 1 and np.minimum(counts[wanted], most_alike).sum() > MOST_EXAMPLES:
            most_alike //= 2
        left = dict.fromkeys(distinct[wanted].tolist(), most_alike)
        examples = list[CuratedExample]()
        for each, number in zip(iterate_examples(folder), digests, strict=False):
            if left.get(digest := int(number)):
                left[digest] -= 1
                examples.append(each)
    return SampledExamples(examples=examples, digests=digests)


def _all(folder: Path) -> SampledExamples:
    examples = read_examples(folder)
    if not examples:
        raise InputError(f"{folder / EXAMPLES} is empty; collect more, then: fieldlm curate STORE --out {folder}")
    return SampledExamples(examples=examples)


class Unchanged:
    """Watches a file that is read several times."""

    def __init__(self, file: Path) -> None:
        self._file, self._was = file, self._now(file)

    def check(self) -> None:
        """Raise InputError where the file is another one than at first."""
        if self._now(self._file) != self._was:
            raise InputError(f"{self._file} changed while it was read; run the same command again")

    @staticmethod
    def _now(file: Path) -> tuple[int, int, int] | None:
        try:
            found = file.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def _lines(file: Path) -> int:
    """Return about how many lines a file has, without reading what is in them."""
    with file.open("rb") as opened:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: opened.read(_CHUNK_BYTES), b""))
