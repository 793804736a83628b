"""Answers of a fixed form, several at once, by a deadline, and calls of tools: through the `openai` client."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel, Field

from fieldlm.api.chat_request import Exchange
from fieldlm.engines import Engine, Sampling, constraint
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle
from tests.support.api_server import api_server

MODEL = "smollm2-135m-instruct"
CHAT = "/v1/chat/completions"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Two coffees, please"}]
HOT: dict[str, Any] = {"temperature": 2.0, "seed": 3}


class Order(BaseModel):
    drink: Literal["coffee", "tea"]
    count: int = Field(ge=0, le=99)
    note: str = Field(max_length=12)


class Carry(BaseModel):
    """Carry something somewhere."""

    to: Literal["table 1", "table 2"]
    order: Order


CARRY: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "carry", "description": "Carry something", "parameters": Carry.model_json_schema()},
}
HONK: ChatCompletionToolParam = {"type": "function", "function": {"name": "honk"}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "order", "schema": Order.model_json_schema()}}
CANNED = {"drink": "tea", "count": 0, "note": "sorry"}


class Kiosk:
    def __init__(self, url: str, exchanges: list[Exchange], engine: Engine) -> None:
        self.exchanges = exchanges
        self.engine = engine
        self.http = httpx.Client(base_url=url, timeout=120)
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask(self, **body: Any) -> httpx.Response:
        return self.http.post(CHAT, json={"messages": HELLO, "max_tokens": 8, **body})

    def stream(self, **body: Any) -> list[Any]:
        lines = self.ask(stream=True, **body).text.splitlines()
        assert lines[-2] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


@pytest.fixture(scope="module")
def kiosk(base_bundle: Bundle) -> Iterator[Kiosk]:
    with api_server(base_bundle, context=1024, parallel=3) as server:
        made = Kiosk(server.url, server.exchanges, server.engine)
        yield made
        made.http.close()
        made.client.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_hot_model_under_a_schema_gives_nothing_else(kiosk: Kiosk, seed: int) -> None:
    document = kiosk.ask(response_format=FORMAT, temperature=2.0, seed=seed, max_tokens=200).json()
    Order.model_validate_json(document["choices"][0]["message"]["content"], strict=True)
    assert document["choices"][0]["finish_reason"] == document["fieldlm"]["outcome"] == "stop"


def test_the_client_parses_into_its_own_type(kiosk: Kiosk) -> None:
    answer = kiosk.client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Order, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Order)


def test_the_client_parses_a_stream_into_its_own_type(kiosk: Kiosk) -> None:
    with kiosk.client.chat.completions.stream(
        model=MODEL, messages=HELLO, response_format=Order, max_tokens=200
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Order)


def test_a_regular_expression_and_a_grammar_are_followed(kiosk: Kiosk) -> None:
    by_regex = kiosk.ask(regex="(left|right) [0-9]{2}", **HOT).json()["choices"][0]["message"]["content"]
    side, digits = by_regex.split(" ")
    assert side in ("left", "right")
    assert len(digits) == 2
    by_grammar = kiosk.ask(grammar='root ::= "yes" | "no"', **HOT).json()["choices"][0]["message"]["content"]
    assert by_grammar in ("yes", "no")


@pytest.mark.parametrize(
    ("change", "param", "names"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format",
            "not",
        ),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "array", "uniqueItems": True}}},
            "response_format",
            "uniqueItems",
        ),
        ({"regex": "(?=a)"}, "regex", "look-around"),
        ({"grammar": "root ::= nothing"}, "grammar", "nothing"),
        ({"response_format": FORMAT, "fallback": {"drink": "water"}}, "fallback", "allows"),
        ({"tools": [HONK], "fallback": "x"}, "fallback", "tools"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "tools",
            "not",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(kiosk: Kiosk, change: Any, param: str, names: str) -> None:
    response = kiosk.ask(**change)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert names in error["message"]


def chained(way: str, length: int) -> dict[str, Any]:
    """Return a request whose form is `length` rules, each of which leads to the next."""
    if way == "schema":
        parts = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)}
        schema = {"$defs": parts | {f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}}
    sign, first = ("::=", "root") if way == "gbnf" else (":", "start")
    name = "T" if way == "terminals" else "r"
    rules = [f'{name}{i} {sign} "a" {name}{i + 1}' for i in range(length)]
    return {"grammar": "\n".join([f"{first} {sign} {name}0", *rules, f'{name}{length} {sign} "z"'])}


@pytest.mark.parametrize("way", ["lark", "terminals", "gbnf", "schema"])
def test_rules_that_lead_to_each_other_without_end_are_refused_and_end_nothing(kiosk: Kiosk, way: str) -> None:
    for length in (3000, 4500):
        response = kiosk.ask(**chained(way, length))
        assert response.status_code == 400
        assert "want at most" in response.json()["error"]["message"]
    assert kiosk.ask(**chained(way, 900), max_tokens=4).status_code == 200


PANIC = """%llguidance {}
start: "\\n"? r2*
r0[suffix="z"]: /(^|(()|(($|())\\b){7,}))/~1..3 " "* r2 | <[*]>
r1[stop=""]: "a"~2 "\\u00e9"{0,3} r1 |
r2: T1+ <|x|>~2 %json {"enum": [true, {"a": [1]}]}{2}
T0: T1 | "b"
T1: ~/a/"""


def test_a_grammar_that_its_compiler_gives_up_on_is_the_callers_mistake(kiosk: Kiosk) -> None:
    response = kiosk.ask(grammar=PANIC)
    assert response.status_code == 400
    assert "grammar" in response.json()["error"]["message"]
    assert kiosk.ask(regex="[a-z]+").status_code == 200


def test_several_answers_differ_and_their_seeds_repeat(kiosk: Kiosk) -> None:
    document = kiosk.ask(n=3, **HOT).json()
    texts = [choice["message"]["content"] for choice in document["choices"]]
    assert [choice["index"] for choice in document["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert document["usage"]["completion_tokens"] > 8
    streamed = ["", "", ""]
    for event in kiosk.stream(n=3, **HOT):
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
    assert all(streamed)


def test_log_probabilities_come_with_each_token(kiosk: Kiosk) -> None:
    answer = kiosk.client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens = logprobs.content or []
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    events = kiosk.stream(logprobs=True, max_tokens=4)
    streamed = [entry for event in events for entry in (event["choices"][0]["logprobs"] or {}).get("content", [])]
    assert len(streamed) == 4
    body = {"prompt": "one two", "max_tokens": 3, "logprobs": 2}
    legacy = kiosk.http.post("/v1/completions", json=body).json()["choices"][0]
    assert "".join(legacy["logprobs"]["tokens"]) == legacy["text"]


def test_log_probabilities_end_where_a_stop_string_does(kiosk: Kiosk) -> None:
    words = kiosk.ask(max_tokens=24).json()["choices"][0]["message"]["content"]
    for stop in (words[len(words) // 2 :][:2], words[:1]):
        cut = kiosk.ask(max_tokens=24, logprobs=True, stop=[stop]).json()["choices"][0]
        text = cut["message"]["content"].encode()
        pieces = [bytes(each["bytes"]) for each in cut["logprobs"]["content"]]
        assert b"".join(pieces).startswith(text)
        assert len(b"".join(pieces[:-1])) < max(1, len(text))
        assert bool(pieces) is bool(text)


def test_where_usage_is_wanted_each_chunk_has_the_field_and_the_last_its_value(kiosk: Kiosk) -> None:
    used = [event["usage"] for event in kiosk.stream(stream_options={"include_usage": True})]
    assert used[-1]["completion_tokens"] > 0
    assert set(map(str, used[:-1])) == {"None"}
    assert all("usage" not in event for event in kiosk.stream())


def test_bias_and_penalties_reach_the_model(kiosk: Kiosk) -> None:
    first = kiosk.ask(logprobs=True, max_tokens=1).json()["choices"][0]["logprobs"]["content"][0]["token"]
    tokens = kiosk.ask(max_tokens=6, logit_bias={"5000": 100}).json()["choices"][0]["message"]["content"]
    assert not tokens.startswith(first)
    punished = kiosk.ask(max_tokens=6, logit_bias={"5000": 100}, presence_penalty=2, repeat_penalty=1.5)
    assert punished.status_code == 200
    assert kiosk.ask(logit_bias={"999999": 1}).status_code == 400


def test_a_missed_deadline_is_an_error_that_is_not_asked_again(kiosk: Kiosk) -> None:
    for stream in (False, True):
        response = kiosk.ask(deadline_ms=0, stream=stream)
        document = response.json()
        assert response.status_code == 504
        assert response.headers["x-should-retry"] == "false"
        assert document["error"]["code"] == document["fieldlm"]["outcome"] == "deadline_exceeded"
        assert document["fieldlm"]["text"] == ""
        assert kiosk.exchanges[-1].outcome == "deadline_exceeded"


def test_an_answer_that_gave_way_until_its_deadline_is_an_error_of_its_own(kiosk: Kiosk) -> None:
    engine = kiosk.engine
    assert isinstance(engine, LlamaEngine)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(kiosk.ask, priority="batch", deadline_ms=2000, max_tokens=900)
        while not engine.running:
            time.sleep(0.005)
        urgent = [engine.start(engine.tokenize("1, 2, 3,"), Sampling(max_tokens=1000)) for _ in range(3)]
        response = asked.result()
    for one in urgent:
        one.cancel()
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "false")
    assert response.json()["error"]["code"] == response.json()["fieldlm"]["outcome"] == "preempted"
    assert kiosk.exchanges[-1].outcome == "preempted"
    assert 'outcome="preempted"' in kiosk.http.get("/metrics").text


def test_who_may_not_wait_is_rejected_with_a_time_to_come_back(kiosk: Kiosk) -> None:
    response = kiosk.ask(max_queue_ms=0)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == response.json()["fieldlm"]["outcome"] == "rejected"
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("limit", [{"deadline_ms": 0}, {"max_queue_ms": 0}])
def test_a_canned_answer_stands_in(kiosk: Kiosk, limit: dict[str, Any]) -> None:
    wanted = {"response_format": FORMAT, "fallback": CANNED, **limit}
    document = kiosk.ask(**wanted).json()
    assert json.loads(document["choices"][0]["message"]["content"]) == CANNED
    assert document["choices"][0]["finish_reason"] == "stop"
    assert document["fieldlm"]["used_fallback"] is True
    assert document["fieldlm"]["outcome"] in ("deadline_exceeded", "rejected")
    *_, text, last = kiosk.stream(**wanted)
    assert json.loads(text["choices"][0]["delta"]["content"]) == CANNED
    assert last["fieldlm"]["used_fallback"] is True


def test_the_old_name_of_a_fallback_is_still_taken_but_not_both(kiosk: Kiosk) -> None:
    document = kiosk.ask(on_miss="Sorry", deadline_ms=0).json()
    assert document["choices"][0]["message"]["content"] == "Sorry"
    both = kiosk.ask(on_miss="Sorry", fallback="Sorry")
    assert (both.status_code, both.json()["error"]["param"]) == (400, "on_miss")


def test_an_answer_cut_off_in_the_middle_of_its_form_is_a_miss(kiosk: Kiosk) -> None:
    document = kiosk.ask(response_format=FORMAT, fallback=json.dumps(CANNED), max_tokens=3).json()
    assert json.loads(document["choices"][0]["message"]["content"]) == CANNED
    assert (document["fieldlm"]["outcome"], document["fieldlm"]["used_fallback"]) == ("length", True)


def test_a_canned_answer_is_not_needed_when_the_real_one_comes(kiosk: Kiosk) -> None:
    document = kiosk.ask(fallback="later").json()
    assert "used_fallback" not in document["fieldlm"]
    streamed = kiosk.stream(fallback="later")
    texts = [choice["delta"].get("content", "") for event in streamed for choice in event["choices"]]
    assert "".join(texts) == document["choices"][0]["message"]["content"] != "later"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "carry"}}])
def test_a_call_that_must_come_is_valid_under_its_tool(kiosk: Kiosk, choice: Any) -> None:
    tools = [CARRY, HONK] if choice != "required" else [CARRY]
    answer = kiosk.client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=tools, tool_choice=choice, max_tokens=200, **HOT
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "carry"
    Carry.model_validate_json(call.function.arguments, strict=True)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


def named(name: str, parameters: Any, *, strict: bool = False) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


def called(kiosk: Kiosk, **asked: Any) -> Any:
    """Return the arguments of the one call that must come."""
    response = kiosk.ask(tool_choice="required", max_tokens=100, **HOT, **asked)
    assert response.status_code == 200, response.text
    (call,) = response.json()["choices"][0]["message"]["tool_calls"]
    return json.loads(call["function"]["arguments"])


def test_a_function_without_parameters_gets_none(kiosk: Kiosk) -> None:
    assert called(kiosk, tools=[HONK]) == {}


def test_a_mark_in_an_argument_loses_no_call(kiosk: Kiosk) -> None:
    parameters = {"type": "object", "properties": {"c": {"const": "a</tool_call>b"}}, "required": ["c"]}
    assert called(kiosk, tools=[named("w", parameters)]) == {"c": "a</tool_call>b"}


def test_a_tool_that_is_not_strict_is_no_reason_to_refuse(kiosk: Kiosk) -> None:
    loose = named("w", {"type": "object", "properties": {"u": {"enum": ["c", "f"], "not": {}}}, "required": ["u"]})
    assert called(kiosk, tools=[loose])["u"] in ("c", "f")
    beside = named("v", Carry.model_json_schema(), strict=True)
    assert kiosk.ask(tools=[loose, beside]).status_code == 200
    refused = kiosk.ask(tools=[named("w", loose["function"]["parameters"], strict=True), beside])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
    assert "w: " in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "tools",
    [
        [named("w", {"type": "array"})],
        [named("w", {}), named("w", {})],
        [named("w", {"properties": {"id": {"const": 2**53 + 1}}}, strict=True)],
    ],
)
def test_a_tool_that_no_call_can_be_held_to_is_refused(kiosk: Kiosk, tools: Any) -> None:
    refused = kiosk.ask(tools=tools)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")


def test_an_answer_with_tools_is_a_call_or_has_the_form(kiosk: Kiosk) -> None:
    for seed in range(3):
        asked: dict[str, Any] = {"tools": [CARRY], "response_format": FORMAT, "max_tokens": 200}
        message = kiosk.ask(**asked, temperature=2.0, seed=seed).json()["choices"][0]["message"]
        if message.get("tool_calls"):
            Carry.model_validate_json(message["tool_calls"][0]["function"]["arguments"], strict=True)
        else:
            Order.model_validate_json(message["content"], strict=True)
    with_regex = kiosk.ask(tools=[HONK], regex="a/b|c\\\\/d", logit_bias={}, max_tokens=40).json()["choices"][0][
        "message"
    ]
    assert bool(with_regex.get("tool_calls")) != (with_regex["content"] in ("a/b", "c\\/d"))
    assert called(kiosk, tools=[HONK], response_format=FORMAT) == {}
    both = kiosk.ask(tools=[HONK], grammar='root ::= "yes"')
    assert (both.status_code, both.json()["error"]["param"]) == (400, "tools")


def test_a_streamed_call_adds_up_in_the_clients_helper(kiosk: Kiosk) -> None:
    with kiosk.client.chat.completions.stream(
        model=MODEL, messages=HELLO, tools=[CARRY], tool_choice="required", max_tokens=200
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    Carry.model_validate_json(call.function.arguments, strict=True)
    assert final.choices[0].finish_reason == "tool_calls"


def test_the_result_of_a_call_goes_back_to_the_model(kiosk: Kiosk) -> None:
    call: Any = {"id": "call_1", "type": "function", "function": {"name": "honk", "arguments": "{}"}}
    messages: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "honked"},
    ]
    answer = kiosk.client.chat.completions.create(model=MODEL, messages=messages, tools=[HONK], max_tokens=4)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert "honked" in cast(str, kiosk.exchanges[-1].messages[-1]["content"])
    broken = [{**messages[1], "tool_calls": [{**call, "function": {"name": "honk", "arguments": "{"}}]}]
    assert kiosk.ask(messages=[*HELLO, *broken]).status_code == 200


def test_tools_that_may_not_be_called_change_nothing(kiosk: Kiosk) -> None:
    plain = kiosk.ask().json()["usage"]["prompt_tokens"]
    assert kiosk.ask(tools=[CARRY], tool_choice="none").json()["usage"]["prompt_tokens"] == plain
    assert kiosk.ask(tools=[CARRY]).json()["usage"]["prompt_tokens"] > plain


def test_a_form_behind_hard_ones_is_told_to_come_later(kiosk: Kiosk, monkeypatch: pytest.MonkeyPatch) -> None:
    compiling = constraint._compiling  # pyright: ignore[reportPrivateUsage]
    with monkeypatch.context() as soon:
        soon.setattr("fieldlm.api.app.FORM_S", 0.1)
        for _ in range(constraint.COMPILING):
            compiling.acquire()
        try:
            refused = kiosk.ask(regex="behind hard ones")
            assert kiosk.ask().status_code == 200
        finally:
            for _ in range(constraint.COMPILING):
                compiling.release()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "form_not_ready")
    assert int(refused.headers["retry-after"]) >= 1
    assert kiosk.ask(regex="behind hard ones").status_code == 200
