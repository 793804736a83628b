"""Function calls by the names they had before tools, as Home Assistant's extended_openai_conversation asks for them."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from fieldlm.api.chat_request import Exchange
from fieldlm.formats.bundle import Bundle
from tests.support.api_server import api_server

MODEL = "smollm2-135m-instruct"
SWITCH: dict[str, Any] = {
    "name": "execute_services",
    "description": "Switch a device in the house",
    "parameters": {
        "type": "object",
        "properties": {"device": {"enum": ["lamp", "fan"]}, "on": {"type": "boolean"}},
        "required": ["device", "on"],
    },
}
NOW = {"name": "now", "description": "Tell the time", "parameters": {"type": "object", "properties": {}}}
ASKED: list[Any] = [{"role": "user", "content": "Switch on the lamp, please"}]
CALLED = {"name": "execute_services", "arguments": '{"device": "lamp", "on": true}'}
HISTORY: list[Any] = [
    *ASKED,
    {"role": "assistant", "content": None, "function_call": CALLED, "tool_calls": None},
    {"role": "function", "name": "execute_services", "content": '{"success": true}'},
]


class House:
    """A running server, its client, and what it told telemetry."""

    def __init__(self, url: str, exchanges: list[Exchange]) -> None:
        self.exchanges = exchanges
        self.http = httpx.Client(base_url=url, timeout=120)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask(self, messages: Any = ASKED, **more: Any) -> Any:
        asked: dict[str, Any] = {"max_tokens": 64, "functions": [SWITCH, NOW], **more}
        return self.client.chat.completions.create(model=MODEL, messages=messages, **asked)


@pytest.fixture(scope="module")
def house(base_bundle: Bundle) -> Iterator[House]:
    with api_server(base_bundle, context=1024) as server:
        made = House(server.url, server.exchanges)
        yield made
        made.http.close()
        made.client.close()


def test_a_function_that_is_named_is_called_by_the_old_name(house: House) -> None:
    answer = house.ask(function_call={"name": "execute_services"}, temperature=1.0, seed=3).choices[0]
    assert answer.finish_reason == "function_call"
    assert answer.message.content is None
    assert answer.message.tool_calls is None
    assert answer.message.function_call.name == "execute_services"
    assert set(json.loads(answer.message.function_call.arguments)) == {"device", "on"}


def test_a_stream_calls_by_the_old_name_too(house: House) -> None:
    asked: dict[str, Any] = {"function_call": {"name": "execute_services"}, "seed": 3, "temperature": 1.0}
    whole = house.ask(**asked).choices[0].message.function_call
    choices = [chunk.choices[0] for chunk in house.ask(stream=True, **asked)]
    calls = [choice.delta.function_call for choice in choices if choice.delta.function_call]
    assert [(call.name, call.arguments) for call in calls] == [(whole.name, whole.arguments)]
    assert choices[-1].finish_reason == "function_call"
    assert all(choice.delta.tool_calls is None for choice in choices)


def test_who_may_call_or_must_not_gets_words_or_a_call(house: House) -> None:
    auto = house.ask(function_call="auto").choices[0]
    assert (auto.finish_reason == "function_call") == (auto.message.function_call is not None)
    none = house.ask(function_call="none")
    plain = house.client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=1)
    assert plain.usage is not None
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    assert none.choices[0].message.function_call is None


def test_functions_and_their_answers_are_read_like_tools(house: House) -> None:
    house.ask(HISTORY, function_call="auto")
    old = house.exchanges[-1]
    calls = [{"id": "c1", "type": "function", "function": CALLED}]
    told: list[Any] = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": '{"success": true}'},
    ]
    tools: Any = [{"type": "function", "function": function} for function in (SWITCH, NOW)]
    new = house.client.chat.completions.create(model=MODEL, messages=told, tools=tools, max_tokens=64)
    assert new.usage is not None
    assert old.prompt_tokens == new.usage.prompt_tokens
    assert old.context == house.exchanges[-1].context
    assert [message["role"] for message in old.messages] == ["user", "assistant", "tool"]


def test_home_assistant_is_answered_as_it_comes(house: House) -> None:
    body = {
        "model": MODEL,
        "messages": HISTORY,
        "functions": [SWITCH],
        "function_call": "auto",
        "max_tokens": 15.0,
        "top_p": 1,
        "temperature": 0.5,
        "user": "01HX",
    }
    answer = house.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= 15


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"function_call": {"name": "fly"}}, "function_call"),
        ({"functions": None, "function_call": {"name": "now"}}, "function_call"),
        ({"functions": [NOW, NOW]}, "functions"),
        ({"functions": [{**NOW, "parameters": {"type": "string"}}]}, "functions"),
        ({"tools": [{"type": "function", "function": NOW}]}, "functions"),
        ({"tool_choice": "required"}, "functions"),
        ({"messages": [*ASKED, {"role": "function", "name": "now"}]}, "messages[1].content"),
        ({"messages": [*ASKED, {"role": "assistant"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}]}, "messages[0].content"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_its_old_name(house: House, given: dict[str, Any], param: str) -> None:
    body = {"messages": ASKED, "functions": [SWITCH], "max_tokens": 1, **given}
    response = house.http.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("written", ["{", '{"on": tr', "[1]", "null", "on=true"])
def test_arguments_that_are_no_object_come_back_as_the_model_wrote_them(house: House, written: str) -> None:
    """A model that called wrongly is told so, with its call before it."""
    called = {"name": "now", "arguments": written}
    calls = [{"id": "c1", "type": "function", "function": called}]
    result = {"role": "tool", "tool_call_id": "c1", "content": "these are no arguments"}
    for made in ({"tool_calls": calls}, {"function_call": called}):
        body = {"messages": [*ASKED, {"role": "assistant", "content": None, **made}, result], "max_tokens": 1}
        assert house.http.post("/v1/chat/completions", json=body).status_code == 200
        assert json.dumps(called) in house.http.post("/apply-template", json=body).json()["prompt"]
    item = {"type": "function_call", "call_id": "c1", **called}
    done = {"type": "function_call_output", "call_id": "c1", "output": "these are no arguments"}
    body = {"input": [*ASKED, item, done], "max_output_tokens": 1}
    assert house.http.post("/v1/responses", json=body).status_code == 200
    told = house.exchanges[-1].messages[1]["tool_calls"][0]["function"]
    assert told == called


def test_what_a_correction_calls_has_to_be_whole(house: House) -> None:
    called = {"function": {"name": "now", "arguments": "{"}}
    response = house.http.post("/v1/feedback", json={"id": "x", "correction": [called]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "correction[0].function.arguments")


@pytest.mark.parametrize(
    "said",
    [
        {"content": None, "refusal": "I would rather not."},
        {"refusal": "I would rather not."},
        {"content": [{"type": "refusal", "refusal": "I would rather not."}]},
        {"content": [], "refusal": "I would rather not."},
    ],
)
def test_a_refusal_comes_back_as_what_the_assistant_said(house: House, said: dict[str, Any]) -> None:
    told = [*ASKED, {"role": "assistant", **said}, {"role": "user", "content": "Why not?"}]
    assert house.http.post("/v1/chat/completions", json={"messages": told, "max_tokens": 1}).status_code == 200
    assert house.exchanges[-1].messages[1] == {"role": "assistant", "content": "I would rather not."}
    if isinstance(said.get("content"), list) and "refusal" not in said:
        assert house.http.post("/v1/responses", json={"input": told, "max_output_tokens": 1}).status_code == 200
        assert house.exchanges[-1].messages == house.exchanges[-2].messages
