"""The large model's endpoint as it may be met: slow, gone, refusing, with other habits."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest

from fieldlm.escalation.large_model import AskHandle, LargeModel, LargeModelError, LargeReply
from tests.support.large_server import large_server

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def saying(what: str | int) -> Callable[[dict[str, Any]], str | int]:
    return lambda _: what


def ask(model: LargeModel, *, within_s: float | None = None, said: list[str] | None = None) -> LargeReply:
    return model.ask(HELLO, within_s=within_s, on_text=(said if said is not None else []).append, handle=AskHandle())


def test_its_only_models_name_is_asked_for_once() -> None:
    with large_server(names=("the-one",)) as server:
        model = LargeModel(server.url)
        for _ in range(2):
            assert ask(model).text == "from the large one"
    assert [body["model"] for body in server.asked] == ["the-one", "the-one"]
    assert model.label == "the-one"


def test_of_several_models_one_has_to_be_named() -> None:
    with large_server(names=("a", "b")) as server:
        with pytest.raises(LargeModelError, match="2 models; name one with the setting large_model"):
            ask(LargeModel(server.url))
        assert ask(LargeModel(server.url, name="b")).outcome == "stop"


def test_the_key_goes_with_every_request() -> None:
    with large_server() as server:
        ask(LargeModel(server.url, name="x", key="s3cret"))
    assert server.keys == ["Bearer s3cret"]


def test_nobody_waits_for_what_is_away_until_the_pause_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldlm.escalation.large_model.PAUSE_S", 0.2)
    model = LargeModel("http://127.0.0.1:9/v1", name="x")
    assert model.is_reachable
    with pytest.raises(LargeModelError):
        ask(model)
    assert not model.is_reachable
    assert "refused" in model.problem
    time.sleep(0.25)
    assert model.is_reachable
    with pytest.raises(LargeModelError):
        ask(model)
    time.sleep(0.25)
    assert not model.is_reachable, "the second pause is longer"


@pytest.mark.parametrize(("status", "is_left_alone"), [(400, False), (401, True), (429, True), (500, True)])
def test_a_refusal_of_one_request_is_no_reason_to_leave_it_alone(status: int, is_left_alone: bool) -> None:
    with large_server(say=saying(status)) as server:
        model = LargeModel(server.url, name="x")
        with pytest.raises(LargeModelError, match=f"HTTP {status}.*told to say"):
            ask(model)
    assert model.is_reachable is not is_left_alone


def test_what_is_late_is_given_up_and_remembered_as_slow() -> None:
    with large_server(waits_s=5.0) as server:
        model = LargeModel(server.url, name="x")
        began_s = time.monotonic()
        with pytest.raises(LargeModelError, match="in time"):
            ask(model, within_s=0.3)
        assert time.monotonic() - began_s < 4
        assert model.foreseen_s() == pytest.approx(0.3)
        assert model.is_reachable, "it had little time, which is not its fault"


def test_another_thread_can_stop_it_while_it_speaks() -> None:
    with large_server(say=saying("word " * 20_000)) as server:
        model = LargeModel(server.url, name="x")
        handle, heard = AskHandle(), threading.Event()

        def hear(_: str) -> None:
            heard.set()
            time.sleep(0.001)

        ended: list[BaseException] = []

        def run() -> None:
            try:
                model.ask(HELLO, within_s=None, on_text=hear, handle=handle)
            except LargeModelError as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert heard.wait(20)
        handle.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert len(ended) == 1
        assert model.is_reachable, "who leaves takes it from nobody else"


def test_an_answer_that_ends_in_the_middle_is_none() -> None:
    with large_server(breaks_after=8) as server:
        said: list[str] = []
        with pytest.raises(LargeModelError, match="in the middle"):
            ask(LargeModel(server.url, name="x"), said=said)
        assert "".join(said) == "from the"


def test_one_that_stalls_in_the_middle_is_given_up_at_the_deadline() -> None:
    never = threading.Event()
    with large_server(after_first=never) as server:
        model = LargeModel(server.url, name="x")
        said: list[str] = []
        with pytest.raises(LargeModelError, match="in time"):
            ask(model, within_s=0.5, said=said)
        assert said == ["from"]
        assert not never.is_set()
        assert model.is_reachable
        never.set()


def raw_server(head: bytes, pieces: Iterable[bytes], gap_s: float = 0.0) -> str:
    """Serve bytes to whoever connects, one connection at a time, and return its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                asked = b""
                # To the end of its body: who closes before resets the connection.
                while not asked.endswith(b"}") and (piece := connection.recv(1 << 16)):
                    asked += piece
                connection.sendall(head)
                for sent in pieces:
                    connection.sendall(sent)
                    time.sleep(gap_s)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
DOCUMENT = STREAM.replace(b"text/event-stream", b"application/json")
END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices": [{"delta": {"content": "\xff"}}]}',
        b'{"choices": [{"delta": {"content": [{"type": "text"}]}}]}',
        b'{"choices": ["x"]}',
        b'{"usage": "x"}',
        b'{"usage": {"prompt_tokens": "many"}}',
        b'{"choices": [{"delta": {"tool_calls": [{"function": {"name": "a", "arguments": {"a": 1}}}]}}]}',
        b'{"a":' * 50_000,
    ],
)
def test_what_is_no_chat_completion_is_no_answer_and_no_crash(event: bytes) -> None:
    model = LargeModel(raw_server(STREAM, [b"data: " + event + b"\n\n" + END]), name="x")
    with pytest.raises(LargeModelError, match="no chat completion"):
        ask(model)


@pytest.mark.parametrize(("head", "piece"), [(STREAM, b": ping\n\n"), (DOCUMENT, b" ")])
def test_signs_of_life_do_not_hold_a_request_beyond_its_deadline(head: bytes, piece: bytes) -> None:
    model = LargeModel(raw_server(head, itertools.repeat(piece), gap_s=0.05), name="x")
    with pytest.raises(LargeModelError, match="in time"):
        ask(model, within_s=0.3)
    assert model.is_reachable, "it had little time, which is not its fault"


def test_signs_of_life_alone_are_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("large_model", "large_reply"):
        monkeypatch.setattr(f"fieldlm.escalation.{module}.SILENCE_S", 0.3)
    model = LargeModel(raw_server(STREAM, itertools.repeat(b": ping\n\n"), gap_s=0.05), name="x")
    with pytest.raises(LargeModelError, match="nothing in time"):
        ask(model)
    assert not model.is_reachable


def test_without_time_it_is_not_asked() -> None:
    with large_server() as server, pytest.raises(LargeModelError, match="no time left"):
        ask(LargeModel(server.url, name="x"), within_s=0.0)
    assert not server.asked


def test_an_error_that_is_null_is_none_and_a_document_may_hold_one() -> None:
    said = b'data: {"error": null, "choices": [{"delta": {"content": "hi"}}]}\n\n' + END
    assert ask(LargeModel(raw_server(STREAM, [said]), name="x")).text == "hi"
    refusing = LargeModel(raw_server(DOCUMENT, [b'{"error": {"message": "no quota"}}']), name="x")
    with pytest.raises(LargeModelError, match="no quota"):
        ask(refusing)


def test_the_key_is_not_repeated_where_the_endpoint_repeats_it() -> None:
    said = b'{"error": {"message": "unknown key s3cret"}}'
    model = LargeModel(raw_server(DOCUMENT.replace(b"200 OK", b"401 No"), [said]), name="x", key="s3cret")
    with pytest.raises(LargeModelError, match="unknown key") as refused:
        ask(model)
    assert "s3cret" not in str(refused.value) + str(model.status())


def test_calls_have_a_bound_as_text_has() -> None:
    call = b'data: {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "%s"}}]}}]}\n\n' % (b"x" * 60_000)
    with pytest.raises(LargeModelError, match="more than"):
        ask(LargeModel(raw_server(STREAM, [call] * 20), name="x"))


def test_a_client_that_leaves_is_no_failure_of_the_large_one() -> None:
    with large_server(say=saying("word " * 20_000)) as server:
        model, handle = LargeModel(server.url, name="x"), AskHandle()
        with pytest.raises(LargeModelError, match="nobody wants"):
            model.ask(HELLO, within_s=None, on_text=lambda _: handle.stop(), handle=handle)
    assert model.is_reachable
    assert not model.problem


def test_an_endpoint_that_wants_the_limit_by_its_new_name_gets_it() -> None:
    def say(body: dict[str, Any]) -> str | int:
        return 400 if "max_tokens" in body else "from the large one"

    with large_server(say=say, refusal="use max_completion_tokens instead of max_tokens") as server:
        model = LargeModel(server.url, name="x")
        body = {**HELLO, "max_tokens": 9}
        for _ in range(2):
            model.ask(body, within_s=None, on_text=lambda _: None, handle=AskHandle())
    limits = [{name: asked[name] for name in asked if name.startswith("max_")} for asked in server.asked]
    assert limits == [{"max_tokens": 9}, {"max_completion_tokens": 9}, {"max_completion_tokens": 9}]


def test_one_question_after_the_other_goes_over_one_connection() -> None:
    with large_server() as server:
        model = LargeModel(server.url)
        for _ in range(5):
            assert ask(model).text == "from the large one"
    assert server.connections == 1


def test_a_stream_that_does_not_end_after_its_last_event_costs_a_connection_and_no_time() -> None:
    said = b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    model = LargeModel(raw_server(STREAM, [said, b"x"], gap_s=15.0), name="x")
    assert ask(model, within_s=20.0).text == "hi"


def test_who_hangs_up_pays_for_what_was_said() -> None:
    with large_server(say=saying("word " * 20_000)) as server:
        model, handle, heard = LargeModel(server.url, name="x"), AskHandle(), list[str]()

        def hear(text: str) -> None:
            heard.append(text)
            if len(heard) == 9:
                handle.stop()

        with pytest.raises(LargeModelError, match="nobody wants") as ended:
            model.ask(HELLO, within_s=None, on_text=hear, handle=handle)
    partial = ended.value.partial
    assert partial is not None
    assert partial.completion_tokens == len(heard)
    assert partial.prompt_tokens > 10, "the question was read, whatever came of it"


def test_what_an_endpoint_counted_says_what_another_question_has() -> None:
    with large_server(prompt_tokens=1) as server:
        model = LargeModel(server.url, name="x")
        ask(model)
        server.breaks_after = 4
        with pytest.raises(LargeModelError) as ended:
            ask(model)
    assert ended.value.partial is not None
    assert ended.value.partial.prompt_tokens == 1
