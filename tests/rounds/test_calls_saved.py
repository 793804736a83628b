"""What a bundle saves of the large model's calls, over every threshold of its calibration."""

import msgspec
import pytest

from fieldlm_compiler.rounds import calls_saved
from fieldlm_compiler.rounds.report import page
from tests.support.sample_rounds import sample_round

DOCUMENT = sample_round(str)
"""Of 200 watched answers 90 were surest and right, 60 less so (56 right), 30 unsure (18) and 20 wrong mostly (3)."""


def test_as_many_stay_as_are_right_together_without_a_loss() -> None:
    found = {row[0]: row[1:] for row in calls_saved.rows(DOCUMENT)}
    # 146 of the 150 surest are right: 97.3 %, which is no loss beside 95, and one beside 98 of 100.
    assert found["95%"] == ("75%", "0.900", "96.8%")
    assert found["98%"] == ("45%", "0.980", "98.9%")
    # With 30 more there are 164 right of 180, which is 91 %.
    assert found["90%"] == ("90%", "0.600", "91.0%")
    assert found["100%"] == ("45%", "0.980", "100.0%")


def test_a_terminal_has_it_in_one_line() -> None:
    (line,) = calls_saved.text(DOCUMENT)
    rights, kept = "90% / 95% / 98% / 100%", "90% / 75% / 45% / 45%"
    told = f"  calls: beside a large model that is right in {rights}, {kept} of them are saved and nothing is lost"
    assert line == told


def test_the_curve_goes_from_none_saved_to_all() -> None:
    drawn = calls_saved.curve(DOCUMENT)
    assert drawn is not None
    (line,) = drawn.root.iter("polyline")
    assert len((line.get("points") or "").split()) == 1 + len(DOCUMENT.sure)
    assert "75% without a loss" in [text.text for text in drawn.root.iter("text")]


def test_how_a_learned_deferral_compared_stands_beside_it() -> None:
    said = "learned of 8 signals: AUROC 0.910 against 0.904 by mean_logprob alone, +0.006: not taken"
    document = msgspec.structs.replace(DOCUMENT, deferral=[said])
    assert calls_saved.text(document) == [*calls_saved.text(DOCUMENT), f"  deferral: {said}"]
    assert said in page(document)
    assert said not in page(DOCUMENT)
    assert calls_saved.text(msgspec.structs.replace(document, sure=[])) == [f"  deferral: {said}"]


@pytest.mark.parametrize("sure", [[], [(0.3, 10, 1)]])
def test_what_was_not_calibrated_or_is_never_sure_saves_nothing(sure: list[tuple[float, int, int]]) -> None:
    document = msgspec.structs.replace(DOCUMENT, sure=sure)
    assert {row[1] for row in calls_saved.rows(document)} <= {"0%"}
    assert len(calls_saved.text(document)) == bool(sure)
    assert (calls_saved.curve(document) is None) is not bool(sure)
