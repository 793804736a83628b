"""Who waits long for the first word of a stream hears that somebody is there."""

import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from fieldlm.api import response_stream
from fieldlm.formats.bundle import Bundle
from tests.support.api_server import ApiServer, api_server

CHAT = "/v1/chat/completions"
ENDLESS = [{"role": "user", "content": "Repeat the word tea for ever: tea tea tea tea tea tea"}]
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}


@pytest.fixture(scope="module")
def server(base_bundle: Bundle) -> Iterator[ApiServer]:
    with api_server(base_bundle, parallel=1) as made:
        yield made


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_stream, "PING_S", 0.01)


@contextmanager
def stream(server: ApiServer, body: dict[str, Any], path: str = CHAT) -> Generator[Iterator[str]]:
    with httpx.stream("POST", server.url + path, json=body, timeout=60) as response:
        assert response.status_code == 200
        yield response.iter_lines()


def occupied(server: ApiServer, needs: ExitStack) -> None:
    """Have the one sequence taken until `needs` ends."""
    busy = {"messages": ENDLESS, "max_tokens": 400, "stream": True, "logit_bias": {"2": -100}}
    lines = needs.enter_context(stream(server, busy))
    assert any(line.startswith("data: ") for line in lines)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_a_comment_line_is_sent_until_there_are_words(server: ApiServer, path: str) -> None:
    with ExitStack() as busy:
        occupied(server, busy)
        with stream(server, {**BODY, "model": "smollm2-135m-instruct"}, path) as lines:
            assert [next(lines) for _ in range(4)] == [": ping", "", ": ping", ""]
            busy.close()
            said = [line for line in lines if line.startswith("data: ")]
    assert len(said) > 2
    assert said[-1] in ("data: [DONE]", 'data: {"type":"message_stop"}')


def test_an_answer_that_fails_after_it_says_so_in_the_stream(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stream(server, BODY) as lines:  # the first request of all is read slowly
        assert list(lines)
    monkeypatch.setattr(response_stream, "PING_S", 0.001)
    with stream(server, {**BODY, "max_tokens": 400, "logit_bias": {"2": -100}, "deadline_ms": 300}) as lines:
        said = list(lines)
    events = [json.loads(line.removeprefix("data: ")) for line in said if line.startswith("data: {")]
    assert said[0] == ": ping"
    assert [event["error"]["code"] for event in events if event.get("error")] == ["deadline_exceeded"]


def test_lines_that_know_no_comment_have_none(server: ApiServer) -> None:
    body = {"model": "smollm2-135m-instruct", "messages": BODY["messages"], "options": {"num_predict": 4}}
    with stream(server, body, "/api/chat") as lines:
        assert all(json.loads(line) for line in lines)
