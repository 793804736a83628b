"""Requests that a classifier answers: what clients are told, what is recorded, and what the model has to answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.api_server import ApiServer, api_server
from tests.support.closed_bundles import BILL, DRINK, OTHER, PAY, TEA, TOOL, with_classifier, word_classifier
from tests.support.material import tiny_bundle

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    bundle = with_classifier(tiny_bundle(tmp_path_factory.mktemp("closed") / "bundle"), word_classifier())
    with api_server(bundle) as made:
        yield made


def ask(server: ApiServer, text: str, **asked: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, **asked}
    answer = httpx.post(server.url + CHAT, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def is_classified(answer: dict[str, Any]) -> bool:
    return answer["fieldlm"].get("answered_by") == "classifier"


def test_an_answer_of_the_classifier_says_so_and_how_likely_it_is_right(server: ApiServer) -> None:
    answer = ask(server, DRINK)
    own, exchange = answer["fieldlm"], server.exchanges[-1]
    assert answer["choices"][0]["message"]["content"] == TEA
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert own["answered_by"] == "classifier"
    assert own["confidence"] == pytest.approx(0.97, abs=0.03)
    assert answer["usage"]["completion_tokens"] == len(server.engine.tokenize(TEA))
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == answer["usage"]["prompt_tokens"] > 0
    assert (exchange.answered_by, exchange.is_unsure, exchange.answer) == ("classifier", False, TEA)


def test_an_answer_of_the_model_says_nothing_of_that(server: ApiServer) -> None:
    assert "answered_by" not in ask(server, OTHER, max_tokens=2)["fieldlm"]
    assert server.exchanges[-1].answered_by == ""


def test_a_stream_has_the_whole_answer_and_says_who_gave_it(server: ApiServer) -> None:
    body = {"messages": [{"role": "user", "content": DRINK}], "stream": True}
    lines = httpx.post(server.url + CHAT, json=body, timeout=60).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in events if each["choices"]) == TEA
    assert [each["fieldlm"]["answered_by"] for each in events if "fieldlm" in each] == ["classifier"]


def test_a_call_comes_as_one_where_its_tool_is_at_hand(server: ApiServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    for choice in ("auto", "required"):
        answer = client.chat.completions.create(
            model="smollm2-135m-instruct",
            messages=[{"role": "user", "content": BILL}],
            tools=[TOOL],  # pyright: ignore[reportArgumentType]
            tool_choice=choice,
            max_tokens=48,
        )
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == (PAY["name"], PAY["arguments"])
        assert answer.choices[0].finish_reason == "tool_calls"
        assert server.exchanges[-1].answered_by == "classifier"
    assert not is_classified(ask(server, BILL))
    assert not is_classified(ask(server, BILL, tools=[TOOL], tool_choice="none"))


def test_a_form_that_its_answer_has_not_is_the_models_to_fill(server: ApiServer) -> None:
    def form(schema: dict[str, Any]) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}

    drink = {"type": "object", "properties": {"drink": {"type": "string"}}, "required": ["drink"]}
    same = ask(server, DRINK, response_format=form(drink | {"additionalProperties": False}))
    assert is_classified(same)
    assert json.loads(same["choices"][0]["message"]["content"]) == json.loads(TEA)
    assert not is_classified(ask(server, DRINK, response_format=form({"enum": ["yes", "no"]})))


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"logprobs": True},
        {"stop": ["drink"]},
        {"max_tokens": 2},
        {"logit_bias": {"5": 1}},
        {"metadata": {"task": "booking"}},
    ],
)
def test_who_asks_for_more_than_the_answer_has_the_model(server: ApiServer, more: dict[str, Any]) -> None:
    assert not is_classified(ask(server, DRINK, **more))


def test_who_calls_its_task_by_its_name_has_the_classifier(server: ApiServer) -> None:
    assert is_classified(ask(server, DRINK, metadata={"task": "t1"}))


def test_who_tells_the_chat_template_something_else_has_the_model(tmp_path: Path) -> None:
    template = (
        "{{ language }}{{ enable_thinking }}"
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    bundle = with_classifier(tiny_bundle(tmp_path / "bundle", template=template), word_classifier())
    with api_server(bundle) as made:
        for told, is_own in (({}, True), ({"enable_thinking": False}, True), ({"language": "de"}, False)):
            assert is_classified(ask(made, DRINK, chat_template_kwargs=told)) is is_own, told
        assert is_classified(ask(made, DRINK, reasoning_effort="none"))


def test_another_api_and_the_metrics_say_it_too(server: ApiServer) -> None:
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": DRINK}], "stream": False}
    answer = httpx.post(f"{server.url}/api/chat", json=body, timeout=60).json()
    assert (answer["message"]["content"], answer["fieldlm"]["answered_by"]) == (TEA, "classifier")
    metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    (line,) = [each for each in metrics.splitlines() if each.startswith('fieldlm_answers_total{by="classifier"')]
    assert float(line.split()[-1]) >= 1
