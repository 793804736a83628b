"""Confidence: what an artefact's own answers to a task say of how likely its next one is right.

Fitted last, to the very weights that are shipped: quantising moves every logit. Steps lead from a signal to p
(`calibration_curve`). What is said of them is cross-fitted: for every answer p comes from steps, and a choice of
signal, that did not see it. What several signals say together is learned by `deferral`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from fieldlm.formats.confidence import Confidence, Form, LearnedDeferral, Threshold
from fieldlm_compiler.verify.calibration_curve import folds, steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Flags = NDArray[np.bool_]

FITTED = ("mean_logprob", "sum_logprob", "min_logprob")
"""The signals that steps may be made of. A margin tells right from wrong as well, but what it says does not hold where
a schema is added: those are of what the schema left, and the log probabilities of what the model would have said."""
FEWEST, FEWEST_OF_EACH = 30, 3
FOLDS, REPEATS = 10, 10
PARTS = 10
QUANTILES = 20
DRAWS = 1000
ACCURACIES = (0.95, 0.98)
DIGITS = 3
"""Significant digits of a signal: the last ones are how a machine rounds."""


class TaskAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an answer was right, and how sure the model was, by the names of `SIGNALS`; empty where nothing was."""

    right: bool
    signals: dict[str, float]


def fit(answers: list[TaskAnswer], *, of_each: int = FEWEST_OF_EACH) -> dict[str, Any]:
    """Fit to `answers`, `of_each` right and wrong ones at least. The same ones give the same."""
    told = tellable(answers)
    table, right = _table(told)
    found = Confidence(n=len(told), right=int(right.sum()))
    if len(told) >= FEWEST:
        found = _ranked(found, table, right)
    reason = _unfit(found, of_each)
    found = msgspec.structs.replace(found, reason=reason) if reason else _fitted(found, table, right)
    return cast(dict[str, Any], msgspec.to_builtins(found))


def tellable(answers: Sequence[TaskAnswer]) -> list[TaskAnswer]:
    """Return those `answers` of which enough is known to be fitted to."""
    return [answer for answer in answers if set(FITTED) <= set(answer.signals)]


def describe(found: Confidence) -> list[str]:
    """Say in lines what was found."""
    if not found.steps:
        return [f"confidence: none: {found.reason}"]
    signal = found.signal
    if isinstance(found.learned, LearnedDeferral):
        signal = f"a learned score of {len(found.learned.score.signals)} signals"
    alone = [(accuracy, found.threshold(accuracy)) for accuracy in ACCURACIES]
    helped = [(accuracy, found.threshold(accuracy, teacher=1.0)) for accuracy in ACCURACIES]
    return [
        f"confidence by {signal}: AUROC {found.auroc:.3f} (95 %: {found.auroc_low:.3f} to {found.auroc_high:.3f},"
        f" n = {found.n}), ECE {found.ece:.3f} ({found.ece_by_chance:.3f} by chance alone; {found.estimate})",
        *(f"  {100 * wanted:.0f} % right alone: {_taken(at)}" for wanted, at in alone),
        *(f"  {100 * wanted:.0f} % with a perfect teacher for the rest: {_taken(at)}" for wanted, at in helped),
        *([f"  deferral: {found.deferral}"] if found.deferral else []),
    ]


def _taken(at: Threshold) -> str:
    if not at.share:
        return "no answer is sure enough"
    return (
        f"{100 * at.share:.0f} % of answers, p ≥ {at.p:.3f} (right at least {100 * at.low:.0f} % by Wilson; "
        f"wrong and taken at most {100 * at.wrong:.1f} % of all by conformal risk control)"
    )


def _unfit(found: Confidence, of_each: int) -> str:
    """Return why nothing can be fitted; empty where it can."""
    wrong = found.n - found.right
    if found.n < FEWEST:
        return f"{found.n} answered examples, {FEWEST} are the fewest"
    if min(found.right, wrong) < of_each:
        return f"{found.right} right and {wrong} wrong answers, {of_each} of each are the fewest"
    return ""


def _table(answers: Sequence[TaskAnswer]) -> "tuple[dict[str, Numbers], Flags]":
    import numpy as np

    names = [name for name in FITTED if all(name in answer.signals for answer in answers)]
    table = {name: np.array([answer.signals[name] for answer in answers], np.float64) for name in names}
    return table, np.array([answer.right for answer in answers], np.bool_)


def _ranked(found: Confidence, table: "Mapping[str, Numbers]", right: "Flags") -> Confidence:
    """Add the signal that tells right from wrong best, and where its values lie."""
    import numpy as np

    name = _best_signal(table, right)
    quantiles = np.quantile(table[name], np.linspace(0, 1, QUANTILES + 1))
    return msgspec.structs.replace(found, signal=name, quantiles=tuple(_rounded(float(value)) for value in quantiles))


def _fitted(found: Confidence, table: "Mapping[str, Numbers]", right: "Flags") -> Confidence:
    found = msgspec.structs.replace(found, steps=steps(table[found.signal], right, form_of(found.signal)))
    estimate = f"{FOLDS}-fold, mean of {REPEATS} splits"
    return figures(found, table[found.signal], cross_fitted(table, right), right, estimate=estimate)


def figures(found: Confidence, values: "Numbers", held: "Numbers", right: "Flags", *, estimate: str) -> Confidence:
    """Add what is said of p: `values` rank the answers, and `held` is p of each by steps made without it."""
    import numpy as np

    dice = np.random.default_rng(0)
    draws = [dice.integers(0, right.size, right.size) for _ in range(DRAWS)]
    low, high = np.quantile([auroc(values[draw], right[draw]) for draw in draws], [0.025, 0.975])
    by_chance = float(np.mean([ece(held, dice.random(held.size) < held) for _ in range(DRAWS)]))
    rows = np.floor(held * 1000) / 1000
    return msgspec.structs.replace(
        found,
        auroc=round(auroc(values, right), 4),
        auroc_low=round(float(low), 4),
        auroc_high=round(float(high), 4),
        ece=round(ece(held, right), 4),
        ece_by_chance=round(by_chance, 4),
        estimate=estimate,
        held=tuple((round(float(p), 3), int((rows == p).sum()), int(right[rows == p].sum())) for p in np.unique(rows)),
    )


def cross_fitted(table: "Mapping[str, Numbers]", right: "Flags") -> "Numbers":
    """Return p of each answer, by steps and a choice of signal made without it."""
    import numpy as np

    total = np.zeros(right.size)
    for repeat in range(REPEATS):
        split = folds(right, repeat, FOLDS)
        for fold in range(FOLDS):
            out = split == fold
            name = _best_signal({name: values[~out] for name, values in table.items()}, right[~out])
            x, p = zip(*steps(table[name][~out], right[~out], form_of(name)), strict=True)
            total[out] += np.interp(table[name][out], x, p)
    return total / REPEATS


def form_of(signal: str) -> Form:
    """Return the form in which a signal rises evenly with the log odds of being right."""
    if signal.endswith("_logprob"):
        return "surprise"
    return "count" if signal.endswith("_tokens") else "plain"


def _best_signal(table: "Mapping[str, Numbers]", right: "Flags") -> str:
    """Return the name with the largest AUROC, the first of equals; the first where all answers are alike."""
    if right.all() or not right.any():
        return next(iter(table))
    return max(table, key=lambda name: auroc(table[name], right))


def auroc(values: "Numbers", right: "Flags") -> float:
    """Return how likely a right answer has the larger value of it and a wrong one; a half where all are alike."""
    from scipy.stats import rankdata

    hits = int(right.sum())
    misses = right.size - hits
    if not hits or not misses:
        return 0.5
    return float((rankdata(values)[right].sum() - hits * (hits + 1) / 2) / (hits * misses))


def ece(p: "Numbers", right: "Flags") -> float:
    """Return the expected calibration error over parts of equal size, by p."""
    import numpy as np

    order = np.argsort(p, kind="stable")
    parts = np.array_split(order, min(PARTS, p.size))
    return float(sum(abs(p[part].sum() - right[part].sum()) for part in parts) / p.size)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def signals_of(found: Mapping[str, float | None]) -> dict[str, float]:
    """Return what was found of an answer's signals, rounded to what another machine finds, too."""
    return {name: _rounded(value) for name, value in found.items() if value is not None}
