"""The Pareto frontier, the best mixture for every size: a walk along the lower convex hulls of all tensors at once.

Each tensor has options that cost bytes and divergence. On its hull each further byte buys less than the one before, so
taking the steps of all hulls in order of what a byte buys gives, at each step, the least divergence for its bytes
(Everett 1963's multipliers, as in Shoham and Gersho, IEEE TASSP 36, 1988). One sort gives the whole frontier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Option:
    """One type for one tensor: what it weighs and what it costs, in nats of divergence for each token."""

    type: str
    bytes: int
    divergence: float
    nanoseconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One mixture: the sums over all tensors, and how many steps of the walk lead to it."""

    bytes: int
    divergence: float
    steps: int


class Frontier:
    """All mixtures on the hull, smallest first."""

    def __init__(self, options: Mapping[str, Sequence[Option]]) -> None:
        hulls = {name: hull(each) for name, each in options.items()}
        self._start = {name: each[0] for name, each in hulls.items()}
        steps = [
            ((low.divergence - high.divergence) / (high.bytes - low.bytes), name, high)
            for name, each in hulls.items()
            for low, high in pairwise(each)
        ]
        # Equal gains are taken in the order of the names, so that equal inputs give equal mixtures.
        self._steps = [(name, option) for _, name, option in sorted(steps, key=lambda step: (-step[0], step[1]))]
        self.points = self._walk()

    def _walk(self) -> list[FrontierPoint]:
        chosen = dict(self._start)
        size = sum(option.bytes for option in chosen.values())
        divergence = sum(option.divergence for option in chosen.values())
        points = [FrontierPoint(size, divergence, 0)]
        for count, (name, option) in enumerate(self._steps, 1):
            size += option.bytes - chosen[name].bytes
            divergence += option.divergence - chosen[name].divergence
            chosen[name] = option
            points.append(FrontierPoint(size, divergence, count))
        return points

    def mixture(self, point: FrontierPoint) -> dict[str, Option]:
        """Return the option of every tensor at `point`."""
        chosen = dict(self._start)
        chosen.update(self._steps[: point.steps])
        return chosen

    def within(self, limit_bytes: float) -> FrontierPoint | None:
        """Return the best point of at most `limit_bytes`, or None when even the smallest is larger."""
        fitting = [point for point in self.points if point.bytes <= limit_bytes]
        return fitting[-1] if fitting else None


def hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull of divergence over bytes, smallest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (each.bytes, each.divergence)):
        if kept and option.divergence >= kept[-1].divergence:
            continue
        while len(kept) > 1 and _bends_up(kept[-2], kept[-1], option):
            kept.pop()
        if kept and option.bytes == kept[-1].bytes:
            continue
        kept.append(option)
    return kept


def _bends_up(first: Option, middle: Option, last: Option) -> bool:
    """Say whether `middle` lies on or above the line from `first` to `last`."""
    gain = (first.divergence - middle.divergence) * (last.bytes - first.bytes)
    return gain <= (first.divergence - last.divergence) * (middle.bytes - first.bytes)
