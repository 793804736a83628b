"""A classifier beside a small model and a large one: it comes first, and what it is not sure of goes up."""

import time
from pathlib import Path

import pytest

from fieldlm.engines import Timings
from fieldlm.escalation.cascade import Verdict
from fieldlm.escalation.large_model import REMEMBERED
from fieldlm.escalation.policy import EscalationRequest
from fieldlm.formats.bundle import Bundle
from tests.support.closed_bundles import DRINK, OTHER, TEA, with_classifier, word_classifier
from tests.support.material import tiny_bundle
from tests.support.pairs import Start, saying


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return with_classifier(tiny_bundle(tmp_path / "closed"), word_classifier())


def test_it_answers_before_both_and_the_ledger_says_so(start: Start, bundle: Bundle) -> None:
    pair = start(bundle=bundle, prompt_price="2", completion_price="3")
    answer = pair.ask(DRINK, max_tokens=24).json()
    assert (answer["choices"][0]["message"]["content"], answer["fieldlm"]["answered_by"]) == (TEA, "classifier")
    assert not pair.large.asked
    (row,) = pair.escalation.ledger.rows(days=1)
    assert (row["model"], row["why"], row["calls"], row["cost"]) == ("classifier", "", 1, 0)
    assert row["saved"] > 0
    # How long the model takes is foreseen by answers of its own.
    assert pair.escalation.small_s() == 0


def test_an_answer_that_is_below_the_devices_threshold_goes_up(start: Start, bundle: Bundle) -> None:
    pair = start(bundle=bundle, below="99", says={"say": saying("a tea")})
    answer = pair.ask(DRINK, max_tokens=24).json()
    assert (answer["fieldlm"]["answered_by"], answer["fieldlm"]["escalation"]) == ("large", "unsure")
    rows = {row["model"]: row["why"] for row in pair.escalation.ledger.rows(days=1)}
    assert rows == {"classifier": "replaced", pair.escalation.model.label: "unsure"}
    assert pair.server.exchanges[-1].answered_by == ""


def test_without_the_large_one_it_stands_in(start: Start, bundle: Bundle) -> None:
    pair = start(bundle=bundle, when="always", says={"say": saying(503)})
    answer = pair.ask(DRINK, max_tokens=24).json()
    assert answer["fieldlm"]["answered_by"] == "classifier"
    assert answer["fieldlm"]["not_large"]


def test_what_it_knows_no_answer_to_is_the_models(start: Start, bundle: Bundle) -> None:
    pair = start(bundle=bundle)
    assert pair.ask(OTHER).json()["fieldlm"]["answered_by"] == "small"


def test_nobody_is_asked_beside_it_however_near_a_deadline_is(start: Start, bundle: Bundle) -> None:
    pair = start(bundle=bundle, hedge="yes")
    slow = Verdict(by="small", small=Timings(queue_s=120.0))
    for _ in range(REMEMBERED):
        pair.escalation.count([slow], model="small", wanted=EscalationRequest(), is_failed=False)
    assert pair.escalation.hedge(EscalationRequest(due_s=time.monotonic() + 60)) == "hedged"
    answer = pair.ask(DRINK, max_tokens=24, deadline_ms=60_000).json()
    assert answer["fieldlm"]["answered_by"] == "classifier"
    assert not pair.large.asked
