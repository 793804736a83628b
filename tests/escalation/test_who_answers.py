"""Who answered, in records, ledger and counts: several answers, strange requests, deadlines, clients that leave."""

import itertools
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.catalogue.opening import no_model
from fieldlm.core.config import load_config
from fieldlm.escalation.policy import Escalation
from fieldlm.escalation.report import summary
from fieldlm.formats.bundle import Bundle, describe, open_bundle, write_bundle
from tests.formats.test_router import router
from tests.support.api_server import api_server
from tests.support.pairs import CHAT, Start, saying

SCHEMA = {
    "type": "object",
    "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["item", "count"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA}}


def test_two_answers_to_one_request_come_from_whom_they_come(start: Start) -> None:
    pair = start(when="always")
    answer = pair.ask(n=2).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["from the large one"] * 2
    assert len(pair.large.asked) == 2


def test_of_several_answers_the_record_is_that_of_the_first(start: Start) -> None:
    def say(_: dict[str, Any]) -> str | int:
        return 400 if len(pair.large.asked) == 1 else "from the large one"

    pair = start(when="always", says={"say": say})
    answer = pair.ask(n=2).json()
    exchange = pair.server.exchanges[0]
    by = {choice["message"]["content"]: choice["index"] for choice in answer["choices"]}
    assert "from the large one" in by
    assert (exchange.route == "large") is (exchange.answer == "from the large one")
    assert (exchange.model == "big-1") is (exchange.answer == "from the large one")


def test_what_a_request_says_beside_its_messages_stays_too(start: Start) -> None:
    pair = start(when="always", text="redacted")
    described = {"name": "order", "description": "for anna.berg@example.com", "parameters": SCHEMA}
    pair.ask(tools=[{"type": "function", "function": described}], tool_choice="auto", stop=["carl@example.com"])
    assert "@" not in json.dumps(pair.large.asked)
    assert len(pair.large.asked) == 1


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_large_answer_without_a_word_is_none(start: Start, finish: str) -> None:
    pair = start(when="always", says={"say": saying(""), "finish": finish})
    answer = pair.ask().json()
    assert answer["fieldlm"]["answered_by"] == "small"
    assert "said nothing" in answer["fieldlm"]["not_large"]


def test_the_small_one_does_not_answer_in_the_large_ones_name(start: Start) -> None:
    pair = start()
    for path, body in (("completions", {"prompt": "Hello"}), ("embeddings", {"input": "Hello"})):
        refused = httpx.post(f"{pair.server.url}/v1/{path}", json=body | {"model": "large"}, timeout=60)
        assert refused.status_code == 400
        assert "conversations" in refused.json()["error"]["message"]
    assert httpx.get(f"{pair.server.url}/v1/models/large").json()["owned_by"] == "large"


def test_who_wants_no_bound_sends_none(start: Start) -> None:
    pair = start(when="always")
    body = {"model": "large", "messages": [{"role": "user", "content": "Hello"}], "options": {"num_predict": -1}}
    assert httpx.post(f"{pair.server.url}/api/chat", json=body | {"stream": False}, timeout=60).status_code == 200
    assert "max_tokens" not in pair.large.asked[0]


def test_the_wait_for_the_large_one_is_no_wait_in_the_small_ones_queue(start: Start) -> None:
    pair = start(when="always", says={"say": saying(400), "waits_s": 0.3})
    assert pair.ask(max_queue_ms=100).json()["fieldlm"]["answered_by"] == "small"


def test_the_ledger_equals_what_was_sent(start: Start) -> None:
    pair = start(prompt_price="2", completion_price="10")
    bodies: list[dict[str, Any]] = [{"model": "large"}, {}, {"model": "large", "metadata": {"task": "order"}}]
    for body in bodies:
        assert pair.ask(**body).status_code == 200
    rows = pair.escalation.ledger.rows(days=1)
    large = [row for row in rows if row["model"] == "big-1"]
    assert [(row["task"], row["calls"]) for row in large] == [("", 1), ("order", 1)]
    assert sum(row["prompt_tokens"] for row in large) == 11 * len(pair.large.asked) == 22
    assert sum(row["cost"] for row in large) == pytest.approx(2 * (11 * 2 + 7 * 10) / 1e6)
    small = next(row for row in rows if row["model"] != "big-1")
    exchange = pair.server.exchanges[1]
    assert (small["prompt_tokens"], small["completion_tokens"]) == (exchange.prompt_tokens, exchange.completion_tokens)
    assert small["saved"] == pytest.approx((exchange.prompt_tokens * 2 + exchange.completion_tokens * 10) / 1e6)


def test_the_ledger_has_joules_what_people_thought_and_what_the_large_one_alone_would_have_cost(start: Start) -> None:
    used = itertools.count(step=5.0)
    pair = start(prompt_price="2", completion_price="10", joules=lambda: next(used))
    small = pair.ask(metadata={"task": "order"}).json()["id"]
    large = pair.ask(model="large").json()["id"]
    for response, is_right in ((small, False), (small, True), (small, True), (large, False), ("unknown", True)):
        pair.escalation.judged(response, is_right=is_right)
    told = summary(pair.escalation, 1)
    rows = {row["model"] == "big-1": row for row in told["tasks"]}
    assert [(rows[at]["liked"], rows[at]["disliked"], rows[at]["calls"]) for at in (False, True)] == [
        (1, 0, 1),
        (0, 1, 1),
    ]
    assert [rows[at]["joules"] for at in (False, True)] == [5.0, 5.0]
    assert told["without_small"] == pytest.approx(told["total"]["cost"] + told["total"]["saved"])
    metrics = httpx.get(f"{pair.server.url}/metrics", timeout=20).text
    assert 'fieldlm_ledger_tokens_total{by="large"} 18.0' in metrics
    assert 'fieldlm_ledger_joules_total{by="small"} 5.0' in metrics
    assert 'fieldlm_ledger_disliked_total{by="large"} 1.0' in metrics


def test_a_client_that_leaves_ends_the_large_answer(start: Start) -> None:
    pair = start(when="always", says={"waits_s": 30.0})
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(pair.server.url + CHAT, json={"messages": [{"role": "user", "content": "Hello"}]}, timeout=0.5)
    end_s = time.monotonic() + 20
    while not pair.server.exchanges and time.monotonic() < end_s:
        time.sleep(0.02)
    assert pair.server.exchanges[0].outcome == "cancelled"


def test_a_client_that_leaves_in_the_middle_spends_its_budget(start: Start) -> None:
    pair = start(when="always", prompt_price="2", says={"say": saying("word " * 200), "after_first": threading.Event()})
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "metadata": {"session": "s1"}}
    with httpx.stream("POST", pair.server.url + CHAT, json=body, timeout=60) as response:
        next(response.iter_lines())
    end_s = time.monotonic() + 20
    while not pair.escalation.ledger.tokens_today("s1") and time.monotonic() < end_s:
        time.sleep(0.02)
    assert pair.escalation.ledger.tokens_today("s1") > 10
    (row,) = pair.escalation.ledger.rows(days=1)
    assert (row["calls"], row["failed"], row["cost"] > 0) == (1, 1, True)


def test_without_a_small_model_what_is_late_is_said_to_be_late(start: Start) -> None:
    pair = start(bundle=open_bundle(no_model()), says={"waits_s": 3.0})
    answer = pair.ask(deadline_ms=300)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_real_model_as_the_large_one(start: Start, base_bundle: Bundle, tmp_path: Path, tiny_one: Bundle) -> None:
    with api_server(base_bundle) as large:
        flags = {"large": f"{large.url}/v1", "state": str(tmp_path / "other"), "large_when": "always"}
        escalation = Escalation(load_config(flags, {"HOME": str(tmp_path)}))
        with api_server(tiny_one, large=escalation) as server:
            body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 12}
            through = httpx.post(server.url + CHAT, json=body, timeout=60).json()
            direct = httpx.post(large.url + CHAT, json=body, timeout=60).json()
        escalation.close()
    assert through["choices"][0]["message"] == direct["choices"][0]["message"]
    assert through["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]


def test_what_the_router_knows_no_task_for_goes_up_and_the_others_bear_their_task(
    start: Start, tiny_one: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "routed"
    shutil.copytree(tiny_one.folder, folder)
    (folder / "router.npz").write_bytes(router(least=0.6).packed())
    files = (*tiny_one.manifest.files, describe(folder, "router.npz", "router"))
    manifest = msgspec.structs.replace(tiny_one.manifest, files=files)
    pair = start(bundle=write_bundle(folder, manifest, Ed25519PrivateKey.generate()))
    known, unknown = pair.ask("a tea please").json()["fieldlm"], pair.ask("sing a song").json()["fieldlm"]
    assert (known["answered_by"], known["task"]) == ("small", "t1")
    assert (unknown["answered_by"], unknown["escalation"]) == ("large", "unknown task")
    assert {row["task"] for row in pair.escalation.ledger.rows(days=1)} == {"t1", ""}
    assert pair.ask("sing a song", large="never").json()["fieldlm"]["answered_by"] == "small"


def test_what_no_endpoint_can_be_told_stays_with_the_small_one(start: Start) -> None:
    pair = start(when="always")
    formed = pair.ask(regex="[a-z]{3}").json()
    told = pair.ask(logprobs=True).json()
    assert [answer["fieldlm"]["answered_by"] for answer in (formed, told)] == ["small", "small"]
    assert told["choices"][0]["logprobs"]["content"]
    assert not pair.large.asked


def test_a_large_answer_that_was_cut_off_does_not_take_a_forms_place(start: Start) -> None:
    pair = start(says={"say": saying('{"item": "te'), "finish": "length"})
    answer = pair.ask(model="large", response_format=FORM, max_tokens=64).json()
    assert answer["fieldlm"]["answered_by"] == "small"
    assert "cut off" in answer["fieldlm"]["not_large"]


def test_before_a_deadline_the_small_one_keeps_its_time(start: Start) -> None:
    pair = start()
    # Its time is that of a long answer, so that a short one has plenty of it on however busy a machine.
    assert pair.ask(max_tokens=400).status_code == 200
    assert pair.escalation.small_s() > 0
    pair.large.waits_s = 30.0
    answer = pair.ask(model="large", max_tokens=1, deadline_ms=4000)
    assert answer.status_code == 200
    assert answer.json()["fieldlm"]["answered_by"] == "small"
