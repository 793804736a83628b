"""Label errors: which functions customers say should have been called, against what others say of requests like theirs.

Confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021) on out-of-fold predictions. The function of each
request is foretold from what other customers said, as the mean of two: a ridge regression on sentence embeddings, whose
scores become chances by the sharpness of the least log loss, and the nearest neighbours. A label is in doubt when the
chance of another function is near what that function's own requests have on average, and the label's own is next to
nothing. Plain text is a class of its own beside functions, so that a refusal where others had a call is found as well;
where all is plain text, nothing is in doubt.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fieldlm_compiler.learn.shapes import call_of

if TYPE_CHECKING:
    from fieldlm_compiler.learn.embed import Embedder

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]
FOLDS = 5
PENALTY = 2.0
NEIGHBOURS = 25
MOST = 12_000
"""Requests that neighbours are looked for among; work grows with them times all."""
LEAST_OF_CLASS = 10
"""Examples of a function without which nothing is said of it."""
LEAST = 100
"""Examples without which nothing is in doubt."""
NEAR = 0.6
"""Of the mean chance that a function's own requests have: from there on it may be what was meant."""
NOTHING = 0.02
"""Of the mean chance that a function's own requests have: a label's chance below that is next to nothing."""
MOST_NOISE = 0.05
"""Next to nothing is what an unrelated function's chance is as well, the median of all, up to that."""
SHARPNESS = tuple(float(sharp) for sharp in np.geomspace(1, 64, 25))
_BLOCK = 1000


class SaidLabel(Protocol):
    """What is read of an example."""

    @property
    def utterance(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def voter(self) -> str: ...


def label_errors(examples: Sequence[SaidLabel], embedder: "Embedder | None" = None) -> list[bool]:
    """Say for each example whether its label is in doubt."""
    from fieldlm_compiler.learn.embed import Embedder

    names = [call_of(example.answer)[0] for example in examples]
    classes = sorted(name for name, count in Counter(names).items() if count >= LEAST_OF_CLASS)
    judged = [at for at, name in enumerate(names) if name in set(classes)]
    doubts = [False] * len(examples)
    if len(classes) < 2 or len(judged) < LEAST:
        return doubts
    points = (embedder or Embedder())([examples[at].utterance for at in judged]).astype(np.float64)
    labels = np.array([classes.index(names[at]) for at in judged])
    voters = [examples[at].voter for at in judged]
    chances = (by_regression(points, labels, voters) + by_neighbours(points, labels, voters)) / 2
    for at, is_doubtful in zip(judged, in_doubt(chances, labels).tolist(), strict=True):
        doubts[at] = is_doubtful
    return doubts


def by_regression(points: Floats, labels: Classes, voters: Sequence[str]) -> Floats:
    """Return the chance of each class [examples, classes], foretold from the examples of customers in other folds."""
    from threadpoolctl import threadpool_limits

    fold = np.array([hashlib.sha256(voter.encode()).digest()[0] % FOLDS for voter in voters])
    targets = np.where(labels[:, None] == np.arange(labels.max() + 1), 1.0, -1.0)
    scores = np.full(targets.shape, -1.0)
    with threadpool_limits(limits=1):
        for number in np.unique(fold):
            seen = fold != number
            if not seen.any():
                continue
            mean = targets[seen].mean(axis=0)
            gram = points[seen].T @ points[seen] + PENALTY * np.eye(points.shape[1])
            weights = np.linalg.solve(gram, points[seen].T @ (targets[seen] - mean))
            scores[~seen] = points[~seen] @ weights + mean
    return min((_softmax(sharp * scores) for sharp in SHARPNESS), key=lambda chances: _loss(chances, labels))


def by_neighbours(points: Floats, labels: Classes, voters: Sequence[str]) -> Floats:
    """Return the share of each class among the nearest neighbours of other customers; squared cosines are votes."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(points))[:MOST])
    customer = np.unique(np.array(voters), return_inverse=True)[1]
    count = min(NEIGHBOURS, len(chosen))
    shares: Floats = np.zeros((len(points), labels.max() + 1))
    for start in range(0, len(points), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(points)))
        likeness = points[rows] @ points[chosen].T
        likeness[customer[rows][:, None] == customer[chosen][None, :]] = 0.0
        near: Any = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        votes = np.take_along_axis(likeness, near, axis=1).clip(0.0) ** 2
        np.add.at(shares, (rows[:, None], labels[chosen][near]), votes)
    return shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)


def in_doubt(chances: Floats, labels: Classes) -> npt.NDArray[np.bool_]:
    """Say of each label whether its chance is next to nothing and another's is not [examples]."""
    every, count = np.arange(len(labels)), chances.shape[1]
    own = chances[every, labels]
    usual = np.array([own[labels == each].mean() for each in range(count)])
    others = chances.copy()
    others[every, labels] = 0.0
    noise = min(float(np.median(chances, axis=1).mean()), MOST_NOISE)
    return (others >= NEAR * usual).any(axis=1) & (own < NOTHING * usual[labels] + noise)


def _softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _loss(chances: Floats, labels: Classes) -> float:
    return float(-np.log(np.maximum(chances[np.arange(len(labels)), labels], 1e-12)).mean())
