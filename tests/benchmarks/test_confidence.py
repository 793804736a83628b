"""What a signal is worth, on answers that can be counted by hand."""

import numpy as np
import pytest

from benchmarks.confidence import escalated, measure, own_figures, taken
from fieldlm.formats.confidence import Confidence
from fieldlm_compiler.verify.confidence import cross_fitted

VALUES = np.arange(10.0)
RIGHT = np.array([False, False, True, False, True, True, True, True, True, True])


def test_the_surest_answers_are_taken_while_enough_of_them_are_right() -> None:
    assert taken(VALUES, RIGHT, 1.0) == 0.6
    assert taken(VALUES, RIGHT, 0.85) == 0.8
    assert taken(VALUES, RIGHT, 0.7) == 1.0
    assert taken(VALUES, ~RIGHT, 1.0) == 0.0


def test_the_least_sure_answers_go_to_the_teacher_until_enough_of_all_are_right() -> None:
    assert escalated(VALUES, RIGHT, 0.7) == 0.0
    assert escalated(VALUES, RIGHT, 0.9) == 0.2
    assert escalated(VALUES, RIGHT, 1.0) == 0.4
    assert escalated(VALUES, ~RIGHT, 1.0) == 1.0


def test_what_is_measured_of_a_signal_stands_in_one_row() -> None:
    values, right = np.tile(VALUES, 8), np.tile(RIGHT, 8)
    row = measure("it", values, right, cross_fitted({"it": values}, right))
    assert row["auroc"] == pytest.approx(20 / 21)
    assert row["low"] < row["auroc"] <= row["high"]
    assert 0.1 < row["ece"] < 0.15, "two levels of ten are pooled and half wrong, the rest is drawn a little to a half"
    assert (row["taken"], row["escalated"]) == ([0.625, 0.6], [0.35, 0.3875])


def test_the_bundles_own_thresholds_are_held_against_these_answers() -> None:
    found = Confidence(signal="it", n=10, right=7, held=((0.2, 4, 1), (0.9, 6, 6)))
    p = np.where(VALUES < 4, 0.2, 0.95)
    first, *lines = own_figures("its p", found, p, RIGHT)
    alone, helped = lines[2:4]
    assert first.startswith("its p: AUROC ")
    assert "ECE 0.170" in first
    assert alone.endswith("p ≥ 0.900: 60.0 % taken (foreseen 60.0), 100.0 % of them right")
    assert helped.endswith("40.0 % escalated (foreseen 40.0), 100.0 % of all right")
