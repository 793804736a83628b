"""What each step of a tuning takes, and how fast it learns."""

import math
import random
from collections.abc import Sequence

from fieldlm_compiler.learn.tuning.recipe import TrainingRecipe


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step as a share of its peak."""
    rising = (step + 1) / max(1.0, warmup * steps)
    return min(rising, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)


class Lessons:
    """Which examples each step takes: all, reshuffled for every pass, or in later passes those that are not known."""

    def __init__(self, count: int, recipe: TrainingRecipe) -> None:
        self._rng = random.Random(recipe.seed)
        self._batch = recipe.batch
        self._known = recipe.known
        self._worst = [math.inf] * count
        self._waiting: list[int] = []

    def take(self) -> list[int]:
        """Return the numbers of the next step's examples."""
        while len(self._waiting) < self._batch:
            everything = range(len(self._worst))
            unknown = [each for each in everything if self._worst[each] > self._known]
            self._waiting += self._rng.sample(unknown or everything, len(unknown or everything))
        taken, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        return taken

    def saw(self, taken: Sequence[int], worst: Sequence[float]) -> None:
        """Remember the greatest loss of a token, in nats, that each of the examples `taken` had before its step."""
        for each, loss in zip(taken, worst, strict=True):
            self._worst[each] = loss if self._known else math.inf
