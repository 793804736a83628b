"""Requests as points: what was said as a vector, the same without values, which function was called.

A distinct request is one point, however often it was made.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.shapes import Shape, call_of, signature, without_values
from fieldlm_compiler.learn.tasks import digest

if TYPE_CHECKING:
    from fieldlm_compiler.learn.communities import Labels
    from fieldlm_compiler.learn.embed import Embedder, FittedEmbedder, Vectors

SHAPE_SIZE = 64
"""Numbers of a point that say which function is called."""


class Points(NamedTuple):
    """Distinct requests: the place of one example each, and of each example the place of its request."""

    firsts: list[int]
    of_example: "Labels"
    digests: list[str]

    @classmethod
    def of(cls, examples: Sequence[CuratedExample]) -> "Points":
        import numpy as np

        places: dict[str, int] = {}
        firsts: list[int] = []
        of_example: list[int] = []
        for number, example in enumerate(examples):
            key = digest_of(example)
            if key not in places:
                places[key] = len(firsts)
                firsts.append(number)
            of_example.append(places[key])
        return cls(firsts, np.array(of_example), list(places))


@dataclass(frozen=True, eq=False, kw_only=True)
class Locator:
    """Gives further requests their points, as if those that it was fitted to were all there are."""

    said: "FittedEmbedder"
    shaped: "FittedEmbedder | None"
    """For requests without their values; None where no answer has any."""
    has_functions: bool
    """Whether points end with which function is called."""

    @classmethod
    def fit(cls, examples: Sequence[CuratedExample], embedder: "Embedder") -> tuple["Vectors", "Locator"]:
        """Return the points of `examples`, and the locator that is fitted to them."""
        calls = _calls(examples)
        rows, said = embedder.fit(_said(examples))
        views, shaped = [rows], None
        if _have_values(calls):
            rows, shaped = embedder.fit(_without_values(examples, calls))
            views.append(rows)
        has_functions = _have_functions(calls)
        return _points(views, calls if has_functions else ()), cls(
            said=said, shaped=shaped, has_functions=has_functions
        )

    def __call__(self, examples: Sequence[CuratedExample]) -> "Vectors":
        """Return a point of length 1 per example."""
        calls = _calls(examples)
        views = [self.said(_said(examples))]
        if self.shaped:
            views.append(self.shaped(_without_values(examples, calls)))
        return _points(views, calls if self.has_functions else ())


def locate(examples: Sequence[CuratedExample], embedder: "Embedder") -> "Vectors":
    """Return a point of length 1 per example."""
    calls = _calls(examples)
    views = [embedder(_said(examples))]
    if _have_values(calls):
        views.append(embedder(_without_values(examples, calls)))
    return _points(views, calls if _have_functions(calls) else ())


def digest_of(example: CuratedExample) -> str:
    """Return how the request of an example is known."""
    return digest(example.utterance, signature(example.answer))


def _said(examples: Sequence[CuratedExample]) -> list[str]:
    return [example.utterance for example in examples]


def _calls(examples: Sequence[CuratedExample]) -> list[Shape]:
    return [call_of(example.answer) for example in examples]


def _have_values(calls: Sequence[Shape]) -> bool:
    return any(arguments for _, arguments in calls)


def _have_functions(calls: Sequence[Shape]) -> bool:
    return len({name for name, _ in calls}) > 1


def _without_values(examples: Sequence[CuratedExample], calls: Sequence[Shape]) -> list[str]:
    return [without_values(example.utterance, call[1]) for example, call in zip(examples, calls, strict=True)]


def _points(views: "list[Vectors]", calls: Sequence[Shape]) -> "Vectors":
    """Return the rows of all views side by side; of `calls`, if any, the functions."""
    import numpy as np

    from fieldlm_compiler.learn.embed import unit

    if calls:
        directions = {name: _direction(name) for name, _ in calls}
        views.append(np.stack([directions[name] for name, _ in calls]) * np.float32(len(views) ** 0.5))
    return unit(np.hstack(views)) if len(views) > 1 else views[0]


def _direction(feature: str) -> "Vectors":
    """Return a random direction that is always the same for a feature."""
    import numpy as np

    seed = int.from_bytes(hashlib.sha256(feature.encode()).digest()[:8])
    direction = np.random.default_rng(seed).standard_normal(SHAPE_SIZE)
    return (direction / np.linalg.norm(direction)).astype(np.float32)
