"""The Responses API, through the `openai` client and its own helpers."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall, ToolParam
from pydantic import BaseModel

from fieldlm.api.chat_request import Exchange
from fieldlm.formats.bundle import Bundle
from tests.support.api_server import api_server

MODEL = "smollm2-135m-instruct"
PATH = "/v1/responses"
ORDER = "Two coffees, please"


class Order(BaseModel):
    drink: Literal["coffee", "tea"]
    count: Literal[1, 2, 3]


class Carry(BaseModel):
    """Carry something somewhere."""

    to: Literal["table 1", "table 2"]


CARRY = openai.pydantic_function_tool(Carry, name="carry")["function"]
TOOL: ToolParam = {
    "type": "function",
    "name": "carry",
    "description": "Carry something",
    "parameters": CARRY.get("parameters"),
    "strict": True,
}


class Kiosk:
    def __init__(self, url: str, exchanges: list[Exchange]) -> None:
        self.exchanges = exchanges
        self.http = httpx.Client(base_url=url, timeout=120)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def kiosk(base_bundle: Bundle) -> Iterator[Kiosk]:
    with api_server(base_bundle) as server:
        made = Kiosk(server.url, server.exchanges)
        yield made
        made.http.close()
        made.client.close()


def test_a_text_is_answered_with_usage_and_timings(kiosk: Kiosk) -> None:
    answer = kiosk.client.responses.create(model=MODEL, input="Hello", max_output_tokens=5, metadata={"session": "a"})
    same = kiosk.client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=5
    )
    assert answer.output_text == same.choices[0].message.content
    assert (answer.status, answer.id) == ("incomplete", kiosk.exchanges[-2].id)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5
    assert answer.usage.total_tokens == answer.usage.input_tokens + 5
    assert answer.to_dict()["fieldlm"]["timings"]["decode_ms"] > 0  # pyright: ignore[reportIndexIssue]
    assert kiosk.exchanges[-2].session == "a"


def test_a_conversation_of_items_is_the_chat_of_the_same_messages(kiosk: Kiosk) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Carry the tea to table 1."}]},
        {"type": "function_call", "call_id": "call_1", "name": "carry", "arguments": '{"to": "table 1"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
        {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "Done."}]},
        {"role": "user", "content": "Thank you"},
    ]
    answer = kiosk.client.responses.create(model=MODEL, instructions="Be kind.", input=items, max_output_tokens=6)
    call = {"id": "call_1", "type": "function", "function": {"name": "carry", "arguments": '{"to": "table 1"}'}}
    chat: Any = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Carry the tea to table 1."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thank you"},
    ]
    same = kiosk.client.chat.completions.create(model=MODEL, messages=chat, max_tokens=6)
    assert answer.output_text == same.choices[0].message.content
    assert kiosk.exchanges[-1].messages == kiosk.exchanges[-2].messages


def test_the_stream_helper_builds_the_same_response_as_a_whole_one(kiosk: Kiosk) -> None:
    until: Any = {"extra_body": {"stop": ["? ", ". "]}}
    whole = kiosk.client.responses.create(model=MODEL, input="Hello", max_output_tokens=200, **until)
    assert whole.status == "completed"
    with kiosk.client.responses.stream(model=MODEL, input="Hello", max_output_tokens=200, **until) as stream:
        seen = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    kinds = [event.type for event in seen]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert deltas == final.output_text == whole.output_text
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_parse_gives_an_object_streamed_or_not_and_to_asyncio(kiosk: Kiosk) -> None:
    parsed = kiosk.client.responses.parse(model=MODEL, input=ORDER, text_format=Order).output_parsed
    assert isinstance(parsed, Order)
    with kiosk.client.responses.stream(model=MODEL, input=ORDER, text_format=Order) as stream:
        assert stream.get_final_response().output_parsed == parsed

    async def same() -> Order | None:
        async with openai.AsyncOpenAI(base_url=kiosk.client.base_url, api_key="none", max_retries=0) as client:
            return (await client.responses.parse(model=MODEL, input=ORDER, text_format=Order)).output_parsed

    assert asyncio.run(same()) == parsed


def test_a_call_is_an_item_streamed_or_not(kiosk: Kiosk) -> None:
    asked: Any = {"model": MODEL, "input": ORDER, "tools": [TOOL], "tool_choice": "required"}
    whole = kiosk.client.responses.parse(**asked)
    (call,) = whole.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "carry"
    assert Carry.model_validate_json(call.arguments)
    with kiosk.client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert isinstance(streamed, ResponseFunctionToolCall)
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    assert kinds.count("response.function_call_arguments.done") == 1
    asked["tool_choice"] = {"type": "function", "name": "carry"}
    named = kiosk.client.responses.create(**asked)
    assert [item.type for item in named.output] == ["function_call"]
    asked["tool_choice"] = {"type": "allowed_tools", "mode": "required", "tools": [asked["tool_choice"]]}
    allowed = kiosk.client.responses.create(**asked)
    assert [item.type for item in allowed.output] == ["function_call"]


def test_logprobs_come_when_they_are_asked_for(kiosk: Kiosk) -> None:
    answer = kiosk.client.responses.create(
        model=MODEL, input="Hello", max_output_tokens=3, include=["message.output_text.logprobs"], top_logprobs=2
    )
    (message,) = answer.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [len(entry.top_logprobs) for entry in part.logprobs] == [2, 2, 2]


def test_a_canned_answer_stands_in_for_one_that_is_late(kiosk: Kiosk) -> None:
    body: Any = {"fallback": "Sorry", "deadline_ms": 0}
    answer = kiosk.client.responses.create(model=MODEL, input="Hello", extra_body=body)
    assert (answer.output_text, answer.status) == ("Sorry", "completed")
    with kiosk.client.responses.stream(model=MODEL, input="Hello", extra_body=body) as stream:
        assert stream.get_final_response().output_text == "Sorry"
    with pytest.raises(openai.APIStatusError) as caught:
        kiosk.client.responses.create(model=MODEL, input="Hello", extra_body={"deadline_ms": 0})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


def test_a_stream_that_is_cut_off_says_that_it_failed(kiosk: Kiosk) -> None:
    # Token 2 ends an answer: this one goes on until its time is over, whatever the processor makes of the prompt.
    body = {"input": "Repeat: tea tea", "deadline_ms": 1000, "max_output_tokens": 400, "logit_bias": {"2": -100}}
    body["stream"] = True
    lines = kiosk.http.post(PATH, json=body).text.splitlines()
    last = json.loads([line for line in lines if line.startswith("data: ")][-1].removeprefix("data: "))
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "deadline_exceeded"
    assert last["response"]["output"][0]["content"][0]["text"] == last["response"]["fieldlm"]["text"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"max_tokens": 4}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "no good"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(kiosk: Kiosk, change: dict[str, Any], param: str) -> None:
    response = kiosk.http.post(PATH, json={"input": "Hello", "max_output_tokens": 2, **change})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_stored_responses_are_refused_clearly(kiosk: Kiosk) -> None:
    with pytest.raises(openai.BadRequestError, match="not stored on this device"):
        kiosk.client.responses.retrieve("resp_1")
    with pytest.raises(openai.BadRequestError):
        kiosk.client.responses.cancel("resp_1")


def test_tokens_of_an_input_are_counted_as_the_usage_says(kiosk: Kiosk) -> None:
    asked: list[dict[str, Any]] = [
        {"input": "Hello"},
        {"input": ORDER, "instructions": "Be kind."},
        {"input": ORDER, "tools": [TOOL]},
    ]
    for body in asked:
        told = len(kiosk.exchanges)
        counted = kiosk.client.responses.input_tokens.count(model=MODEL, **body)
        assert len(kiosk.exchanges) == told
        used = kiosk.client.responses.create(model=MODEL, max_output_tokens=1, **body).usage
        assert used is not None
        assert (counted.object, counted.input_tokens) == ("response.input_tokens", used.input_tokens)
    for body in ({"model": MODEL}, {"input": "Hello", "previous_response_id": "resp_1"}):
        assert kiosk.http.post(f"{PATH}/input_tokens", json=body).status_code == 400
    assert kiosk.http.get(f"{PATH}/input_tokens").json()["error"]["param"] == "response_id"
