"""A bundle's classifier in a program: what it answers in the model's place, and what stays with the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fieldlm.core.errors import BundleError
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.classifier import NAME
from fieldlm.inference.classifiers.closed_answers import classify, text_of
from fieldlm.inference.generations import Generations
from fieldlm.inference.model import Model
from fieldlm.updates.gates import is_same_model
from tests.support.closed_bundles import BILL, DRINK, OTHER, TEA, TOOL, with_classifier, with_files, word_classifier
from tests.support.material import tiny_bundle
from tests.support.task_bundles import word_router

FEW = Sampling(max_tokens=16)
DRINKS: dict[str, Any] = {
    "type": "object", "properties": {"drink": {"type": "string"}}, "required": ["drink"], "additionalProperties": False
}  # fmt: skip


def asked(text: str, *before: dict[str, Any]) -> list[dict[str, Any]]:
    return [*before, {"role": "user", "content": text}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_classifier(tiny_bundle(tmp_path_factory.mktemp("closed") / "bundle"), word_classifier())


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[Model]:
    with Model.open(bundle, context=512, threads=1, parallel=1) as opened:
        yield opened


def test_a_question_for_itself_is_answered_where_the_classifier_is_sure(bundle: Bundle) -> None:
    found = classify(bundle, asked(DRINK))
    assert found is not None
    assert text_of(found.answer) == TEA
    assert classify(bundle, asked(OTHER)) is None
    assert classify(bundle, []) is None


def test_what_was_said_before_or_stands_around_it_otherwise_leaves_it_to_the_model(bundle: Bundle) -> None:
    turns = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"})
    assert classify(bundle, asked(DRINK, *turns)) is None
    assert classify(bundle, asked(DRINK, {"role": "system", "content": "Answer in Latin."})) is None
    assert classify(bundle, asked(BILL), [TOOL]) is not None
    other = {"type": "function", "function": {"name": "sing", "parameters": {}}}
    assert classify(bundle, asked(BILL), [TOOL, other]) is None


def test_the_bundles_own_system_prompt_stands_before_a_question(tmp_path: Path) -> None:
    plain = tiny_bundle(tmp_path / "bundle", system_prompt="Serve.")
    behind = with_classifier(plain, word_classifier(system_prompt="Serve."))
    assert classify(behind, asked(DRINK)) is not None
    assert classify(behind, asked(DRINK, {"role": "system", "content": "Sing."})) is None


def test_what_the_router_knows_no_task_for_is_not_classified(tmp_path: Path) -> None:
    knows_bills = word_router({"t2": "bill", "t3": "weather"}, least=0.9)
    made = with_classifier(tiny_bundle(tmp_path / "bundle"), word_classifier(), knows_bills)
    assert classify(made, asked(BILL)) is not None
    assert classify(made, asked(DRINK)) is None


def test_what_the_router_takes_for_another_task_is_not_classified(tmp_path: Path) -> None:
    takes_tea_for_weather = word_router({"t2": "bill", "t3": DRINK}, least=0.5)
    made = with_classifier(tiny_bundle(tmp_path / "bundle"), word_classifier(), takes_tea_for_weather)
    assert classify(made, asked(BILL)) is not None
    assert classify(made, asked(DRINK)) is None


def test_who_calls_a_request_by_another_task_has_the_model(tmp_path: Path, bundle: Bundle) -> None:
    for task, is_own in (("", True), ("t1", True), ("t2", False), ("booking", False)):
        assert (classify(bundle, asked(DRINK), task=task) is not None) is is_own, task
    router = word_router({"t1": DRINK, "t2": "bill"}, least=0.5)
    made = with_classifier(tiny_bundle(tmp_path / "bundle"), word_classifier(), router)
    for task, is_own in ((router.name("t1"), True), (router.name("t2"), False), ("booking", False)):
        assert (classify(made, asked(DRINK), task=task) is not None) is is_own, task


def test_a_program_gets_its_answer_with_its_confidence_and_is_told(model: Model) -> None:
    answer = model.chat(DRINK, FEW)
    assert (answer.text, answer.outcome, answer.is_classified) == (TEA, "stop", True)
    assert answer.confidence == pytest.approx(0.97, abs=0.03)
    assert answer.timings.prompt_tokens == answer.timings.cached_tokens > 0
    assert answer.timings.completion_tokens == len(model.engine.tokenize(TEA))
    assert "".join(chunk.text for chunk in model.stream(DRINK, FEW)) == TEA
    other = model.chat(OTHER, FEW)
    assert (other.is_classified, other.confidence) == (False, None)


def test_a_form_is_kept_to_by_either(model: Model) -> None:
    assert model.call(DRINKS, DRINK, FEW) == {"drink": "tea"}
    assert model.call({"enum": ["yes", "no"]}, DRINK, FEW) in ("yes", "no")


def test_who_asks_for_more_than_the_answer_has_the_model(model: Model) -> None:
    for sampling in (
        Sampling(max_tokens=2),
        Sampling(max_tokens=16, stop=("drink",)),
        Sampling(max_tokens=16, logprobs=1),
        Sampling(max_tokens=16, logit_bias=((0, -1.0),)),
    ):
        assert not model.chat(DRINK, sampling).is_classified
    # Calls are for who has named tools.
    assert not model.chat(BILL, FEW).is_classified


def test_a_damaged_one_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    made = with_files(tiny_bundle(tmp_path / "bundle"), {NAME: ("classifier", b"damaged")})
    with pytest.raises(BundleError, match="no classifier"):
        Model.open(made, context=512, threads=1, parallel=1)


def test_one_that_a_server_loads_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    made = with_files(tiny_bundle(tmp_path / "bundle"), {NAME: ("classifier", b"damaged")})
    with pytest.raises(BundleError, match="no classifier"):
        Generations(made, EngineOptions(context=512, threads=1, parallel=1))


@pytest.mark.parametrize("asleep", [False, True])
def test_a_damaged_router_is_found_when_a_bundle_is_opened_though_nothing_else_needs_it(
    tmp_path: Path, asleep: bool
) -> None:
    made = with_files(tiny_bundle(tmp_path / "bundle"), {"router.npz": ("router", b"damaged")})
    with pytest.raises(BundleError, match=r"router.npz is no router"):
        Generations(made, EngineOptions(context=512, threads=1, parallel=1), asleep=asleep)
    with pytest.raises(BundleError, match=r"router.npz is no router"):
        Model.open(made, context=512, threads=1, parallel=1)


def test_it_is_read_once_however_many_models_are_asked_in_turn(tmp_path: Path) -> None:
    router = word_router({"t1": DRINK, "t2": "bill"}, least=0.5)
    served = [
        with_classifier(tiny_bundle(tmp_path / str(number)), word_classifier(least=0.8 + number / 100), router)
        for number in range(6)
    ]
    for bundle in served:
        assert classify(bundle, asked(DRINK)) is not None
        for role in ("classifier", "router"):
            bundle.need(role).write_bytes(b"damaged")
    for bundle in served:
        assert classify(bundle, asked(DRINK)) is not None


def test_a_bundle_with_another_classifier_is_another_model_to_an_update(bundle: Bundle, tmp_path: Path) -> None:
    plain = tiny_bundle(tmp_path / "bundle")
    assert plain.classifier is None
    assert not is_same_model(bundle.manifest, plain.manifest)
