"""Choose one token from logits, in plain numpy, the same way for every engine.

The filters work on the tempered distribution in the order Transformers uses: temperature, top-k, top-p, min-p.
"""

import numpy as np
from numpy.typing import NDArray

from fieldlm.formats.errors import EngineError
from fieldlm.runtime.engines import Sampling

# A token this far below the best has less than 1e-13 of its probability; leaving it out spares sorting 49,000 entries.
NEGLIGIBLE = 30.0

Floats = NDArray[np.float32]


def make_rng(sampling: Sampling) -> np.random.Generator:
    """Return the random numbers of one answer: the same seed, also 0, gives the same ones."""
    return np.random.default_rng(None if sampling.seed is None else sampling.seed & (2**64 - 1))


def choose(logits: Floats, sampling: Sampling, rng: np.random.Generator) -> tuple[int, float]:
    """Return the chosen token and the gap between the two largest logits.

    Greedy at temperature 0. `logits` is only read. Raises EngineError when the model has computed NaN or infinity.
    """
    best = int(logits.argmax())
    top = float(logits[best])
    if not np.isfinite(top):
        raise EngineError(f"the model's logits are not numbers ({top}); its weights are damaged")
    margin = top - _largest_beside(logits, best)
    if sampling.temperature <= 0 or sampling.top_k == 1:
        return best, margin
    return _draw(logits, top, sampling, rng), margin


def _largest_beside(logits: Floats, best: int) -> float:
    sides = [side for side in (logits[:best], logits[best + 1 :]) if side.size]
    return max((float(side.max()) for side in sides), default=float(logits[best]))


def _draw(logits: Floats, top: float, sampling: Sampling, rng: np.random.Generator) -> int:
    tokens = np.flatnonzero(logits >= top - NEGLIGIBLE * sampling.temperature)
    if 0 < sampling.top_k < tokens.size:
        # Back in ascending order, so that the same seed gives the same text however the partition left them.
        tokens = np.sort(tokens[np.argpartition(-logits[tokens], sampling.top_k - 1)[: sampling.top_k]])
    weights = np.exp((logits[tokens].astype(np.float64) - top) / sampling.temperature)
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        shares = weights[order].cumsum() / weights.sum()
        order = order[: int(np.searchsorted(shares, sampling.top_p)) + 1]
        tokens, weights = tokens[order], weights[order]
    # The best token weighs 1, so min-p, a share of the best, is a plain threshold.
    likely = weights >= min(sampling.min_p, 1.0)
    edges = weights[likely].cumsum()
    place = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    return int(tokens[likely][min(place, edges.size - 1)])
