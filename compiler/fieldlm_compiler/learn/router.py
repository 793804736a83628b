"""Fit a router to examples whose tasks are known; what belongs to none of them it has to tell as well."""

from collections import Counter
from collections.abc import Mapping, Sequence
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


def fit_router(
    texts: Sequence[str], tasks: Sequence[str], names: Mapping[str, str], *, unknown: float = UNKNOWN, seed: int = 0
) -> Router:
    """Return the router of `texts`, each of which is one of `tasks`; `names` are those of the tasks.

    The threshold is the quantile `unknown` of the best chances that examples had when they were left out of the fit,
    which ridge regression says without fitting anew (Allen 1974, Technometrics 16, 125). Raises InputError where there
    is only one task.
    """
    from scipy.linalg import cho_factor, cho_solve
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    ids = sorted(task for task, count in Counter(tasks).items() if task and count >= LEAST)
    if len(ids) < 2:
        raise InputError(f"a router needs two tasks with {LEAST} examples each; there are {len(ids)}")
    places = {task: place for place, task in enumerate(ids)}
    kept = [i for i, task in enumerate(tasks) if task in places]
    kept = sorted(kept[int(i)] for i in np.random.default_rng(seed).permutation(len(kept))[:MOST])
    found = [features(texts[i]) for i in kept]
    where, values = (np.concatenate([pair[part] for pair in found]) for part in (0, 1))
    rows: Any = csr_matrix((values, where, np.cumsum([0, *(len(at) for at, _ in found)])), shape=(len(kept), PLACES))
    wanted = np.array([places[tasks[i]] for i in kept])
    targets = np.where(wanted[:, None] == np.arange(len(ids)), 1.0, -1.0)
    means = targets.mean(axis=0)
    with threadpool_limits(limits=1):
        likeness = (rows @ rows.T).toarray() + PENALTY * np.eye(len(kept))
        inverse: Floats = cho_solve(cho_factor(likeness), np.eye(len(kept)))
        shares = inverse @ (targets - means)
    left_out = targets - shares / np.diag(inverse)[:, None]
    sharpness = min(SHARPNESS, key=lambda sharp: _loss(sharp * left_out, wanted))
    weights = (rows.T @ shares).T * sharpness
    scales = np.maximum(np.abs(weights).max(axis=1), 1e-9) / 127
    return Router(
        tasks=tuple(ids),
        names=tuple(names.get(task, task) for task in ids),
        weights=np.round(weights / scales[:, None]).astype(np.int8),
        scales=scales.astype(np.float32),
        biases=(means * sharpness).astype(np.float32),
        least=float(np.quantile(_softmax(sharpness * left_out).max(axis=1), unknown)),
    )


def _softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _loss(scores: Floats, wanted: npt.NDArray[np.int64]) -> float:
    """Return the mean log loss of `scores` [examples, tasks]."""
    return float(-np.log(np.maximum(_softmax(scores)[np.arange(len(wanted)), wanted], 1e-12)).mean())


def write_router(path: Path, texts: Sequence[str], tasks: Sequence[str], names: Mapping[str, str]) -> bool:
    """Write the router of `texts` to `path`; False where nothing is to be told apart, and none is there afterwards."""
    try:
        write_whole(path, fit_router(texts, tasks, names).packed())
    except InputError:
        path.unlink(missing_ok=True)
        return False
    return True
