"""A bundle's calibration: steps that rise, thresholds for a wanted accuracy, and files of other versions."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldlm.core.errors import BundleError, InputError
from fieldlm.core.files import canonical_json
from fieldlm.formats.confidence import Confidence, read_confidence

MADE = Confidence(
    signal="min_logprob",
    steps=((-2.0, 0.1), (-1.0, 0.4), (-0.5, 0.4), (-0.1, 0.96)),
    n=100,
    right=80,
    auroc=0.9,
    auroc_low=0.85,
    auroc_high=0.95,
    ece=0.03,
    ece_by_chance=0.02,
    estimate="10-fold",
    quantiles=(-2.0, -0.6, -0.2, -0.1, -0.01),
    held=((0.1, 10, 1), (0.4, 20, 10), (0.9, 40, 39), (0.96, 30, 30)),
)


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(canonical_json(MADE)) | fields).encode()


def test_what_was_written_is_read() -> None:
    assert read_confidence(canonical_json(MADE), what="it") == MADE


def test_the_whole_curve_beside_a_teacher_goes_from_none_taken_to_all() -> None:
    points = MADE.curve(0.9)
    assert [(point.p, point.share) for point in points] == [(1.0, 0.0), (0.96, 0.3), (0.9, 0.7), (0.4, 0.9), (0.1, 1.0)]
    assert [point.right for point in points] == pytest.approx([0.9, 0.93, 0.96, 0.88, 0.8])
    with pytest.raises(InputError, match="teacher is 2"):
        MADE.curve(2.0)


def test_what_a_newer_minor_version_added_is_passed_by() -> None:
    newer = changed(format="fieldlm.confidence/1.3", by_task={"order": 0.4})
    assert read_confidence(newer, what="it") == msgspec.structs.replace(MADE, format="fieldlm.confidence/1.3")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": "fieldlm.confidence/2"}, "this version reads 'fieldlm.confidence/1'; update"),
        ({"must_understand": ["by_task"]}, "needs by_task, which this version does not know"),
        ({"steps": [[-1, 0.5], [-2, 0.6]]}, "steps that do not rise"),
        ({"steps": [[-2, 0.5], [-1, 0.4]]}, "steps that do not rise"),
        ({"steps": [[-2, 0.5], [-1, 1.4]]}, "a probability outside 0 to 1"),
        ({"held": [[-0.1, 3, 1]]}, "a probability outside 0 to 1"),
        ({"quantiles": [1, 0]}, "quantiles that do not rise"),
        ({"n": "many"}, "is no calibration"),
    ],
)
def test_what_would_be_misread_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        read_confidence(changed(**fields), what="it")


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_p_rises_with_the_signal_and_stays_within_its_steps(one: float, other: float) -> None:
    low, high = MADE.p(min(one, other)), MADE.p(max(one, other))
    assert low is not None
    assert high is not None
    assert 0.1 <= low <= high <= 0.96


def test_p_is_that_of_the_steps_and_straight_between_them() -> None:
    assert [MADE.p(x) for x in (-9, -2, -1.5, -0.75, -0.3, 0)] == pytest.approx([0.1, 0.1, 0.25, 0.4, 0.68, 0.96])
    assert MADE.p(math.nan) is None
    assert Confidence(reason="3 examples").p(-1.0) is None


def test_quantiles_are_straight_between_what_was_written() -> None:
    assert [MADE.quantile(share) for share in (0, 0.1, 0.25, 0.5, 1, 7)] == pytest.approx(
        [-2.0, -1.44, -0.6, -0.2, -0.01, -0.01]
    )
    assert Confidence().quantile(0.1) is None


def test_a_threshold_takes_as_many_answers_as_are_right_often_enough() -> None:
    alone = MADE.threshold(0.95)
    assert (alone.p, alone.share, alone.accuracy) == (0.9, 0.7, pytest.approx(69 / 70))
    assert 0.92 < alone.low < 69 / 70
    assert alone.wrong == pytest.approx(2 / 101)
    assert MADE.threshold(0.99).p == 0.96
    assert MADE.threshold(0.0).share == 1.0


def test_with_a_teacher_the_accuracy_is_that_of_both_together() -> None:
    assert MADE.threshold(0.98, teacher=1.0).p == 0.9
    assert MADE.threshold(0.88, teacher=1.0).p == 0.4
    assert MADE.threshold(0.8, teacher=0.0).share == 1.0
    assert MADE.threshold(0.95, teacher=0.9).p == 0.9


def test_an_accuracy_out_of_reach_takes_no_answer() -> None:
    never = Confidence(n=10, held=((0.3, 10, 3),)).threshold(0.9)
    assert (never.p, never.share, never.accuracy, never.wrong) == (1.0, 0.0, None, 0.0)
    assert Confidence().threshold(0.5).p == 1.0


def test_what_is_no_share_is_refused() -> None:
    with pytest.raises(InputError, match=r"accuracy is 95, want a share from 0 to 1, such as 0\.95"):
        MADE.threshold(95)
