"""Fit a router to examples whose tasks are known; what belongs to none of them it has to tell as well."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldlm.core.errors import InputError
from fieldlm.core.files import write_whole
from fieldlm.formats.router import PLACES, Router, features

Floats = npt.NDArray[np.float64]
PENALTY = 1.0
"""Of ridge regression on +1 and -1: as right as logistic regression here, and solved at once."""
SHARPNESS = tuple(float(sharp) for sharp in np.geomspace(1, 32, 16))
"""What scores are multiplied with before they become chances: the one of the least log loss on held-out examples."""
UNKNOWN = 0.05
"""Share of known requests that may be taken for unknown ones: the large model answers those, which only costs."""
MOST = 5000
"""Examples that are fitted; work grows with the cube of them."""
LEAST = 2
"""Examples without which nothing is known of a task but that it is there."""
_BLOCK = 500
"""Columns of the likeness that are made at once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedHead:
    """A linear head over a router's features: `weights` [classes, PLACES] int8, `scales` and `biases` [classes].

    `left_out` [examples, classes] are the scores that each example had while it, and its group, were left out.
    """

    weights: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    biases: npt.NDArray[np.float32]
    left_out: Floats


def fit_router(
    texts: Sequence[str], tasks: Sequence[str], names: Mapping[str, str], *, unknown: float = UNKNOWN, seed: int = 0
) -> Router:
    """Return the router of `texts`, each of which is one of `tasks`; `names` are those of the tasks.

    The threshold is the quantile `unknown` of the best chances that examples had when they were left out of the fit.
    Raises InputError where there is only one task.
    """
    ids = sorted(task for task, count in Counter(tasks).items() if task and count >= LEAST)
    if len(ids) < 2:
        raise InputError(f"a router needs two tasks with {LEAST} examples each; there are {len(ids)}")
    places = {task: place for place, task in enumerate(ids)}
    kept = drawn([i for i, task in enumerate(tasks) if task in places], seed)
    head = fit_head([texts[i] for i in kept], [places[tasks[i]] for i in kept], len(ids))
    return Router(
        tasks=tuple(ids),
        names=tuple(names.get(task, task) for task in ids),
        weights=head.weights,
        scales=head.scales,
        biases=head.biases,
        least=float(np.quantile(softmax(head.left_out).max(axis=1), unknown)),
    )


def drawn(rows: Sequence[int], seed: int = 0) -> list[int]:
    """Return MOST of `rows`, in order: always the same ones."""
    return sorted(rows[int(i)] for i in np.random.default_rng(seed).permutation(len(rows))[:MOST])


def fit_head(
    texts: Sequence[str], classes: Sequence[int], count: int, *, groups: Sequence[str] | None = None
) -> FittedHead:
    """Return the head that tells apart which of `count` classes each of `texts` is.

    Ridge regression says without fitting anew what it would have said of an example that was left out (Allen 1974,
    Technometrics 16, 125), and of all examples of one of `groups` together; none are given: each is its own.
    """
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    found = [features(text) for text in texts]
    where, values = (np.concatenate([pair[part] for pair in found]) for part in (0, 1))
    size = len(texts)
    rows: Any = csr_matrix((values, where, np.cumsum([0, *(len(at) for at, _ in found)])), shape=(size, PLACES))
    wanted = np.array(classes)
    targets = np.where(wanted[:, None] == np.arange(count), 1.0, -1.0)
    means = targets.mean(axis=0)
    with threadpool_limits(limits=1):
        shares, inverse = _solved(rows, targets - means)
        left_out = targets - _residuals(inverse, shares, groups)
    sharpness = min(SHARPNESS, key=lambda sharp: _loss(sharp * left_out, wanted))
    weights = (rows.T @ shares).T * sharpness
    scales = np.maximum(np.abs(weights).max(axis=1), 1e-9) / 127
    return FittedHead(
        weights=np.round(weights / scales[:, None]).astype(np.int8),
        scales=scales.astype(np.float32),
        biases=(means * sharpness).astype(np.float32),
        left_out=sharpness * left_out,
    )


def _solved(rows: Any, targets: Floats) -> tuple[Floats, Floats]:
    """Return what each row has to say in ridge regression on `targets`, and the inverse of the rows' likeness.

    Of the inverse only what is on and below the diagonal is there. 5,000 rows make 200 MB, and it is the only one of
    its size: it is made, factored and inverted in one place.
    """
    from scipy.linalg import cho_factor, cho_solve, get_lapack_funcs

    size = rows.shape[0]
    likeness = np.empty((size, size), order="F")
    for start in range(0, size, _BLOCK):
        likeness[:, start : start + _BLOCK] = (rows @ rows[start : start + _BLOCK].T).toarray()
    likeness[np.diag_indices(size)] += PENALTY
    factor = cho_factor(likeness, lower=True, overwrite_a=True)
    shares: Floats = cho_solve(factor, targets)
    invert: Any = get_lapack_funcs("potri", (likeness,))
    return shares, invert(factor[0], lower=1, overwrite_c=1)[0]


def _residuals(inverse: Floats, shares: Floats, groups: Sequence[str] | None) -> Floats:
    """Return by how much the scores of examples that were left out miss, by the inverse of the whole fit."""
    if groups is None:
        return shares / np.diag(inverse)[:, None]
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    missed = np.empty_like(shares)
    for own in members.values():
        below = np.tril(inverse[np.ix_(own, own)])
        missed[own] = np.linalg.solve(below + np.tril(below, -1).T, shares[own])
    return missed


def softmax(scores: Floats) -> Floats:
    """Return the chances that `scores` [examples, classes] mean."""
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _loss(scores: Floats, wanted: npt.NDArray[np.int64]) -> float:
    """Return the mean log loss of `scores` [examples, tasks]."""
    return float(-np.log(np.maximum(softmax(scores)[np.arange(len(wanted)), wanted], 1e-12)).mean())


def write_router(path: Path, texts: Sequence[str], tasks: Sequence[str], names: Mapping[str, str]) -> bool:
    """Write the router of `texts` to `path`; False where nothing is to be told apart, and none is there afterwards."""
    try:
        write_whole(path, fit_router(texts, tasks, names).packed())
    except InputError:
        path.unlink(missing_ok=True)
        return False
    return True
