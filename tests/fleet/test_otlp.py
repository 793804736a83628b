"""What leaves by OTLP, as a receiver reads it with the official protobufs."""

import gzip
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.fleet.command import main

SAID = "two flat whites for Ms Hamilton"


class Receiver(http.server.ThreadingHTTPServer):
    """An OTLP/HTTP receiver: answers 503 as often as it is told to, then takes what comes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.refusals = 0
        self.refusal = 503
        self.page = b""
        self.rejects = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Span]:
        return [s for got in self.got for r in got.resource_spans for scope in r.scope_spans for s in scope.spans]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        receiver = self.server
        assert isinstance(receiver, Receiver)
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver.paths.append(self.path)
        receiver.keys.append(self.headers.get("x-api-key", ""))
        if receiver.refusals or receiver.refusal != 503:
            receiver.refusals -= 1
            self.send_response(receiver.refusal)
            self.send_header("retry-after", "0")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        assert self.headers["content-type"] == "application/x-protobuf"
        receiver.got.append(ExportTraceServiceRequest.FromString(gzip.decompress(body)))
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = receiver.rejects
        body = receiver.page or answer.SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    now_ms = time.time_ns() // 1_000_000
    usual = Record(
        device="kiosk-1",
        epoch=7,
        stream="gen",
        seq=1,
        kind="generation",
        wall_ms=now_ms,
        generation="a1b2",
        model="kiosk",
        response="chatcmpl-1",
        session="5e55",
        outcome="stop",
        prompt_tokens=120,
        completion_tokens=21,
        cached_tokens=100,
        queue_ms=1.5,
        ttft_ms=80.0,
        duration_ms=500.5,
        prompt=SAID,
        answer=SAID,
    )
    failed = msgspec.structs.replace(usual, seq=2, outcome="preempted")
    old = msgspec.structs.replace(usual, seq=3, wall_ms=now_ms - 48 * 3_600_000)
    other = msgspec.structs.replace(usual, device="kiosk-2", seq=1)
    with Store(tmp_path) as made:
        made.append([block.parse(block.encode(part)) for part in ([usual, failed, old], [other])])
    return tmp_path


def attributes(owner: Span) -> dict[str, object]:
    values = {each.key: each.value for each in owner.attributes}
    return {key: getattr(value, value.WhichOneof("value") or "string_value") for key, value in values.items()}


def test_an_answer_is_a_span_under_the_names_of_the_conventions(store: Path, receiver: Receiver) -> None:
    assert main(["--store", str(store), "--otlp", receiver.url, "--json"]) == 0
    assert receiver.paths == ["/v1/traces"]
    first, second, third = receiver.spans()
    said = attributes(first)
    assert [value.string_value for value in said.pop("gen_ai.response.finish_reasons").values] == ["stop"]  # type: ignore[attr-defined]
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "fieldlm",
        "gen_ai.request.model": "kiosk",
        "gen_ai.response.model": "kiosk",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.conversation.id": "5e55",
        "gen_ai.usage.input_tokens": 120,
        "gen_ai.usage.output_tokens": 21,
        "gen_ai.usage.cache_read.input_tokens": 100,
        "fieldlm.queue_ms": 1.5,
        "fieldlm.ttft_ms": 80.0,
    }
    assert (first.name, first.kind, len(first.trace_id), len(first.span_id)) == ("chat kiosk", 1, 16, 8)
    assert first.end_time_unix_nano - first.start_time_unix_nano == 500_500_000
    assert first.status.code == Status.STATUS_CODE_UNSET
    assert (second.status.code, attributes(second)["error.type"]) == (Status.STATUS_CODE_ERROR, "preempted")
    assert len({first.span_id, second.span_id, third.span_id}) == 3
    devices = [
        {each.key: each.value.string_value for each in r.resource.attributes}["service.instance.id"]
        for r in receiver.got[0].resource_spans
    ]
    assert devices == ["kiosk-1", "kiosk-2"]


def test_what_people_said_does_not_leave(store: Path, receiver: Receiver) -> None:
    main(["--store", str(store), "--otlp", receiver.url])
    assert SAID.encode() not in receiver.got[0].SerializeToString()


def test_a_receiver_gets_the_key_that_it_asks_for(
    store: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=of%20the%20house")
    assert main(["--store", str(store), "--otlp", receiver.url]) == 0
    assert receiver.keys == ["of the house"]


def test_a_page_at_that_address_is_no_receiver(store: Path, receiver: Receiver) -> None:
    receiver.page = b"<html>Sign in</html>"
    with pytest.raises(UnavailableError, match="is no OTLP receiver"):
        main(["--store", str(store), "--otlp", receiver.url])


def test_a_receiver_that_refuses_is_quoted(store: Path, receiver: Receiver) -> None:
    receiver.refusal = 401
    with pytest.raises(UnavailableError, match="answered 401 Unauthorized"):
        main(["--store", str(store), "--otlp", receiver.url])
    assert len(receiver.paths) == 1


def test_what_is_sent_again_is_the_same_span(store: Path, receiver: Receiver) -> None:
    receiver.refusals = 2
    for _ in range(2):
        assert main(["--store", str(store), "--otlp", f"{receiver.url}/v1/traces"]) == 0
    ids = [each.span_id for each in receiver.spans()]
    assert (len(ids), len(set(ids)), len(receiver.paths)) == (6, 3, 4)


def test_rejected_spans_make_the_answer_no(store: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    receiver.rejects = 1
    assert main(["--store", str(store), "--otlp", receiver.url, "--since-h", "72"]) == 1
    assert "4 spans sent" in capsys.readouterr().out


def test_a_receiver_that_is_away_or_none_is_said_in_a_line(store: Path) -> None:
    with pytest.raises(UnavailableError, match="is away"):
        main(["--store", str(store), "--otlp", "http://127.0.0.1:9"])
    with pytest.raises(InputError, match="is no OTLP receiver"):
        main(["--store", str(store), "--otlp", "ftp://nowhere"])
