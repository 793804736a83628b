"""Sampling: choose one token from logits, in plain numpy, the same way for every engine.

Logits are changed in this order: bias, repeat penalty, presence and frequency penalty (as llama.cpp does), then what a
constraint forbids. The filters work on the tempered distribution in the order Transformers uses: temperature, top-k,
top-p, min-p. Greedy without any of it is one arg-max over logits that nobody copied.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import RANGES, Guide, Sampling, TokenChoice

# A token this far below the best has less than 1e-13 of its probability; leaving it out spares sorting 49,000 entries.
NEGLIGIBLE = 30.0
# Tokens so far below the best are left out where probabilities are summed up only to say how sure a model is. It takes
# 0.06 ms a token of a call and 0.12 ms of a story, where the whole vocabulary takes twice that; on logits of SmolLM2 no
# log probability is off by more than 0.03 for it.
FAR = 10.0
REPEAT_WINDOW = 64  # tokens of prompt and answer that the repeat penalty looks back on; llama.cpp's default
# The margin of a token that had no rival: a finite number, so that means and JSON stay in order.
CERTAIN = 1000.0

Floats = NDArray[np.float32]


class Pick(NamedTuple):
    """A token, the gap between the two largest logits it was chosen from, and its choice when that was asked for.

    `is_free` says that there was another one to choose; `logprob` is then the token's own natural log probability by
    the model's distribution, before bias, penalties, constraint and temperature.
    """

    token: int
    margin: float
    choice: TokenChoice | None = None
    is_free: bool = False
    logprob: float = 0.0


class Sampler:
    """The choices of one answer: its random numbers, and the tokens that penalties count."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._rng = None if _is_greedy(sampling) else make_rng(sampling)
        bias = dict(sampling.logit_bias)
        self._biased = np.array(list(bias), np.int64)
        self._bias = np.array(list(bias.values()), np.float32)
        self._said: Counter[int] = Counter()
        self._recent = deque(prompt[-REPEAT_WINDOW:], maxlen=REPEAT_WINDOW)
        self._is_plain = not bias and not _penalises(sampling)

    def pick(self, logits: Floats, guide: Guide | None = None) -> Pick:
        """Choose the next token. `logits` is left as it was."""
        shaped = logits if self._is_plain else self._shape(logits)
        if guide is not None:
            shaped = _allowed(guide, shaped)
        token, margin = choose(shaped, self._sampling, self._rng)
        wanted = self._sampling.logprobs
        choice = None if wanted is None else describe(logits, token, wanted)
        is_free = margin < CERTAIN
        return Pick(token, margin, choice, is_free, logprob(logits, token) if is_free else 0.0)

    def force(self, token: int) -> Pick:
        """Return `token` as the pick there was no choice about: certain, with a log probability of zero."""
        wanted = self._sampling.logprobs
        choice = None if wanted is None else TokenChoice(token=token, logprob=0.0, top=((token, 0.0),)[:wanted])
        return Pick(token, CERTAIN, choice)

    def note(self, token: int) -> None:
        """Count a token of the answer."""
        if not self._is_plain:
            self._said[token] += 1
            self._recent.append(token)

    def _shape(self, logits: Floats) -> Floats:
        sampling = self._sampling
        shaped = logits.copy()
        shaped[self._biased] += self._bias
        if sampling.repeat_penalty != 1:
            recent = np.array(sorted(set(self._recent)), np.int64)
            values = shaped[recent]
            shaped[recent] = np.where(values > 0, values / sampling.repeat_penalty, values * sampling.repeat_penalty)
        if self._said and (sampling.presence_penalty or sampling.frequency_penalty):
            said = np.fromiter(self._said, np.int64)
            counts = np.fromiter(self._said.values(), np.float32)
            shaped[said] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        return shaped


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Raise InputError for what no engine can do; `vocabulary` is the number of the model's tokens."""
    for name, (least, most) in RANGES.items():
        value: object = getattr(sampling, name)
        if value is None and name in ("seed", "logprobs"):
            continue
        kind = int if isinstance(least, int) else (int, float)
        if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            bounds = f"{least}–{most}" if kind is int else f"{least:g}–{most:g}"
            raise InputError(f"{name} is {value!r}, want {what}, {bounds}")
    _check_stops(sampling.stop)
    for token, bias in _pairs(sampling.logit_bias):
        if not 0 <= token < vocabulary:
            raise InputError(f"logit_bias names token {token}, the model has 0 to {vocabulary - 1}")
        if not math.isfinite(bias):
            raise InputError(f"logit_bias of token {token} is {bias}, want a number")


def _check_stops(stop: object) -> None:
    """A text is a sequence of texts, too: its letters would each end the answer."""
    if not isinstance(stop, tuple | list) or not all(isinstance(each, str) for each in cast(list[object], stop)):
        raise InputError(f"stop is {stop!r}, want a tuple of texts, such as ('END',)")


def _pairs(biases: object) -> tuple[tuple[int, float], ...]:
    try:
        pairs = [(token, bias) for token, bias in cast(list[Any], biases)] if not isinstance(biases, Mapping) else None
    except (TypeError, ValueError):
        pairs = None
    if pairs is None or not all(isinstance(token, int) and isinstance(bias, int | float) for token, bias in pairs):
        raise InputError(f"logit_bias is {biases!r}, want pairs of a token and a number, such as ((7, -1.0),)")
    return tuple(pairs)


def make_rng(sampling: Sampling) -> "np.random.Generator":
    """Return the random numbers of one answer: the same seed, also 0, gives the same ones."""
    return np.random.default_rng(None if sampling.seed is None else sampling.seed & (2**64 - 1))


def choose(logits: Floats, sampling: Sampling, rng: "np.random.Generator | None") -> tuple[int, float]:
    """Return the chosen token and the gap between the two largest logits, at most CERTAIN.

    Greedy at temperature 0, which takes no `rng`. `logits` is left as it was. Raises EngineError when the model has
    computed NaN or infinity.
    """
    best = int(logits.argmax())
    top = float(logits[best])
    if not math.isfinite(top):
        raise EngineError(f"the model's logits are not numbers ({top}); its weights are damaged")
    margin = min(top - _largest_beside(logits, best), CERTAIN)
    if _is_greedy(sampling):
        return best, margin
    assert rng is not None, "whoever draws has brought them"
    return _draw(logits, top, sampling, rng), margin


def describe(logits: Floats, token: int, count: int) -> TokenChoice:
    """Return how likely `token` was by the model's own distribution, and the `count` likeliest, ties by their id."""
    above = logits.astype(np.float64) - float(logits.max())
    logprobs = above - math.log(np.exp(above).sum())
    count = min(count, logits.size)
    best = np.argpartition(-logprobs, count - 1)[:count] if count else np.array([], np.int64)
    best = best[np.lexsort((best, -logprobs[best]))]
    top = tuple((int(one), float(logprobs[one])) for one in best)
    return TokenChoice(token=token, logprob=float(logprobs[token]), top=top)


def logprob(logits: Floats, token: int) -> float:
    """Return the natural log probability of `token` beside all that are at least e**-FAR as likely as the best."""
    top = logits[logits.argmax()]
    above = logits[logits >= top - np.float32(FAR)]
    above -= top
    np.exp(above, out=above)
    return min(0.0, float(logits[token] - top) - math.log(float(above.sum())))


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature <= 0 or sampling.top_k == 1


def _penalises(sampling: Sampling) -> bool:
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repeat_penalty != 1)


def _allowed(guide: Guide, logits: Floats) -> Floats:
    allowed = guide.allow(logits)
    if allowed.max() == -np.inf and logits.max() > -np.inf:
        raise EngineError("the constraint allows no token here; it cannot be met by this model's tokens")
    return allowed


def _largest_beside(logits: Floats, best: int) -> float:
    """Return the second largest. It is looked for as the first was: code that has just run is in the cache."""
    kept = logits[best]
    logits[best] = -np.inf
    second = float(logits[logits.argmax()])
    logits[best] = kept
    return second


def _draw(logits: Floats, top: float, sampling: Sampling, rng: "np.random.Generator") -> int:
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
