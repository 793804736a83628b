"""How deep the tests at random go: kills, power cuts, crash points, damaged inputs.

`FIELDLM_DEPTH` multiplies what every change has to pass: 1 by default; 200, which is `make deep`, tries all of it.
`FIELDLM_SEED` repeats a run; the head of each run names its seed.
"""

import os
import random

DEPTH = float(os.environ.get("FIELDLM_DEPTH") or 1)
# Into the environment, so that every process of a run has the same.
SEED = int(os.environ.setdefault("FIELDLM_SEED", str(random.SystemRandom().randrange(1 << 32))))


def scaled(count: int, *, most: int) -> int:
    """Return how many to try: `count` at depth 1, `most` at most."""
    return max(1, min(most, round(count * DEPTH)))


def is_tried(number: int, one_in: int) -> bool:
    """Say whether the case of this number is tried: at depth 1 one in so many from a seeded one on, all when deep."""
    step = max(1, round(one_in / DEPTH))
    return number % step == SEED % step
