"""The examples among which tasks are found: all there are, or those of the requests with the smallest digests.

Those are the same ones in every round, as far as they are still there, so that tasks keep their ids.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.curated import EXAMPLES, CuratedExample, iterate_examples, read_examples
from fieldlm_compiler.learn.points import digest_of

MOST = 100_000
"""Distinct requests that are looked at together: 1.4 GB."""
MOST_EXAMPLES = 4 * MOST
"""Examples of those requests that are held; of what was asked very often, not all."""
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class SampledExamples:
    """Examples that are held in memory; `is_all` says whether there are no others."""

    examples: list[CuratedExample]
    is_all: bool


def sample_of(folder: Path) -> SampledExamples:
    """Return the examples in `folder`, or where there are more than MOST a part of them; raises InputError."""
    file = folder / EXAMPLES
    if not file.is_file() or _lines(file) <= MOST:
        examples = read_examples(folder)
        if not examples:
            raise InputError(f"{file} is empty; collect more, then: fieldlm curate STORE --out {folder}")
        return SampledExamples(examples=examples, is_all=True)
    with terminal.progress("choose the requests to look at"):
        digests = np.fromiter((int(digest_of(each), 16) for each in iterate_examples(folder)), np.uint32)
        distinct, counts = np.unique(digests, return_counts=True)
        last = distinct[:MOST][-1]
        counts = counts[:MOST]
        most_alike = int(counts.max())
        while most_alike > 1 and np.minimum(counts, most_alike).sum() > MOST_EXAMPLES:
            most_alike //= 2
        left = dict.fromkeys(distinct[:MOST].tolist(), most_alike)
        examples = list[CuratedExample]()
        for each, digest in zip(iterate_examples(folder), digests.tolist(), strict=True):
            if digest <= last and left[digest]:
                left[digest] -= 1
                examples.append(each)
    return SampledExamples(examples=examples, is_all=False)


def _lines(file: Path) -> int:
    """Return about how many lines a file has, without reading what is in them."""
    with file.open("rb") as opened:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: opened.read(_CHUNK_BYTES), b""))
