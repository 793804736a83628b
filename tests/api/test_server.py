import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange, Feedback
from fieldlm.api.models.admission import MAX_WAITING
from fieldlm.core.errors import InputError
from fieldlm.engines import EngineOptions
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.inference.warmup import warm
from fieldlm.network.http_server import HttpServer, listening
from fieldlm.network.json_api import BODY_LIMIT
from tests.support.material import lora_gguf, tiny_bundle

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = [{"role": "user", "content": "Repeat the word tea for ever: tea tea tea tea tea tea"}]
CHAT = "/v1/chat/completions"


@dataclass
class Kiosk:
    """A running server, a client for it, and what it told telemetry."""

    live: Generations
    client: httpx.Client
    url: str
    exchanges: list[Exchange] = field(default_factory=list[Exchange])

    @property
    def engine(self) -> LlamaEngine:
        return cast(LlamaEngine, self.live.current.engine)

    def ask(self, **body: Any) -> httpx.Response:
        return self.client.post(CHAT, json={"messages": HELLO, "max_tokens": 4, **body})


@pytest.fixture(scope="module")
def kiosk(base_bundle: Bundle) -> Iterator[Kiosk]:
    live = Generations(base_bundle, EngineOptions(threads=1, context=512, parallel=2))
    exchanges: list[Exchange] = []

    def known(given: Feedback) -> bool:
        return any(exchange.id == given.id for exchange in exchanges)

    app = make_app(live, exchanges.append, ready=warm(live), on_feedback=known)
    with listening(app) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        yield Kiosk(live, client, server.url, exchanges)
    live.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "this never became true"
        time.sleep(0.005)


def test_what_cannot_fit_is_refused_before_it_is_tokenised(kiosk: Kiosk) -> None:
    for role, text in (("user", " " * 3_000_000), ("user", "word " * 90_000)):
        error = kiosk.ask(messages=[{"role": role, "content": text}]).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "at least" in error["message"]
        assert "maximum context length" in error["message"]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 8000
    assert kiosk.ask(messages=turns).json()["error"]["code"] == "context_length_exceeded"
    predicted = {"type": "content", "content": "x" * 3_000_000}
    assert kiosk.ask(prediction=predicted).json()["error"]["param"] == "prediction"
    vectors = kiosk.client.post("/v1/embeddings", json={"input": ["a", "x" * 3_000_000]}).json()["error"]
    assert (vectors["param"], "at least" in vectors["message"]) == ("input", True)


def events(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line:
            assert line.startswith("data: ")
            yield line.removeprefix("data: ")


def test_a_chat_is_answered_and_told_to_telemetry(kiosk: Kiosk) -> None:
    metadata = {"session": "till-3", "consent": "metrics", "route": "order", "else": "x"}
    document = kiosk.ask(metadata=metadata, user="u1").json()
    exchange = kiosk.exchanges[-1]
    assert document["id"] == exchange.id
    assert document["choices"][0]["message"]["content"] == exchange.answer
    assert document["choices"][0]["finish_reason"] == exchange.outcome == "length"
    assert document["usage"]["completion_tokens"] == exchange.completion_tokens == 4
    assert document["usage"]["prompt_tokens"] == exchange.prompt_tokens > 0
    assert document["system_fingerprint"] == document["fieldlm"]["generation"] == exchange.generation
    assert set(document["fieldlm"]["timings"]) == {"queue_ms", "prefill_ms", "decode_ms", "ttft_ms"}
    assert (exchange.session, exchange.consent, exchange.route) == ("till-3", "metrics", "order")
    assert exchange.messages == HELLO
    assert exchange.ttft_s is not None
    assert 0 < exchange.ttft_s <= exchange.duration_s


def test_a_stream_says_the_same_as_a_whole_answer(kiosk: Kiosk) -> None:
    whole = kiosk.ask(max_tokens=8).json()["choices"][0]["message"]["content"]
    body = {"messages": HELLO, "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    with kiosk.client.stream("POST", CHAT, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done = list(events(response))
    *parts, last, usage = map(json.loads, chunks)
    assert done == "[DONE]"
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == whole
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(part["choices"][0]["finish_reason"] is None for part in parts)
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["fieldlm"]["generation"] == kiosk.live.current.bundle.generation
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8


def test_a_plain_completion_goes_on_with_the_text(kiosk: Kiosk) -> None:
    body = {"prompt": "one two three four", "max_tokens": 3}
    whole = kiosk.client.post("/v1/completions", json=body).json()
    assert whole["object"] == "text_completion"
    with kiosk.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        *chunks, done = list(events(response))
    assert done == "[DONE]"
    texts = [choice["text"] for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert "".join(texts) == whole["choices"][0]["text"] != ""


def test_text_parts_and_the_developer_role_are_understood(kiosk: Kiosk) -> None:
    parts = [{"type": "text", "text": "Hello"}]
    plain = kiosk.ask(messages=[{"role": "system", "content": "Be brief."}, *HELLO]).json()
    same = kiosk.ask(
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    ).json()
    assert same["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]


def test_stop_and_seed_are_honoured(kiosk: Kiosk) -> None:
    def say(**body: Any) -> str:
        return kiosk.ask(max_tokens=8, **body).json()["choices"][0]["message"]["content"]

    whole = say()
    assert say(stop=whole[3:5]) == whole[: whole.index(whole[3:5])]
    assert say(stop=["never", whole[3:5]]) == whole[: whole.index(whole[3:5])]
    hot = {"temperature": 1.5, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 0}
    assert say(**hot) == say(**hot)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/chat/completions", "nothing is at /chat/completions; it is at /v1/chat/completions"),
        ("/models", "nothing is at /models; it is at /v1/models"),
        ("/v1/v1/completions", "nothing is at /v1/v1/completions; it is at /v1/completions"),
        ("/v1/metrics", "nothing is at /v1/metrics; it is at /metrics"),
        ("/completion", "nothing is at /completion"),
    ],
)
def test_who_asks_beside_it_is_told_where_it_is(kiosk: Kiosk, path: str, line: str) -> None:
    reply = kiosk.client.post(path, json={})
    assert (reply.status_code, reply.json()["error"]["message"]) == (404, line)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": "Hello"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_type"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_type"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
            "invalid_value",
        ),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 3}, "temperature", "invalid_type"),
        ({"top_p": -1}, "top_p", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_type"),
        ({"stop": ["a"] * 17}, "stop", "invalid_type"),
        ({"metadata": {"session": 3}}, "metadata[...]", "invalid_type"),
        ({"n": 9}, "n", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "invalid_type"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"functions": [{}]}, "functions[0].name", "invalid_type"),
        ({"response_schema": {}}, "response_schema", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"regex": "a", "grammar": 'root ::= "a"'}, "regex, grammar", "invalid_value"),
        ({"frequency_penalty": 3.0}, "frequency_penalty", "invalid_type"),
        ({"logit_bias": {"tea": 1}}, "logit_bias", "invalid_value"),
        ({"priority": "soon"}, "priority", "invalid_value"),
        ({"messages": [{"role": "user", "content": "word " * 900}]}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "word " * 90_000}]}, "messages", "context_length_exceeded"),
    ],
)
def test_a_wrong_request_is_refused_by_name(kiosk: Kiosk, change: dict[str, Any], param: str, code: str) -> None:
    response = kiosk.ask(**change)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"]


@pytest.mark.parametrize(
    "change",
    [{"n": 1}, {"tools": []}, {"tool_choice": "auto"}, {"response_format": {"type": "text"}}, {"temperature": None}],
)
def test_a_parameter_that_asks_for_nothing_new_is_accepted(kiosk: Kiosk, change: dict[str, Any]) -> None:
    assert kiosk.ask(**change).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b'{"messages": [}', b"\xff\xfe", b'{"messages": "\\ud800"}', b"[]", b"3"])
def test_a_body_that_is_not_json_is_refused(kiosk: Kiosk, body: bytes) -> None:
    response = kiosk.client.post(CHAT, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_json", "invalid_type")


def test_a_body_without_bounds_is_refused(kiosk: Kiosk) -> None:
    response = kiosk.client.post(CHAT, content=b" " * (BODY_LIMIT + 1))
    assert response.status_code == 413


def test_an_unknown_model_path_or_method_has_openais_shape(kiosk: Kiosk) -> None:
    answers = [
        (kiosk.ask(model="gpt-5"), 404),
        (kiosk.client.get("/v1/models/gpt-5"), 404),
        (kiosk.client.get("/nowhere"), 404),
        (kiosk.client.get(CHAT), 405),
    ]
    for response, status in answers:
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_the_model_is_listed_and_answers_to_its_name_and_generation(kiosk: Kiosk) -> None:
    (model,) = kiosk.client.get("/v1/models").json()["data"]
    assert model["fieldlm"]["generation"] == kiosk.live.current.bundle.generation
    assert kiosk.client.get(f"/v1/models/{model['id']}").json()["id"] == model["id"]
    assert kiosk.ask(model=model["id"]).status_code == 200
    assert kiosk.ask(model=model["fieldlm"]["generation"]).status_code == 200


def test_feedback_finds_its_answer(kiosk: Kiosk) -> None:
    response_id = kiosk.ask().json()["id"]
    good = kiosk.client.post("/v1/feedback", json={"id": response_id, "rating": "up", "correction": "Hi!"})
    assert good.status_code == 200
    assert kiosk.client.post("/v1/feedback", json={"id": "chatcmpl-0", "rating": "down"}).status_code == 404
    assert kiosk.client.post("/v1/feedback", json={"id": response_id, "rating": "meh"}).status_code == 400


def test_alive_is_not_ready(base_bundle: Bundle) -> None:
    reasons: list[str | None] = ["still loading"]
    live = Generations(base_bundle, EngineOptions(threads=1, context=128, parallel=1))
    app = make_app(live, lambda _: None, ready=lambda: reasons[0])
    with listening(app) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/health").status_code == 200
        refused = client.get("/ready")
        assert (refused.status_code, refused.json()["status"]) == (503, "still loading")
        reasons[0] = None
        assert client.get("/ready").status_code == 200
    live.close()


def test_ready_means_that_the_system_prompt_is_warm(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", system_prompt="You sell coffee. " * 10)
    live = Generations(bundle, EngineOptions(threads=1, context=256, parallel=1))
    ready = warm(live)
    wait_until(lambda: ready() is None)
    with listening(make_app(live, lambda _: None, ready=ready)) as server:
        document = httpx.post(server.url + CHAT, json={"messages": HELLO, "max_tokens": 1}, timeout=60).json()
    assert document["usage"]["prompt_tokens_details"]["cached_tokens"] > 40
    live.close()


def test_damaged_weights_are_a_server_error_and_never_ready(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", adapter=lora_gguf(tmp_path / "nan.gguf", scale=float("nan")))
    live = Generations(bundle, EngineOptions(threads=1, context=128, parallel=1))
    ready = warm(live)
    with listening(make_app(live, lambda _: None, ready=ready)) as server, httpx.Client(base_url=server.url) as client:
        wait_until(lambda: "damaged" in str(ready()))
        response = client.post(CHAT, json={"messages": HELLO}, timeout=60)
        assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
        streamed = client.post(CHAT, json={"messages": HELLO, "stream": True}, timeout=60)
        assert streamed.status_code == 500
        assert "damaged" in streamed.json()["error"]["message"]
    live.close()


def send_and_stay(kiosk: Kiosk, *, stream: bool, read: bool = False) -> socket.socket:
    body = json.dumps({"messages": ENDLESS, "max_tokens": 450, "stream": stream}).encode()
    made = socket.create_connection(("127.0.0.1", int(kiosk.url.rsplit(":", 1)[1])))
    made.sendall(
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    if read:
        assert made.recv(1)
    return made


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_sequence(kiosk: Kiosk, stream: bool) -> None:
    told = len(kiosk.exchanges)
    connection = send_and_stay(kiosk, stream=stream, read=stream)
    wait_until(lambda: kiosk.engine.running == 1)
    connection.close()
    wait_until(lambda: kiosk.engine.running == 0)
    wait_until(lambda: len(kiosk.exchanges) == told + 1)
    assert kiosk.exchanges[-1].outcome == "cancelled"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_the_queue_is_forgotten(kiosk: Kiosk, stream: bool) -> None:
    running = [send_and_stay(kiosk, stream=True) for _ in range(2)]
    wait_until(lambda: kiosk.engine.running == 2)
    queued = send_and_stay(kiosk, stream=stream)
    wait_until(lambda: kiosk.engine.waiting == 1)
    queued.close()
    wait_until(lambda: kiosk.engine.waiting == 0)
    assert kiosk.engine.running == 2
    for connection in running:
        connection.close()
    wait_until(lambda: kiosk.engine.running == 0)


def test_a_full_queue_is_refused_and_not_made_longer(kiosk: Kiosk) -> None:
    inside = kiosk.live.parallel + MAX_WAITING
    connections = [send_and_stay(kiosk, stream=True) for _ in range(inside)]
    wait_until(lambda: kiosk.engine.running + kiosk.engine.waiting == inside)
    response = kiosk.ask()
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["retry-after"]) >= 1
    for connection in connections:
        connection.close()
    wait_until(lambda: kiosk.engine.running + kiosk.engine.waiting == 0)
    assert kiosk.ask().status_code == 200


def test_a_switch_in_the_middle_of_a_stream_leaves_it_alone(base_bundle: Bundle, tmp_path: Path) -> None:
    live = Generations(base_bundle, EngineOptions(threads=1, context=256, parallel=2))
    other = tiny_bundle(tmp_path / "other", system_prompt="You sell tea.")
    body = {"messages": ENDLESS, "max_tokens": 60, "stream": True}
    with (
        listening(make_app(live, lambda _: None, ready=lambda: None)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        client.stream("POST", CHAT, json=body) as response,
    ):
        stream = events(response)
        first = json.loads(next(stream))
        live.switch(live.load(other))
        after = client.post(CHAT, json={"messages": HELLO, "max_tokens": 1}).json()
        *rest, done = list(stream)
    assert done == "[DONE]"
    assert {json.loads(chunk)["system_fingerprint"] for chunk in rest} == {first["system_fingerprint"]}
    assert first["system_fingerprint"] == base_bundle.generation
    assert after["system_fingerprint"] == other.generation
    live.close()


def test_a_unix_socket_serves_only_its_owner_and_goes_away(kiosk: Kiosk, tmp_path: Path) -> None:
    path = tmp_path / "run" / "fieldlm.sock"
    app = make_app(kiosk.live, lambda _: None, ready=lambda: None)
    with listening(app, unix_socket=path):
        assert path.stat().st_mode & 0o777 == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://device") as client:
            assert client.get("/health").json() == {"status": "ok"}
        with pytest.raises(InputError, match="cannot listen on"):
            HttpServer(app, unix_socket=path)
    assert not path.exists()


def test_a_taken_port_is_one_clear_line(kiosk: Kiosk) -> None:
    port = int(kiosk.url.rsplit(":", 1)[1])
    with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*choose another with --port"):
        HttpServer(None, port=port)


def test_stopping_ends_the_streams_and_returns(base_bundle: Bundle) -> None:
    live = Generations(base_bundle, EngineOptions(threads=1, context=256, parallel=1))
    server = HttpServer(make_app(live, lambda _: None, ready=lambda: None), port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    body = {"messages": ENDLESS, "max_tokens": 5, "stream": True}
    with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as response:
        stream = events(response)
        next(stream)
        server.stop()
        assert list(stream)[-1] == "[DONE]"
    thread.join(60)
    assert not thread.is_alive()
    live.close()


CALL = {"type": "function", "function": {"name": "goto", "arguments": '{"place": "door"}'}}
SPELT = {"tool_calls": [{"type": "function", "function": {"name": "goto", "arguments": {"place": "door"}}}]}


@pytest.mark.parametrize(
    ("correction", "text"),
    [
        ("two teas", "two teas"),
        ({"name": "order", "items": ["tée"]}, '{"name": "order", "items": ["tée"]}'),
        ([CALL], json.dumps(SPELT)),
        ({"tool_calls": [{"id": "call_1", **CALL}]}, json.dumps(SPELT)),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, json.dumps(SPELT)),
        ({"role": "assistant", "content": None, "function_call": CALL["function"]}, json.dumps(SPELT)),
        ([{"function": {"name": "goto", "arguments": {"place": "door"}}}], json.dumps(SPELT)),
        ({"role": "assistant", "content": "two teas"}, "two teas"),
    ],
)
def test_a_correction_is_words_an_object_or_calls(correction: object, text: str) -> None:
    assert Feedback(id="x", correction=correction).text == text  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "correction", ["", "   ", "\n", [], {"role": "assistant", "content": " "}, [{"name": "goto"}], {"tool_calls": [7]}]
)
def test_a_correction_that_says_nothing_is_refused(kiosk: Kiosk, correction: object) -> None:
    response_id = kiosk.ask(max_tokens=1).json()["id"]
    answer = kiosk.client.post("/v1/feedback", json={"id": response_id, "correction": correction})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "correction")


def test_what_was_rendered_is_told_with_the_exchange(kiosk: Kiosk) -> None:
    function = {"name": "goto", "description": "", "parameters": {"type": "object"}}
    call = {"id": "c1", "type": "function", "function": {"name": "goto", "arguments": "{}"}}
    said = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "arrived"},
    ]
    tools = [{"type": "function", "function": function}]
    body = {"messages": said, "tools": tools, "tool_choice": "required", "max_tokens": 4}
    assert kiosk.client.post(CHAT, json=body).status_code == 200
    exchange = kiosk.exchanges[-1]
    assert exchange.context["tools"] == tools
    assert [message["role"] for message in exchange.messages] == ["user", "assistant", "tool"]
    assert exchange.messages[1]["tool_calls"][0]["function"] == {"name": "goto", "arguments": {}}
    kiosk.client.post("/v1/completions", json={"prompt": "one two", "max_tokens": 1})
    assert kiosk.exchanges[-1].context == {"raw": True}
