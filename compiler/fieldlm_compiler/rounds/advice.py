"""Who should answer a task: the small model, the large one, or nobody can say yet.

The small model takes a task when it is good enough even at the lower end of the 95 % interval (Wilson) of its exact
match on held-out examples, and leaves it when it is not even at the upper end. In between more examples would tell: so
many that an equal share would reach the line.
"""

import math
from typing import Literal

from fieldlm_compiler.rounds.state import Exact

ENOUGH = 0.8
MOST_WANTED = 10_000
Z = 1.959964
"""Of a 95 % interval."""
Advice = Literal["small", "large", "too few"]


def advise(exact: Exact, enough: float = ENOUGH) -> tuple[Advice, str]:
    """Return who should answer a task of which `exact` of the held-out examples were answered right, and why."""
    low, high = exact.score.interval
    said = f"{exact}, 95 % interval {low:.0%}–{high:.0%}, wanted {enough:.0%}"
    if exact.total and low >= enough:
        return "small", f"small model takes it: {said}"
    if exact.total and (high < enough or exact.score.share < enough):
        return "large", f"leave it with the large model: {said}"
    return "too few", f"too few examples yet ({exact.total} of {wanted(exact, enough)} held out): {said}"


def wanted(exact: Exact, enough: float) -> int:
    """Return how many held-out examples would do, if as large a share of them is right (of none: all are).

    Wilson's lower end is `enough` where (share − enough)² = z² · enough · (1 − enough) / n.
    """
    above = (exact.score.share if exact.total else 1.0) - enough
    return min(MOST_WANTED, math.ceil(Z**2 * enough * (1 - enough) / above**2)) if above > 0 else MOST_WANTED
