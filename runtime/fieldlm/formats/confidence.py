"""confidence.json: what a bundle knows of how likely its answers are right, fitted to its own quantised weights.

A signal, such as an answer's least log probability, becomes p(right) along rising steps. They hold for these weights,
this adapter and prompts like those of the task; another bundle has its own. What is said about them (`ece`, `held`,
`auroc`) was found on answers that the steps in question were not fitted to.

With a learned deferral several signals together make a `SignalScore`, which becomes p by steps of its own. A reader
that does not know it refuses the file by that name: every figure in it is of the score.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from fieldlm.core.errors import BundleError, InputError
from fieldlm.formats.growth import Growing, check_understood, is_readable

FORMAT = "fieldlm.confidence/1"
NAME = "confidence.json"
LEARNED = "learned"
"""The field of a learned deferral, which stands in `must_understand` where there is one."""
Z95 = 1.959964
Steps = tuple[tuple[float, float], ...]
Form = Literal["plain", "count", "surprise"]
"""A number as it is; log(1 + n) of a count; how many powers of e a log probability is from 0 (see `formed`)."""
LEAST_SURPRISE = 1e-4
DIGITS = 6
"""Decimal places of a score: what lies behind them is how a machine rounds."""


class ScoredSignal(msgspec.Struct, frozen=True, kw_only=True):
    """The signal `name`: in its form it counts (x - `mean`) / `scale` · `weight`, x held to `low` and `high`.

    With `is_bound` an answer whose signal lies outside of these has no score: it is of another kind than those fitted.
    """

    name: str
    form: Form
    mean: float
    scale: float
    weight: float
    low: float
    high: float
    is_bound: bool = False


class SignalScore(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of its signals and of `bias`: the log odds that an answer is right, before steps make p of it.

    The workshop makes its steps of what `of` returns, so that a device finds the same p.
    """

    signals: tuple[ScoredSignal, ...]
    bias: float

    def of(self, told: Mapping[str, float | None]) -> float | None:
        """Return the score of an answer of which these are the signals by name, or None.

        None is for an answer that it was not fitted to: a signal is not told, or is bound and lies elsewhere.
        """
        total = self.bias
        for each in self.signals:
            value = told.get(each.name)
            if value is None or math.isnan(value):
                return None
            found = formed(each.form, value)
            held = min(max(found, each.low), each.high)
            if each.is_bound and held != found:
                return None
            total += (held - each.mean) / each.scale * each.weight
        return round(total, DIGITS)

    def is_sound(self) -> bool:
        """Whether every number in it is one, and none is divided by nothing."""
        numbers = ((each.mean, each.scale, each.weight, each.low, each.high) for each in self.signals)
        return all(each.scale > 0 and each.low <= each.high for each in self.signals) and all(
            math.isfinite(number) for number in (self.bias, *(number for row in numbers for number in row))
        )


def formed(form: Form, value: float) -> float:
    """Return a signal in its form; each rises with the signal."""
    if form == "surprise":
        return -math.log(LEAST_SURPRISE - min(value, 0.0))
    return math.log1p(max(value, 0.0)) if form == "count" else value


class LearnedDeferral(msgspec.Struct, frozen=True, kw_only=True):
    """A `score` of several signals, the `steps` from it to p(right), and its `quantiles`, as those of `Confidence`."""

    score: SignalScore
    steps: Steps
    quantiles: tuple[float, ...]


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """Which answers to take as they are: those of confidence `p` or more. The rest goes to somebody better.

    `share` of all are taken, `accuracy` of those are right, at least `low` by Wilson's 95 % interval; all as found on
    held-out answers. `wrong` bounds how many of all answers are wrong and taken, in the mean over draws of the
    calibration and one more answer like it (conformal risk control, Angelopoulos et al. 2022, arXiv:2208.02814). It is
    a bound for a threshold named beforehand; one that was chosen on the same answers is a little worse.
    """

    p: float
    share: float
    accuracy: float | None
    low: float
    wrong: float


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """What comes of taking answers of confidence `p` or more: `share` of all stay, and `right` of all are right.

    The others are answered by somebody else, and are right in the share of theirs that is known.
    """

    p: float
    share: float
    right: float


class Confidence(Growing, frozen=True, kw_only=True):
    """How a `signal` becomes p(right), and how far that can be believed.

    `steps` are points (signal, p), rising; between them the line is straight, beyond them flat. `quantiles` of the
    signal lie at equal shares from 0 to 1. `held` are rows (p, answers, right) of the `n` answers, each with the p,
    rounded down to a thousandth, that steps fitted to others gave it. `ece` is the mean distance of p and share right
    over ten parts of equal size (expected calibration error); `ece_by_chance` is what it would come to if every p were
    exactly right. `estimate` says how the held-out p was made. Without steps, `reason` says why there are none.

    Where there is `learned`, all of these figures are its own, and `signal` with `steps` and `quantiles` stands in for
    an answer that its score is not for. `deferral` says in a line how the two compared, where both were fitted.
    """

    format: str = FORMAT
    signal: str = ""
    steps: Steps = ()
    n: int = 0
    right: int = 0
    auroc: float | None = None
    auroc_low: float | None = None
    auroc_high: float | None = None
    ece: float | None = None
    ece_by_chance: float | None = None
    estimate: str = ""
    quantiles: tuple[float, ...] = ()
    held: tuple[tuple[float, int, int], ...] = ()
    reason: str = ""
    learned: LearnedDeferral | msgspec.UnsetType = msgspec.UNSET
    deferral: str | msgspec.UnsetType = msgspec.UNSET

    def p(self, value: float) -> float | None:
        """Return the probability that an answer whose `signal` is `value` is right; None without steps."""
        return _along(self.steps, value)

    def chance(self, told: Mapping[str, float | None]) -> float | None:
        """Return the probability that an answer is right of which its signals, by name, are `told`.

        By the learned score where that is for such an answer, else by `signal` alone; None where that is not told.
        """
        if scored := self._scored(told):
            learned, score = scored
            return _along(learned.steps, score)
        value = told.get(self.signal)
        return None if value is None else self.p(value)

    def is_below(self, told: Mapping[str, float | None], share: float) -> bool | None:
        """Say whether an answer is among the least sure `share` of the task's; None where that is not known."""
        value, quantiles = told.get(self.signal), self.quantiles
        if scored := self._scored(told):
            value, quantiles = scored[1], scored[0].quantiles
        bound = _at_share(quantiles, share)
        return None if value is None or bound is None else value < bound

    def quantile(self, share: float) -> float | None:
        """Return the signal that `share` of the task's answers are below; None where nothing is known of it."""
        return _at_share(self.quantiles, share)

    def threshold(self, accuracy: float, *, teacher: float | None = None) -> Threshold:
        """Return the threshold that takes the most answers while `accuracy` of those taken were right when held out.

        With `teacher`, the share that the one who gets the rest answers rightly, `accuracy` is that of both together.
        Where it cannot be reached `p` is 1, which no answer has. Raises InputError for what is no share.
        """
        _check_shares(accuracy=accuracy, teacher=teacher)
        best, taken, right = self._at(1.0, 0, 0), 0, 0
        for p, answers, correct in sorted(self.held, reverse=True):
            taken, right = taken + answers, right + correct
            helped = 0.0 if teacher is None else teacher * (self.n - taken)
            if right + helped >= accuracy * (taken if teacher is None else self.n) - 1e-9:
                best = self._at(p, taken, right)
        return best

    def curve(self, teacher: float) -> list[CurvePoint]:
        """Return what comes of every threshold, from none that is taken to all, beside a `teacher`.

        That is the share of their answers which are right, whoever gets the rest. Raises InputError for what is no
        share.
        """
        _check_shares(teacher=teacher)
        points, taken, right = [CurvePoint(p=1.0, share=0.0, right=teacher)], 0, 0
        for p, answers, correct in sorted(self.held, reverse=True):
            taken, right = taken + answers, right + correct
            together = (right + teacher * (self.n - taken)) / self.n
            points.append(CurvePoint(p=p, share=taken / self.n, right=together))
        return points

    def _scored(self, told: Mapping[str, float | None]) -> tuple[LearnedDeferral, float] | None:
        """Return what was learned, and the score by it of an answer of these signals; None where there is none."""
        if not isinstance(self.learned, LearnedDeferral) or (score := self.learned.score.of(told)) is None:
            return None
        return self.learned, score

    def _at(self, p: float, taken: int, right: int) -> Threshold:
        return Threshold(
            p=p,
            share=taken / max(self.n, 1),
            accuracy=right / taken if taken else None,
            low=_wilson_low(right, taken),
            wrong=(taken - right + 1) / (self.n + 1) if taken else 0.0,
        )


def read_confidence(data: bytes, *, what: str) -> Confidence:
    """Read a confidence.json; raises BundleError with what is wrong in it. What a minor version added is ignored."""
    try:
        found = msgspec.json.decode(data, type=Confidence)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{what} is no calibration: {error}") from error
    if not is_readable(found.format, FORMAT):
        raise BundleError(f"{what} has format {found.format!r}, this version reads {FORMAT!r}; update fieldlm")
    check_understood(found, what=what, error=BundleError)
    learned = found.learned if isinstance(found.learned, LearnedDeferral) else None
    for part in (found, learned) if learned else (found,):
        if any(one[0] >= other[0] or one[1] > other[1] for one, other in pairwise(part.steps)):
            raise BundleError(f"{what} has steps that do not rise; compile the bundle again")
        if not all(0 <= p <= 1 for p in (*(p for _, p in part.steps), *(row[0] for row in found.held))):
            raise BundleError(f"{what} has a probability outside 0 to 1; compile the bundle again")
        if len(part.quantiles) == 1 or any(one > other for one, other in pairwise(part.quantiles)):
            raise BundleError(f"{what} has quantiles that do not rise; compile the bundle again")
    if learned and not (learned.steps and learned.quantiles and learned.score.is_sound()):
        raise BundleError(f"{what} has a learned score that cannot be computed; compile the bundle again")
    return found


def _along(steps: Steps, value: float) -> float | None:
    """Return p of `value` along `steps`; None without any, or for no number."""
    if not steps or math.isnan(value):
        return None
    place = bisect_left(steps, value, key=lambda step: step[0])
    if place == 0 or place == len(steps):
        return steps[min(place, len(steps) - 1)][1]
    (left, low), (right, high) = steps[place - 1], steps[place]
    return low + (high - low) * (value - left) / (right - left)


def _at_share(quantiles: Sequence[float], share: float) -> float | None:
    """Return what `share` of all are below, by `quantiles` at equal shares; None without any."""
    if not quantiles:
        return None
    place = min(max(share, 0.0), 1.0) * (len(quantiles) - 1)
    below = min(int(place), len(quantiles) - 2)
    left, right = quantiles[below], quantiles[below + 1]
    return left + (right - left) * (place - below)


def _check_shares(**shares: float | None) -> None:
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{name} is {share:g}, want a share from 0 to 1, such as 0.95")


def _wilson_low(right: int, count: int) -> float:
    """Return the lower end of Wilson's 95 % interval of a share; 0 of nothing."""
    if not count:
        return 0.0
    share, square = right / count, Z95 * Z95
    spread = Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, (share + square / (2 * count) - spread) / (1 + square / count))
