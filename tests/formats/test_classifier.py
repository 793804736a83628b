"""The classifier's file, and when it says something: the same on a device as where it was fitted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fieldlm.core.errors import BundleError
from fieldlm.core.files import canonical_json
from fieldlm.formats.classifier import (
    Classifier,
    ClosedCall,
    context_key,
    only_question,
    read_classifier,
)
from fieldlm.formats.router import Router
from tests.support.closed_bundles import BILL, DRINK, OTHER, PAY, TEA, TOOL, word_classifier


def test_a_request_has_the_answer_whose_words_it_has_and_another_one_has_none() -> None:
    made = word_classifier()
    drink, bill = made.classify(DRINK), made.classify(BILL)
    assert drink is not None
    assert (drink.answer.text, drink.answer.task) == (TEA, "t1")
    assert drink.p == pytest.approx(0.97, abs=0.03)
    assert bill is not None
    assert bill.answer.calls == (ClosedCall(**PAY),)
    assert made.guess(OTHER)[0] is None
    assert made.classify(OTHER) is None
    assert made.tasks == {"t1", "t2"}


def test_it_says_nothing_where_it_is_not_sure_enough() -> None:
    assert word_classifier(least=0.98).classify(DRINK) is None


@pytest.mark.parametrize("text", ["", "   ", "?!", "\ud800", "x" * 100_000])
def test_no_text_is_too_odd_for_it(text: str) -> None:
    assert word_classifier().classify(text) is None


def test_only_a_question_that_nothing_was_said_before_is_one() -> None:
    user = {"role": "user", "content": "tea"}
    assert only_question([user]) == only_question([{"role": "system", "content": "Serve."}, user]) == "tea"
    for others in (
        [],
        [user, user],
        [user, {"role": "assistant", "content": "yes"}],
        [{"role": "tool", "content": "x"}],
    ):
        assert only_question(others) == ""
    assert only_question([{"role": "user", "content": [{"type": "text", "text": "tea"}]}]) == ""


def test_what_stands_around_a_request_is_its_system_prompt_and_the_names_of_its_tools() -> None:
    user, system = {"role": "user", "content": "tea"}, {"role": "system", "content": "Serve."}
    assert context_key([user], ()) == context_key([{"role": "user", "content": "bill"}], ())
    other = {"type": "function", "function": {"name": "go"}}
    assert context_key([user], (TOOL, other)) == context_key([user], (other, TOOL))
    keys = [context_key([user], ()), context_key([system, user], ()), context_key([user], (TOOL,))]
    assert len({*keys, context_key([user], (other,))}) == 4


def test_a_file_is_read_as_it_was_written_and_has_the_same_bytes_again(tmp_path: Path) -> None:
    path, made = tmp_path / "classifier.npz", word_classifier()
    path.write_bytes(made.packed())
    found = read_classifier(path)
    assert found.facts == made.facts
    assert found.packed() == made.packed()
    assert found.guess(DRINK) == made.guess(DRINK)


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    path, made = tmp_path / "classifier.npz", word_classifier()
    for content in (b"", b"no zip", made.packed()[:-40], made.head.packed()):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="no classifier"):
            read_classifier(path)
    facts = msgspec.structs.replace(made.facts, answers=made.facts.answers[:1])
    path.write_bytes(Classifier(facts=facts, head=made.head).packed())
    with pytest.raises(BundleError, match="shapes"):
        read_classifier(path)
    with pytest.raises(BundleError, match="no classifier"):
        read_classifier(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    "damaged",
    [
        {"task": "t1", "calls": [{"function": "go"}]},
        {"task": "t1", "calls": [{"name": "go"}]},
        {"task": "t1", "calls": [{"name": "", "arguments": {}}]},
        {"task": "t1", "calls": [{"name": "go", "arguments": "home"}]},
        {"task": "t1"},
    ],
)
def test_an_answer_that_nobody_can_be_given_is_refused_when_it_is_loaded(
    tmp_path: Path, damaged: dict[str, Any]
) -> None:
    path, made = tmp_path / "classifier.npz", word_classifier()
    facts = json.loads(canonical_json(made.facts))
    facts["answers"][0] = damaged
    head, told = made.head, np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez(path, weights=head.weights, scales=head.scales, biases=head.biases, facts=told)
    with pytest.raises(BundleError, match="no classifier"):
        read_classifier(path)


def test_numbers_that_are_none_are_refused_when_it_is_loaded(tmp_path: Path) -> None:
    path, made = tmp_path / "classifier.npz", word_classifier()
    for biases in (made.head.biases * np.nan, made.head.biases.astype(str)):
        path.write_bytes(Classifier(facts=made.facts, head=replace(made.head, biases=biases)).packed())
        with pytest.raises(BundleError, match="no numbers"):
            read_classifier(path)


def test_one_of_a_later_format_is_refused_by_its_name(tmp_path: Path) -> None:
    path, made = tmp_path / "classifier.npz", word_classifier()
    for facts, what in (
        (msgspec.structs.replace(made.facts, format="fieldlm.classifier/2"), "classifier/2"),
        (msgspec.structs.replace(made.facts, must_understand=("moods",)), "moods"),
    ):
        path.write_bytes(Classifier(facts=facts, head=made.head).packed())
        with pytest.raises(BundleError, match=what):
            read_classifier(path)


def test_its_head_is_a_router_that_no_threshold_holds_back() -> None:
    head: Router = word_classifier().head
    assert head.tasks == ("0", "1", "")
    assert head.least == 0
