"""How likely an answer is right along a signal, as points: a logistic curve, or isotonic regression.

A curve of two numbers needs few answers, and isotonic regression finds any rising shape where there are many. Whichever
predicts answers that were left out better is taken.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from fieldlm.formats.confidence import LEAST_SURPRISE, Form, formed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Flags = NDArray[np.bool_]

Points = tuple[tuple[float, float], ...]
JUDGES = 5
"""Folds of the answers that are left out in turn."""
CURVE_POINTS = 33
WEIGHT_DIGITS = 4
"""Of slope and bias; they are found to more."""
NEWTON_STEPS, NEAR, TINY = 50, 1e-9, 1e-12
LEAST_P = 0.001
"""No answer that was left out counts as if it had been thought less possible."""


def steps(values: "Numbers", right: "Flags", form: Form) -> Points:
    """Return points (signal, p), both rising, between which the line is straight; `form` is the signal's own."""
    if len({*values.tolist()}) < 2:
        return isotonic_steps(values, right)

    def curve(seen: "Numbers", were: "Flags") -> Points:
        return logistic_steps(seen, were, form)

    # The curve where both foretell as well.
    return min((curve, isotonic_steps), key=lambda make: _left_out_loss(make, values, right))(values, right)


def isotonic_steps(values: "Numbers", right: "Flags") -> Points:
    """Return both ends of every block of isotonic regression.

    Each block is drawn to a half by Laplace's rule of succession, so that three right answers are no certainty.
    """
    import numpy as np
    from sklearn.isotonic import IsotonicRegression

    raw = IsotonicRegression().fit(values, right).predict(values)
    blocks = [values[raw == p] for p in np.unique(raw)]
    counts = np.array([block.size for block in blocks])
    hits = np.array([right[raw == p].sum() for p in np.unique(raw)])
    # It moves small blocks further than large ones, so the order has to be made once more.
    drawn = (hits + 1) / (counts + 2)
    again = IsotonicRegression().fit(np.arange(drawn.size), drawn, counts + 2).predict(np.arange(drawn.size))
    points: dict[float, float] = {}
    for block, p in zip(blocks, again, strict=True):
        points |= dict.fromkeys((float(block.min()), float(block.max())), round(float(p), 4))
    return tuple(sorted(points.items()))


def logistic_steps(values: "Numbers", right: "Flags", form: Form) -> Points:
    """Return points of a logistic curve of the signal in its `form`, from the least value to the greatest.

    Right and wrong count as what Laplace's rule makes of as many (Platt 1999, "Probabilistic Outputs for Support Vector
    Machines", 2.2), so that it is not certain where no answer is on the other side.
    """
    import numpy as np

    x = np.array([formed(form, value) for value in values.tolist()])
    mean, scale = float(x.mean()), float(x.std()) or 1.0
    hits = int(right.sum())
    aim = np.where(right, (hits + 1) / (hits + 2), 1 / (right.size - hits + 2))
    slope, bias = (round(each, WEIGHT_DIGITS) for each in _rising_line((x - mean) / scale, aim))
    grid = np.linspace(x.min(), x.max(), CURVE_POINTS)
    # No surer than if all answers had been right, or wrong.
    surest = math.floor(1e4 * (right.size + 1) / (right.size + 2)) / 1e4
    p = np.clip(1 / (1 + np.exp(-(slope * (grid - mean) / scale + bias))), 1 - surest, surest)
    ends = (float(values.min()), float(values.max()))
    between = (min(max(_unformed(form, value), ends[0]), ends[1]) for value in grid[1:-1].tolist())
    signal = [ends[0], *between, ends[1]]
    return tuple(dict(zip(signal, (round(each, 4) for each in p.tolist()), strict=True)).items())


def _rising_line(z: "Numbers", aim: "Numbers") -> tuple[float, float]:
    """Return slope, at least 0, and bias of the log odds that come nearest to `aim`, by Newton's method."""
    import numpy as np

    design = np.stack([z, np.ones_like(z)])

    def loss(at: "Numbers") -> float:
        odds = at @ design
        return float((np.logaddexp(0, odds) - aim * odds).sum())

    at = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(at @ design)))
        curvature = (design * (p * (1 - p))) @ design.T + TINY * np.eye(2)  # flat where all values are the same
        step = np.linalg.solve(curvature, design @ (p - aim))
        while loss(at - step) > loss(at) and float(np.abs(step).max()) > NEAR:
            step /= 2
        at = at - step
        if float(np.abs(step).max()) <= NEAR:
            break
    slope, bias = at.tolist()
    if slope >= 0:
        return slope, bias
    share = float(aim.mean())
    return 0.0, math.log(share / (1 - share))


def _unformed(form: Form, value: float) -> float:
    """Return the signal that has this value in its form."""
    if form == "surprise":
        value = LEAST_SURPRISE - math.exp(-value)
    return float(f"{math.expm1(value) if form == 'count' else value:.9g}")


def _left_out_loss(make: "Callable[[Numbers, Flags], Points]", values: "Numbers", right: "Flags") -> float:
    """Return the mean surprise at answers that the points were made without, in nats."""
    import numpy as np

    split, total = folds(right, 0, JUDGES), 0.0
    for fold in range(JUDGES):
        out = split == fold
        x, p = zip(*make(values[~out], right[~out]), strict=True)
        held = np.clip(np.interp(values[out], x, p), LEAST_P, 1 - LEAST_P)
        total -= float(np.log(np.where(right[out], held, 1 - held)).sum())
    return total / right.size


def folds(right: "Flags", seed: int, count: int) -> "NDArray[np.int64]":
    """Deal right and wrong answers out evenly; returns the fold of each, one of `count`."""
    import numpy as np

    dice = np.random.default_rng(seed)
    dealt = np.zeros(right.size, np.int64)
    for kind in (True, False):
        places = dice.permutation(np.flatnonzero(right == kind))
        dealt[places] = np.arange(places.size) % count
    return dealt
