"""Near copies: texts that differ by a slip of the finger or a word, found by MinHash and held to their Jaccard index.

Signatures (Broder 1997) of a text's runs of four letters, in bands: only texts that agree in a band are compared.
"""

import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fieldlm_compiler.learn.shapes import spelling

ALIKE = 0.8
"""Share of all runs of letters of two texts that both have, from which on one is a near copy of the other."""
LETTERS = 4
BANDS, ROWS = 16, 4
_PRIME = np.uint64(2**31 - 1)


def near_copies(texts: Sequence[str], others: Sequence[str]) -> list[bool]:
    """Say of each of `texts` whether one of `others` is the same or nearly."""
    places: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    runs = [_runs(text) for text in others]
    for at, found in enumerate(runs):
        for band in _bands(found):
            places[band].append(at)

    def has_copy(text: str) -> bool:
        own = _runs(text)
        candidates = {at for band in _bands(own) for at in places.get(band, ())}
        return any(len(own & runs[at]) >= ALIKE * len(own | runs[at]) for at in candidates)

    return [has_copy(text) for text in texts]


def _runs(text: str) -> frozenset[int]:
    said = f" {spelling(text)} "
    return frozenset(zlib.crc32(said[at : at + LETTERS].encode()) for at in range(max(1, len(said) - LETTERS + 1)))


def _bands(runs: frozenset[int]) -> list[tuple[int, bytes]]:
    dice = np.random.default_rng(0)
    factors, terms = (dice.integers(1, int(_PRIME), BANDS * ROWS, dtype=np.uint64) for _ in range(2))
    hashed = np.array(sorted(runs), np.uint64) % _PRIME
    least = ((factors[:, None] * hashed[None, :] + terms[:, None]) % _PRIME).min(axis=1)
    return [(band, least[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS)]
