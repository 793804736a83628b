"""A learned deferral: several signals of an answer, weighed together, say how likely it is right.

A logistic model with a ridge makes a score of them. What says that the model was sure never counts against an answer:
those weights are not negative. Steps are made of the scores that each answer has from a model fitted without it, and
what is said of p once more without it, so that no threshold is chosen on answers that score or steps were fitted to.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import msgspec

from fieldlm.formats.confidence import (
    DIGITS,
    LEARNED,
    Confidence,
    LearnedDeferral,
    ScoredSignal,
    SignalScore,
    formed,
)
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.verify.calibration_curve import WEIGHT_DIGITS, folds, steps
from fieldlm_compiler.verify.confidence import (
    DRAWS,
    FOLDS,
    QUANTILES,
    TaskAnswer,
    auroc,
    figures,
    fit,
    form_of,
    tellable,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Flags = NDArray[np.bool_]

Deferral = Literal["threshold", "learned", "best"]
DEFERRALS: tuple[Deferral, ...] = get_args(Deferral)
RIDGE = 1.0
"""Of the weights' squares, halved, beside the sum of all losses: as much as one answer says."""
LEAST_OF_EACH = 10
"""Right and wrong answers, below which nothing is learned: a weight for each signal is fitted to them."""
REPEATS, INNER_FOLDS = 5, 5


class _Learnable(NamedTuple):
    is_sureness: bool = False
    is_bound: bool = False


LEARNABLE: Mapping[str, _Learnable] = {
    "mean_logprob": _Learnable(is_sureness=True),
    "sum_logprob": _Learnable(is_sureness=True),
    "min_logprob": _Learnable(is_sureness=True),
    "min_margin": _Learnable(is_sureness=True),
    "mean_margin": _Learnable(is_sureness=True),
    "answer_tokens": _Learnable(),
    "prompt_tokens": _Learnable(),
    # Margins under a schema are of what it left. An answer with more forced tokens than any that was fitted is judged
    # by its log probability alone.
    "forced_share": _Learnable(is_bound=True),
}


def calibrate(answers: Sequence[TaskAnswer], deferral: Deferral = "threshold", *, what: str = "fit confidence") -> Ran:
    """Return the `Confidence` that `answers` give, as builtins; made in a child process."""
    return call(fit_deferral, what=what)(answers=list(answers), deferral=deferral)


def fit_deferral(answers: list[TaskAnswer], deferral: Deferral = "threshold") -> dict[str, Any]:
    """Fit to `answers` the best signal alone or, as `deferral` asks, several together. The same ones give the same."""
    found = msgspec.convert(fit(answers), Confidence)
    if deferral != "threshold" and found.steps:
        found = _with_learned(found, tellable(answers), is_asked=deferral == "learned")
    return cast(dict[str, Any], msgspec.to_builtins(found))


def _with_learned(found: Confidence, answers: Sequence[TaskAnswer], *, is_asked: bool) -> Confidence:
    """Add a learned score to `found` where it is better beyond chance, or `is_asked` for; and how the two compare."""
    import numpy as np

    right = np.array([answer.right for answer in answers], np.bool_)
    fewest = min(int(right.sum()), int((~right).sum()))
    if fewest < LEAST_OF_EACH:
        why = f"{found.right} right and {found.n - found.right} wrong answers, {LEAST_OF_EACH} of each are the fewest"
        return msgspec.structs.replace(found, deferral=f"nothing is learned: {why}")
    table = formed_table(answers)
    scores = left_out_scores(table, right)
    single = np.array([answer.signals[found.signal] for answer in answers])
    gain, low, high = _gain(scores, single, right)
    is_taken = is_asked or low > 0
    verdict = "taken, as asked for" if is_asked else "taken" if is_taken else "not taken: not better beyond chance"
    said = (
        f"learned of {len(table)} signals: AUROC {auroc(scores, right):.3f} against {auroc(single, right):.3f} by "
        f"{found.signal} alone, {gain:+.3f} (95 %: {low:+.3f} to {high:+.3f}): {verdict}"
    )
    found = msgspec.structs.replace(found, deferral=said)
    return _taken(found, table, scores, right) if is_taken else found


def _taken(found: Confidence, table: "Mapping[str, Numbers]", scores: "Numbers", right: "Flags") -> Confidence:
    import numpy as np

    quantiles = np.quantile(scores, np.linspace(0, 1, QUANTILES + 1))
    learned = LearnedDeferral(
        score=fit_score(table, right),
        steps=steps(scores, right, "plain"),
        quantiles=tuple(round(float(value), 3) for value in quantiles),
    )
    return figures(
        msgspec.structs.replace(found, learned=learned, must_understand=(LEARNED,)),
        scores,
        left_out_chances(table, right),
        right,
        estimate=f"{FOLDS}-fold, mean of {REPEATS} splits, score and steps both",
    )


def formed_table(answers: Sequence[TaskAnswer]) -> "dict[str, Numbers]":
    """Return what can be learned from of `answers`, in its form: name → one number each. All of them tell it."""
    import numpy as np

    names = [name for name in LEARNABLE if all(name in answer.signals for answer in answers)]
    return {
        name: np.array([formed(form_of(name), answer.signals[name]) for answer in answers], np.float64)
        for name in names
    }


def fit_score(table: "Mapping[str, Numbers]", right: "Flags") -> SignalScore:
    """Return the score of a logistic model of the signals in `table`; one that is always the same has no weight."""
    import numpy as np

    said = {name: (round(float(values.mean()), 6), round(float(values.std()), 6)) for name, values in table.items()}
    varied = [name for name, (_, scale) in said.items() if scale > 0]
    parts = [(table[name] - said[name][0]) / said[name][1] for name in varied]
    x = np.stack(parts, axis=1) if parts else np.empty((right.size, 0))
    weights, bias = _logistic(x, right, [LEARNABLE[name].is_sureness for name in varied])
    weight_of = dict(zip(varied, weights, strict=True))
    kept = [name for name in table if name in weight_of or LEARNABLE[name].is_bound]
    return SignalScore(
        signals=tuple(_signal(name, table[name], *said[name], weight_of.get(name, 0.0)) for name in kept), bias=bias
    )


def _signal(name: str, values: "Numbers", mean: float, scale: float, weight: float) -> ScoredSignal:
    import numpy as np

    kind = LEARNABLE[name]
    low, high = float(values.min()), float(values.max())
    if kind.is_bound:  # what was fitted to has three digits, what a device finds is exact
        low, high = float(np.floor(100 * low - 0.05) / 100), float(np.ceil(100 * high + 0.05) / 100)
    return ScoredSignal(
        name=name,
        form=form_of(name),
        mean=mean,
        scale=scale or 1.0,
        weight=weight,
        low=round(low, 6),
        high=round(high, 6),
        is_bound=kind.is_bound,
    )


def _logistic(x: "Numbers", right: "Flags", is_sureness: Sequence[bool]) -> tuple[list[float], float]:
    """Return weights [signals] and bias of the logistic model of `right` on `x` [answers, signals].

    There is one minimum, found to more digits than are kept.
    """
    import numpy as np
    from scipy.optimize import minimize

    sign = np.where(right, 1.0, -1.0)

    def loss(at: "Numbers") -> "tuple[float, Numbers]":
        weights, bias = at[:-1], at[-1]
        odds = sign * (x @ weights + bias)
        slope = -sign / (1 + np.exp(np.clip(odds, -500, 500)))
        gradient = np.append(x.T @ slope + RIDGE * weights, slope.sum())
        return float(np.logaddexp(0, -odds).sum() + RIDGE / 2 * (weights @ weights)), gradient

    bounds = [(0.0 if each else None, None) for each in is_sureness]
    start = np.zeros(x.shape[1] + 1)
    options = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-8}
    ended: Any = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[*bounds, (None, None)], options=options)
    *weights, bias = (round(float(value), WEIGHT_DIGITS) for value in ended.x)
    return weights, bias


def scores_of(score: SignalScore, table: "Mapping[str, Numbers]") -> "Numbers":
    """Return the score of each answer in `table`, within what was fitted to or not."""
    import numpy as np

    total: Numbers = np.full(len(next(iter(table.values()))), score.bias, np.float64)
    for each in score.signals:
        total += (np.clip(table[each.name], each.low, each.high) - each.mean) / each.scale * each.weight
    return np.array([round(value, DIGITS) for value in total.tolist()])  # as `SignalScore.of` rounds


def left_out_scores(
    table: "Mapping[str, Numbers]", right: "Flags", *, count: int = FOLDS, repeats: int = REPEATS
) -> "Numbers":
    """Return the score of each answer by models that did not see it, as a mean over `repeats` splits in `count`."""
    import numpy as np

    total = np.zeros(right.size)
    for repeat in range(repeats):
        split = folds(right, repeat, count)
        for fold in range(count):
            out = split == fold
            total[out] += scores_of(fit_score(_part(table, ~out), right[~out]), _part(table, out))
    return np.round(total / repeats, DIGITS)


def left_out_chances(table: "Mapping[str, Numbers]", right: "Flags") -> "Numbers":
    """Return p of each answer, by a score and by steps that were both made without it."""
    import numpy as np

    total = np.zeros(right.size)
    for repeat in range(REPEATS):
        split = folds(right, repeat, FOLDS)
        for fold in range(FOLDS):
            out = split == fold
            rest, seen = _part(table, ~out), right[~out]
            left_out = left_out_scores(rest, seen, count=INNER_FOLDS, repeats=1)
            x, p = zip(*steps(left_out, seen, "plain"), strict=True)
            total[out] += np.interp(scores_of(fit_score(rest, seen), _part(table, out)), x, p)
    return total / REPEATS


def _part(table: "Mapping[str, Numbers]", which: "Flags") -> "dict[str, Numbers]":
    return {name: values[which] for name, values in table.items()}


def _gain(scores: "Numbers", single: "Numbers", right: "Flags") -> tuple[float, float, float]:
    """Return by how much the AUROC of `scores` is above that of `single`, with the ends of its 95 % interval.

    The same draws of answers judge both (paired bootstrap). The single signal was chosen on these very answers, the
    scores are of models that did not see them: what is in doubt counts for the single one.
    """
    import numpy as np

    dice = np.random.default_rng(1)
    draws = (dice.integers(0, right.size, right.size) for _ in range(DRAWS))
    gains = [auroc(scores[draw], right[draw]) - auroc(single[draw], right[draw]) for draw in draws]
    low, high = np.quantile(gains, [0.025, 0.975])
    return auroc(scores, right) - auroc(single, right), float(low), float(high)
