"""A small learned name finder, for what no form and no list of the first pass has: a linear model over hashed features.

`name_weights.bin` holds a weight for each bucket (signed 8-bit integers), `name_weights.json` how they were made, their
digest and the two thresholds: a word is a person's name from `begin` on, beside one that is from `go_on` on. Whole
numbers alone are added, so rounding decides nothing. `python -m benchmarks.name_finder` makes both files;
docs/explanation/privacy.md says of what, and how much it finds.

It reads scripts that are written with spaces. A text that asks for works, artists or places ("play …") names nobody.
"""

import functools
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.telemetry.redaction.names import is_lookup
from fieldlm_compiler.learn.redacted.name_features import BUCKETS, features, has_capitals, tokens_of

WEIGHTS = Path(__file__).with_name("name_weights.bin")
CARD = WEIGHTS.with_suffix(".json")


class NameWeights(NamedTuple):
    """A weight for each bucket, and from which sum on a word is a name."""

    of: memoryview
    """Signed bytes, BUCKETS of them."""
    begin: int
    go_on: int


@functools.cache
def shipped() -> NameWeights:
    """Return the weights of this version; raises InputError where they are not the ones that were shipped."""
    card: dict[str, Any] = msgspec.json.decode(CARD.read_bytes())
    data = WEIGHTS.read_bytes()
    if hashlib.sha256(data).hexdigest() != card["sha256"] or len(data) != BUCKETS:
        raise InputError(f"{WEIGHTS} is damaged; install fieldlm-compiler again, or leave it out: --names listed")
    return NameWeights(memoryview(data).cast("b"), card["begin"], card["go_on"])


def found_names(text: str, *, never: Collection[str] = (), weights: NameWeights | None = None) -> list[tuple[int, int]]:
    """Return where persons are named in `text`, as (start, end) in characters, word by word.

    `never` are words, in folded case, that name nobody here: what the assistant's own menu and tools are called.
    The time grows with the text's length, by about 4 ms a kilobyte.
    """
    if is_lookup(text):
        return []
    weights = weights or shipped()
    tokens = tokens_of(text)
    is_cased = has_capitals(tokens)
    sums = [
        _sum(weights, features(tokens, place, is_cased=is_cased)) if token.may_name and token.low not in never else None
        for place, token in enumerate(tokens)
    ]
    return [(tokens[place].start, tokens[place].end) for place in _names(sums, weights)]


def _sum(weights: NameWeights, buckets: Sequence[int]) -> int:
    return sum(map(weights.of.__getitem__, buckets))


def _names(sums: Sequence[int | None], weights: NameWeights) -> list[int]:
    """Return the places of names: those from `begin` on, and those from `go_on` on that touch one."""
    found = {place for place, total in enumerate(sums) if total is not None and total >= weights.begin}
    for step in (1, -1):
        for place in range(len(sums))[::step]:
            total = sums[place]
            if total is not None and total >= weights.go_on and place - step in found:
                found.add(place)
    return sorted(found)
