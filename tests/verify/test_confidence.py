"""Confidence that is fitted to answers: rising, never certain, said as it was found, the same every time."""

import random

import msgspec
import numpy as np
import pytest

from fieldlm.core.files import canonical_json
from fieldlm.formats.confidence import Confidence, Form, formed, read_confidence
from fieldlm_compiler.verify.calibration_curve import CURVE_POINTS, isotonic_steps, logistic_steps, steps
from fieldlm_compiler.verify.confidence import (
    FITTED,
    TaskAnswer,
    auroc,
    describe,
    ece,
    fit,
    signals_of,
)


def answers(count: int, *, seed: int = 0, noise: float = 1.0) -> list[TaskAnswer]:
    """Answers that are right as often as their mean log probability says; of the other signals the less `noise` has."""
    dice = random.Random(seed)
    made: list[TaskAnswer] = []
    for _ in range(count):
        value = -dice.expovariate(2.0)
        told = {"mean_logprob": value, "sum_logprob": 20 * value + dice.gauss(0, 20 * noise)}
        told |= {"min_logprob": value + dice.gauss(0, noise), "min_margin": dice.random()}
        made.append(TaskAnswer(right=dice.random() < 2.0**value, signals=signals_of(told)))
    return made


def fitted(given: list[TaskAnswer]) -> Confidence:
    return read_confidence(canonical_json(fit(given)), what="it")


def test_p_is_near_how_often_answers_like_it_are_right() -> None:
    found = fitted(answers(2000))
    assert found.signal == "mean_logprob"
    for value in (-0.1, -0.5, -1.0):
        assert found.p(value) == pytest.approx(2.0**value, abs=0.1)
    assert found.ece is not None
    assert found.ece < 0.04
    assert found.auroc_low is not None
    assert found.auroc_high is not None
    assert 0.5 < found.auroc_low < (found.auroc or 0) < found.auroc_high
    assert sum(row[1] for row in found.held) == found.n == 2000
    assert sum(row[2] for row in found.held) == found.right


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [40, 300])
def test_steps_rise_and_are_never_certain(count: int, seed: int) -> None:
    found = fitted(answers(count, seed=seed))
    chances = [p for _, p in found.steps]
    assert chances == sorted(chances)
    assert 1 / (count + 2) <= chances[0] <= chances[-1] <= (count + 1) / (count + 2)
    assert all(0 < p < 1 for p, _, _ in found.held)


def test_three_right_answers_are_no_certainty() -> None:
    values = np.arange(10.0)
    low, high = pytest.approx(1 / 9, abs=1e-3), 0.8
    assert isotonic_steps(values, values >= 7) == ((0.0, low), (6.0, low), (7.0, high), (9.0, high))


def test_the_shape_is_what_foretells_answers_that_were_left_out() -> None:
    dice = np.random.default_rng(0)
    scores = dice.normal(size=400).round(3)
    on_curve = dice.random(400) < 1 / (1 + np.exp(-2 * scores))
    assert len(steps(scores, on_curve, "plain")) == CURVE_POINTS
    on_two_floors = dice.random(400) < np.where(scores > 1, 0.98, 0.6)
    assert steps(scores, on_two_floors, "plain") == isotonic_steps(scores, on_two_floors)


@pytest.mark.parametrize("form", ["plain", "count", "surprise"])
def test_a_curve_rises_from_the_least_signal_to_the_greatest(form: Form) -> None:
    values = np.arange(1.0, 41.0) * (-1 if form == "surprise" else 1)
    dice = np.random.default_rng(0)
    right = dice.random(40) < np.linspace(0.1, 0.9, 40)[:: -1 if form == "surprise" else 1]
    points = logistic_steps(values, right, form)
    assert len(points) == CURVE_POINTS
    signals, chances = ([*each] for each in zip(*points, strict=True))
    assert signals == sorted(signals)
    assert chances == sorted(chances)
    assert (signals[0], signals[-1]) == (values.min(), values.max())
    assert chances[0] < 0.3
    assert chances[-1] > 0.6
    # Log odds are a line of the signal in its form, but at the ends, where no chance is surer than all answers make it.
    inner = [(each, p) for each, p in points if 0.1 < p < 0.9]
    x, p = np.array([formed(form, each) for each, _ in inner]), np.array([each for _, each in inner])
    odds = np.log(p / (1 - p))
    slope = (odds[-1] - odds[0]) / (x[-1] - x[0])
    np.testing.assert_allclose(odds, odds[0] + slope * (x - x[0]), atol=0.01)
    # Turned round, nothing is likelier for a greater signal.
    assert len({p for _, p in logistic_steps(values, ~right, form)}) == 1


def test_signals_that_are_all_alike_have_one_chance() -> None:
    same, right = np.zeros(40), np.arange(40) < 30
    assert steps(same, right, "plain") == ((0.0, round(31 / 42, 4)),)
    assert len(logistic_steps(same, right, "plain")) == 1


def test_of_signals_that_say_nothing_nothing_is_said_to_be_good() -> None:
    """What was fitted to the very answers would look well here; cross-fitted it is what it is."""
    dice = random.Random(5)
    noise = [
        TaskAnswer(right=dice.random() < 0.7, signals={name: round(dice.random(), 3) for name in FITTED})
        for _ in range(200)
    ]
    found = fitted(noise)
    assert found.threshold(0.95).share < 0.2
    assert found.auroc == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "0 answered examples, 30 are the fewest"),
        (answers(29), "29 answered examples, 30 are the fewest"),
        ([TaskAnswer(right=False, signals={})] * 40, "0 answered examples, 30 are the fewest"),
        (
            [msgspec.structs.replace(each, right=True) for each in answers(50)],
            "50 right and 0 wrong answers, 3 of each",
        ),
        (
            [msgspec.structs.replace(each, right=False) for each in answers(50)],
            "0 right and 50 wrong answers, 3 of each",
        ),
    ],
)
def test_too_few_answers_give_a_reason_and_no_number(given: list[TaskAnswer], reason: str) -> None:
    found = fitted(given)
    assert reason in found.reason
    assert found.p(-0.1) is None
    assert describe(found) == [f"confidence: none: {found.reason}"]
    assert (found.quantile(0.1) is not None) == (len(given) == 50)


def test_what_is_found_is_said_with_its_doubt() -> None:
    first, *rest = describe(fitted(answers(300)))
    assert "AUROC 0." in first
    assert "n = 300" in first
    assert "10-fold" in first
    assert [line.split(" %")[0].strip() for line in rest] == ["95", "98", "95", "98"]


def test_auroc_and_ece_are_what_their_definitions_say() -> None:
    values, right = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])
    pairs = [(a > b) + (a == b) / 2 for a in values[right] for b in values[~right]]
    assert auroc(values, right) == sum(pairs) / 4
    assert auroc(values, np.ones(4, np.bool_)) == 0.5
    p = np.repeat(np.linspace(0.05, 0.95, 10), 10)
    hits = np.concatenate([np.arange(10) < 10 * each for each in np.linspace(0.15, 0.95, 10)])
    by_hand = np.mean([abs(p[at : at + 10].mean() - hits[at : at + 10].mean()) for at in range(0, 100, 10)])
    assert ece(p, hits) == pytest.approx(by_hand)
