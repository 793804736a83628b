"""Anthropic's Messages API, through the `anthropic` client and its own helpers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from anthropic.types import MessageParam, TextBlock, ToolParam, ToolUseBlock
from pydantic import BaseModel

from fieldlm.api.chat_request import Exchange
from fieldlm.formats.bundle import Bundle
from fieldlm.network.api_keys import Keys
from tests.support.api_server import api_server

MODEL = "smollm2-135m-instruct"
KEY = "a-key-of-fair-length"
HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
LIGHT: ToolParam = {
    "name": "light",
    "description": "Switch the light",
    "input_schema": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
}


class Order(BaseModel):
    drink: Literal["coffee", "tea"]
    count: Literal[1, 2, 3]


class Kiosk:
    def __init__(self, url: str, exchanges: list[Exchange]) -> None:
        self.exchanges = exchanges
        self.http = httpx.Client(base_url=url, timeout=120, headers={"x-api-key": KEY})
        self.client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def kiosk(base_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiosk]:
    keys: Path = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    with api_server(base_bundle, keys=Keys.read(keys)) as server:
        made = Kiosk(server.url, server.exchanges)
        yield made
        for client in (made.http, made.client, made.openai):
            client.close()


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def test_a_message_says_what_chat_completions_say(kiosk: Kiosk) -> None:
    answer = kiosk.client.messages.create(model=MODEL, max_tokens=5, system="Be brief.", messages=HELLO)
    same = kiosk.openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        max_tokens=5,
    )
    assert text_of(answer) == same.choices[0].message.content
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "max_tokens")
    assert answer.id == kiosk.exchanges[-2].id
    used = answer.usage
    assert used.output_tokens == 5
    assert same.usage
    assert used.input_tokens + (used.cache_read_input_tokens or 0) == same.usage.prompt_tokens
    blocks = [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]
    body = {"model": MODEL, "max_tokens": 5, "system": [{"type": "text", "text": "Be brief."}]}
    parted = kiosk.http.post("/v1/messages", json={**body, "messages": [{"role": "user", "content": blocks}]}).json()
    assert parted["content"] == [{"type": "text", "text": text_of(answer)}]


def test_tokens_are_counted_as_an_answer_reports_them(kiosk: Kiosk) -> None:
    talk: list[MessageParam] = [
        *HELLO,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "light", "input": {"on": True}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "done"}]},
    ]
    asked: list[dict[str, Any]] = [
        {"messages": HELLO},
        {"messages": HELLO, "system": "Be brief."},
        {"messages": talk, "system": [{"type": "text", "text": "Be brief."}], "tools": [LIGHT]},
        {"messages": HELLO, "tools": [LIGHT], "tool_choice": {"type": "none"}},
        {"messages": HELLO, "tools": [LIGHT], "tool_choice": {"type": "tool", "name": "light"}},
    ]
    counts: list[int] = []
    told = len(kiosk.exchanges)
    for body in asked:
        counts.append(kiosk.client.messages.count_tokens(model=MODEL, **body).input_tokens)
        assert len(kiosk.exchanges) == told
        used = kiosk.client.messages.create(model=MODEL, max_tokens=1, **body).usage
        told = len(kiosk.exchanges)
        assert counts[-1] == used.input_tokens + (used.cache_read_input_tokens or 0), body
    assert counts[0] == counts[3] < counts[4] < counts[2]
    for body, kind in (
        ({"model": "other", "messages": HELLO}, "not_found_error"),
        ({"model": MODEL, "messages": []}, "invalid_request_error"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "x " * 3000}]}, "invalid_request_error"),
    ):
        refused = kiosk.http.post("/v1/messages/count_tokens", json=body).json()
        assert (refused["type"], refused["error"]["type"]) == ("error", kind)


def test_a_stream_builds_up_the_same_message(kiosk: Kiosk) -> None:
    whole = kiosk.client.messages.create(model=MODEL, max_tokens=8, messages=HELLO)
    with kiosk.client.messages.stream(model=MODEL, max_tokens=8, messages=HELLO) as stream:
        said = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert said == text_of(message) == text_of(whole)
    assert (message.stop_reason, message.usage.output_tokens) == (whole.stop_reason, 8)
    names = [
        event.type for event in kiosk.client.messages.create(model=MODEL, max_tokens=2, messages=HELLO, stream=True)
    ]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_call_is_a_block_whole_and_streamed(kiosk: Kiosk) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "Switch the light on"}],
        "tools": [LIGHT],
        "tool_choice": {"type": "tool", "name": "light"},
    }
    answer = kiosk.client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    (call,) = answer.content
    assert isinstance(call, ToolUseBlock)
    assert (call.name, set(call.input)) == ("light", {"on"})
    with kiosk.client.messages.stream(**asked) as stream:
        message = stream.get_final_message()
    (streamed,) = message.content
    assert isinstance(streamed, ToolUseBlock)
    assert streamed.input == call.input
    told: list[MessageParam] = [
        {"role": "user", "content": "Switch the light on"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": call.id, "name": "light", "input": {"on": True}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call.id, "content": "no bulb", "is_error": True},
            {"type": "text", "text": "And now?"},
        ]},
    ]  # fmt: skip
    kiosk.client.messages.create(model=MODEL, max_tokens=4, messages=told, tools=[LIGHT])
    seen = kiosk.exchanges[-1].messages
    assert [message["role"] for message in seen] == ["user", "assistant", "tool", "user"]
    assert seen[1]["tool_calls"][0]["function"] == {"name": "light", "arguments": {"on": True}}
    assert (seen[2]["content"], seen[2]["tool_call_id"]) == ("Error: no bulb", call.id)


def test_a_form_is_kept(kiosk: Kiosk) -> None:
    form = {"format": {"type": "json_schema", "schema": Order.model_json_schema()}}
    body = {"model": MODEL, "max_tokens": 40, "messages": [{"role": "user", "content": "Two coffees"}]}
    answer = kiosk.http.post("/v1/messages", json={**body, "output_config": form}).json()
    Order.model_validate_json(answer["content"][0]["text"])


def test_a_stop_sequence_ends_an_answer(kiosk: Kiosk) -> None:
    whole = text_of(kiosk.client.messages.create(model=MODEL, max_tokens=12, messages=HELLO))
    word = whole.split()[2]
    cut = kiosk.client.messages.create(model=MODEL, max_tokens=12, messages=HELLO, stop_sequences=[word])
    assert text_of(cut) == whole[: whole.index(word)]
    assert cut.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "enable_thinking: this model does not think"),
        ({"temperature": 1.5}, "temperature: Expected `float` <= 1"),
        (
            {"messages": [{"role": "system", "content": "x"}]},
            "messages[0].role is 'system'; want one of assistant, user",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "content[0].type: is 'image'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "runs at Anthropic's"),
        ({"tools": [LIGHT], "tool_choice": {"type": "tool", "name": "door"}}, "tool_choice names none of tools"),
        ({"guided_json": {"type": "object"}}, "guided_json: use response_format"),
        ({"mcp_servers": [{"type": "url", "url": "https://tools.example"}]}, "mcp_servers: not supported"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "{"}]}, "messages: an answer that has begun"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(kiosk: Kiosk, body: dict[str, Any], line: str) -> None:
    given = {"model": MODEL, "max_tokens": 5, "messages": HELLO, **body}
    answer = kiosk.http.post("/v1/messages", json={name: each for name, each in given.items() if each is not None})
    assert answer.status_code == 400
    document = answer.json()
    assert (document["type"], document["error"]["type"]) == ("error", "invalid_request_error")
    assert line in document["error"]["message"]


def test_errors_are_those_that_the_client_knows(kiosk: Kiosk) -> None:
    with pytest.raises(anthropic.NotFoundError, match="'claude' is not here"):
        kiosk.client.messages.create(model="claude", max_tokens=5, messages=HELLO)
    with (
        anthropic.Anthropic(base_url=str(kiosk.http.base_url), api_key="not-the-key-at-all", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError, match="this API key is not known here"),
    ):
        stranger.messages.create(model=MODEL, max_tokens=5, messages=HELLO)


def test_a_stream_that_fails_says_so_in_its_own_event(kiosk: Kiosk) -> None:
    asked = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "x " * 3000}], "stream": True}
    answer = kiosk.http.post("/v1/messages", content=json.dumps(asked))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
