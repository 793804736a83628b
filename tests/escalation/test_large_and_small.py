"""A small model and a large one behind one API: who answers, what leaves the device, what a client is told."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fieldlm.catalogue.opening import no_model
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.telemetry.hard_examples import FEWEST
from tests.support.pairs import Start, pair, refuse, saying

SCHEMA = {
    "type": "object",
    "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["item", "count"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "order", "parameters": SCHEMA}}


def test_the_small_model_answers_and_nothing_leaves(start: Start) -> None:
    pair = start()
    answer = pair.ask().json()
    assert answer["fieldlm"]["answered_by"] == "small"
    assert answer["model"] == pair.server.exchanges[0].model != "big-1"
    assert not pair.large.asked


def test_a_client_cannot_claim_that_the_large_one_answered(start: Start) -> None:
    pair = start()
    pair.ask(metadata={"route": "large"})
    pair.ask(metadata={"route": "window"})
    assert [exchange.route for exchange in pair.server.exchanges] == [None, "window"]


@pytest.mark.parametrize("body", [{"model": "large"}, {"large": "always"}])
def test_who_asks_for_the_large_one_gets_it(start: Start, body: dict[str, str]) -> None:
    pair = start()
    answer = pair.ask("Tell me", temperature=0.5, **body).json()
    assert answer["choices"][0]["message"]["content"] == "from the large one"
    assert answer["model"] == "big-1"
    assert answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"] == (11, 7)
    assert (answer["fieldlm"]["answered_by"], answer["fieldlm"]["escalation"]) == ("large", "asked")
    asked = pair.large.asked[0]
    assert asked["messages"][-1] == {"role": "user", "content": "Tell me"}
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("big-1", 0.5, 4)
    assert (pair.server.exchanges[0].route, pair.server.exchanges[0].model) == ("large", "big-1")


def test_a_stream_of_the_large_one_comes_as_it_is_said(start: Start) -> None:
    heard_first = threading.Event()
    pair = start(says={"after_first": heard_first})
    texts: list[str] = []
    for event in pair.events(model="large"):
        assert event["model"] == "big-1"
        texts += [text for choice in event["choices"] if (text := choice["delta"].get("content"))]
        if texts:  # the rest is not said before this
            heard_first.set()
    assert texts[0] == "from"
    assert "".join(texts) == "from the large one"


def test_openais_own_client_sees_both_models(start: Start) -> None:
    pair = start()
    client = openai.OpenAI(base_url=f"{pair.server.url}/v1", api_key="none")
    listed = {model.id for model in client.models.list()}
    assert "big-1" not in listed  # nobody has asked it for its name yet
    assert "large" in listed
    answer = client.chat.completions.create(model="large", messages=[{"role": "user", "content": "Hello"}])
    assert answer.choices[0].message.content == "from the large one"
    assert "big-1" in {model.id for model in client.models.list()}


def test_the_least_sure_answers_are_handed_over(start: Start) -> None:
    pair = start(below="50")
    by = [pair.ask(f"word {i}", max_tokens=2).json()["fieldlm"]["answered_by"] for i in range(FEWEST + 24)]
    assert set(by[:FEWEST]) == {"small"}
    later = by[FEWEST:]
    assert 0 < later.count("large") < len(later)
    assert len(pair.large.asked) == later.count("large")


def test_a_request_that_forbids_it_never_leaves(start: Start) -> None:
    pair = start(when="always")
    answer = pair.ask(large="never").json()
    assert answer["fieldlm"]["answered_by"] == "small"
    assert not pair.large.asked


def test_without_the_network_the_small_one_answers_and_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldlm.escalation.large_model.PAUSE_S", 600.0)
    monkeypatch.setattr("fieldlm.escalation.large_model.MOST_PAUSE_S", 600.0)
    pair = start(when="always", says={"say": refuse})
    first, second = pair.ask().json(), pair.ask().json()
    for answer in (first, second):
        assert answer["fieldlm"]["answered_by"] == "small"
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert "503" in first["fieldlm"]["not_large"]
    assert len(pair.large.asked) == 1, "the second request did not wait for it again"
    assert not pair.escalation.model.is_reachable


def test_what_breaks_off_before_it_was_told_is_the_small_ones_to_answer(start: Start) -> None:
    pair = start(when="always", says={"breaks_after": 4})
    answer = pair.ask().json()
    assert answer["fieldlm"]["answered_by"] == "small"
    assert "hung up" in answer["fieldlm"]["not_large"]


def test_a_stream_that_breaks_off_after_its_first_words_is_an_error(start: Start) -> None:
    pair = start(when="always", says={"breaks_after": 4})
    assert "error" in list(pair.events())[-1]


def test_a_form_is_held_to_and_spelt_as_the_small_one_does(start: Start) -> None:
    said = '```json\n{"count": 2,\n "item": "tea"}\n```'
    pair = start(says={"say": saying(said)})
    answer = pair.ask(model="large", response_format=FORM).json()
    assert answer["choices"][0]["message"]["content"] == '{"item": "tea", "count": 2}'
    assert pair.large.asked[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_an_answer_without_the_form_is_not_passed_on(start: Start) -> None:
    pair = start(says={"say": saying("two teas, please")})
    answer = pair.ask(model="large", response_format=FORM, max_tokens=64).json()
    assert answer["fieldlm"]["answered_by"] == "small"
    assert "form" in answer["fieldlm"]["not_large"]
    rows = pair.escalation.ledger.rows(days=1)
    assert {row["why"] for row in rows if row["model"] == "big-1"} == {"not used"}


def test_calls_come_as_calls(start: Start) -> None:
    pair = start(says={"say": saying([{"name": "order", "arguments": '{"count": 2, "item": "tea"}'}])})
    answer = pair.ask(model="large", tools=[TOOL], tool_choice="required").json()
    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("order", {"item": "tea", "count": 2})
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert pair.large.asked[0]["tool_choice"] == "required"


@pytest.mark.parametrize(
    "call", [{"name": "pay", "arguments": "{}"}, {"name": "order", "arguments": "{"}, {"name": "order"}]
)
def test_a_call_of_no_tool_or_of_no_arguments_is_not_passed_on(start: Start, call: dict[str, str]) -> None:
    pair = start(says={"say": saying([call])})
    answer = pair.ask(model="large", tools=[TOOL], tool_choice="required", max_tokens=64).json()
    assert answer["fieldlm"]["answered_by"] == "small"


def test_calls_and_results_go_to_the_large_one_as_openai_spells_them(start: Start) -> None:
    pair = start()
    call = {"id": "c1", "type": "function", "function": {"name": "order", "arguments": '{"item": "tea", "count": 1}'}}
    said = [
        {"role": "user", "content": "tea"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    answer = pair.ask(model="large", messages=said)
    assert answer.status_code == 200
    sent = pair.large.asked[0]["messages"]
    assert sent[-2]["tool_calls"] == [call]
    assert sent[-1]["tool_call_id"] == "c1"


def test_what_identifies_a_person_stays_and_comes_back(start: Start) -> None:
    def echo(body: dict[str, Any]) -> str:
        return "Calling " + body["messages"][-1]["content"].split("<")[1].join(["<", ""])

    pair = start(text="redacted", says={"say": echo})
    answer = pair.ask("my number is +49 30 901820, call me", model="large").json()
    assert "901820" not in json.dumps(pair.large.asked)
    assert "+49 30 901820" in answer["choices"][0]["message"]["content"]


def test_one_request_can_ask_for_that(start: Start) -> None:
    pair = start(when="always")
    pair.ask("write to anna.berg@example.com", large="redacted")
    assert "anna.berg" not in json.dumps(pair.large.asked)
    assert len(pair.large.asked) == 1


def test_where_nothing_may_leave_nothing_does(start: Start) -> None:
    pair = start(when="always", text="nothing")
    assert pair.ask(model="large").json()["fieldlm"]["answered_by"] == "small"
    assert not pair.large.asked


def test_the_budget_of_a_day_ends(start: Start) -> None:
    pair = start(when="always", daily_tokens="20")
    by = [pair.ask().json()["fieldlm"]["answered_by"] for _ in range(4)]
    assert by == ["large", "large", "small", "small"]  # 18 tokens each


def test_a_budget_that_is_spent_stays_spent_over_a_restart(tmp_path: Path, tiny_one: Bundle) -> None:
    def by() -> str:  # each starts anew on the same ledger, and does not know the large one's name yet
        with pair(tiny_one, tmp_path, {}, {"when": "always", "daily_tokens": "10"}) as started:
            return started.ask().json()["fieldlm"]["answered_by"]

    assert [by(), by()] == ["large", "small"]


def test_one_customers_budget_is_not_anothers(start: Start) -> None:
    pair = start(when="always", session_tokens="10")

    def by(session: str) -> str:
        return pair.ask(metadata={"session": session}).json()["fieldlm"]["answered_by"]

    assert [by("a"), by("a"), by("b")] == ["large", "small", "large"]


def test_a_deadline_that_the_large_one_cannot_meet_is_the_small_ones(start: Start) -> None:
    pair = start(says={"waits_s": 0.4})
    assert pair.ask(model="large").json()["fieldlm"]["answered_by"] == "large"
    answer = pair.ask(model="large", deadline_ms=300).json()
    assert answer["fieldlm"]["answered_by"] == "small"
    assert len(pair.large.asked) == 1


def test_what_does_not_fit_into_the_small_one_goes_to_the_large_one(start: Start) -> None:
    pair = start()
    answer = pair.ask("tea " * 2000).json()
    assert (answer["fieldlm"]["answered_by"], answer["fieldlm"]["escalation"]) == ("large", "too long")
    refused = pair.ask("tea " * 2000, large="never")
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_without_a_small_model_the_large_one_answers_all_and_forms_are_checked(start: Start) -> None:
    pair = start(bundle=open_bundle(no_model()), says={"say": saying('{"item": "tea", "count": 2}')})
    answer = pair.ask(response_format=FORM).json()
    assert answer["fieldlm"]["escalation"] == "no small model"
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"item": "tea", "count": 2}
    calls = pair.ask(tools=[TOOL], tool_choice="required")
    assert calls.status_code == 500, "it said no call, and there is nobody else"
    assert "form" in calls.json()["error"]["message"]


def test_without_a_small_model_and_without_a_network_the_error_says_why(start: Start) -> None:
    pair = start(bundle=open_bundle(no_model()), says={"say": refuse})
    answer = pair.ask()
    assert answer.status_code == 500
    assert "503" in answer.json()["error"]["message"]


def test_other_apis_go_the_same_way(start: Start) -> None:
    pair = start(when="always")
    said = [{"role": "user", "content": "Hello"}]
    ollama = httpx.post(f"{pair.server.url}/api/chat", json={"model": "large", "messages": said, "stream": False})
    assert ollama.json()["message"]["content"] == "from the large one"
    claude = httpx.post(
        f"{pair.server.url}/v1/messages", json={"model": "large", "messages": said, "max_tokens": 9}, timeout=60
    )
    assert claude.json()["content"][0]["text"] == "from the large one"
    responses = httpx.post(f"{pair.server.url}/v1/responses", json={"model": "large", "input": "Hello"}, timeout=60)
    assert responses.json()["output"][0]["content"][0]["text"] == "from the large one"
