"""The benchmark's own judgement: what counts as a valid call, as a promise kept, as an answer's first text."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving
from benchmarks.serving_calls import LONGEST, kiosk, snips
from benchmarks.serving_rows import Figure, ratio
from benchmarks.serving_sides import chat
from fieldlm.bench.result import interval
from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.core.files import canonical_json
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle
from tests.support.adapter_steps import write_adapter

ORDER = {"item": "tea", "size": "small", "takeaway": True, "note": ""}
CALL = {"name": "PlayMusic", "arguments": {"artist": "Nina Simone"}}
ROWS = [CALL, {"name": "GetWeather", "arguments": {"city": "Oslo"}}]


def figure(*pairs: tuple[float, float], bound: float = 1.0, at_least: bool = True) -> Figure:
    return ratio("speed", [a for a, _ in pairs], [b for _, b in pairs], bound, at_least=at_least)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("snips-train.jsonl", "snips-test.jsonl"):
        lines = (json.dumps({"text": f"text {i}", **row}) for i, row in enumerate(ROWS))
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


@contextmanager
def server(status: int, body: bytes) -> Generator[int]:
    """Answer every request the same, as a server that streams would."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield listening.server_address[1]
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def events(*documents: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(d).encode() + b"\n\n" for d in documents) + b"data: [DONE]\n\n"


def delta(text: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def test_an_order_that_keeps_to_the_schema_has_no_fault() -> None:
    assert kiosk().fault(json.dumps(ORDER)) == ""


@pytest.mark.parametrize(
    "answer",
    [
        "", '{"item": "tea"', "[]", json.dumps({**ORDER, "more": 1}), json.dumps({**ORDER, "item": "beer"}),
        json.dumps({**ORDER, "takeaway": "yes"}), json.dumps({**ORDER, "note": "x" * (LONGEST + 1)}),
    ],
)  # fmt: skip
def test_an_order_that_breaks_the_schema_has_one(answer: str) -> None:
    assert kiosk().fault(answer)


def test_the_schema_of_snips_is_that_of_the_training_split(data: Path) -> None:
    calls = snips(data)
    assert [one["properties"]["name"]["const"] for one in calls.schema["anyOf"]] == ["GetWeather", "PlayMusic"]
    assert calls.fault(json.dumps(CALL)) == ""
    assert calls.fault(json.dumps({**CALL, "name": "GetWeather"})), "an artist is no slot of the weather"
    assert calls.fault(json.dumps({**CALL, "arguments": {"artist": 3}}))
    assert calls.fault(json.dumps({"name": "PlayMusic"}))


def test_every_turn_asks_something_else() -> None:
    first, second = (kiosk().bodies(turn, 4) for turn in (0, 1))
    texts = [body["messages"][-1]["content"] for body in (*first, *second)]
    assert len(set(texts)) == 8


def test_a_promise_holds_by_its_median_and_surely_by_its_interval() -> None:
    assert serving.verdict(figure((11.9, 10), (12, 10), (12.1, 10))) == "yes"
    assert serving.verdict(figure((9, 10), (12, 10), (13, 10))) == "yes, within the noise"
    assert serving.verdict(figure((9, 10), (8, 10), (13, 10))) == "no"
    assert serving.verdict(figure((9, 10), (9.1, 10), (8.9, 10), at_least=False)) == "yes"


def test_ratios_are_taken_within_a_round() -> None:
    found = figure((10, 5), (2, 1), (40, 20))
    assert found.value.samples == (2.0, 2.0, 2.0), "a machine that slows down slows both"


def test_the_first_text_is_not_the_event_that_opens_the_answer() -> None:
    body = events(delta(None), delta(""), delta("Hel"), delta("lo"), {"choices": [], "usage": {"completion_tokens": 7}})
    with server(200, body) as port:
        found = chat("it", port, {"messages": []})
    assert (found.text, found.tokens) == ("Hello", 7)
    assert 0 < found.first_s <= found.whole_s


def test_a_refusal_is_one_line_with_the_servers_reason() -> None:
    with (
        server(400, json.dumps({"error": {"message": "response_format is not supported yet"}}).encode()) as port,
        pytest.raises(UnavailableError, match="it answers 400: response_format is not supported yet"),
    ):
        chat("it", port, {"messages": []})


def test_an_answer_that_fails_in_its_middle_is_no_answer() -> None:
    with (
        server(200, events(delta("Hel"), {"error": {"message": "out of memory"}})) as port,
        pytest.raises(UnavailableError, match="the answer failed: out of memory"),
    ):
        chat("it", port, {"messages": []})


def test_the_adapter_of_the_benchmark_loads_and_changes_all_layers(smollm2_gguf: Path, tmp_path: Path) -> None:
    write_adapter(smollm2_gguf, tmp_path / "adapter.gguf", rank=16, spread=0.002)
    engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=64, parallel=1))
    try:
        engine.load_adapter("it", tmp_path / "adapter.gguf")
        chunks = list(engine.start(engine.tokenize("tea"), Sampling(max_tokens=2), adapter="it"))
    finally:
        engine.close()
    assert chunks[-1].outcome in ("length", "stop")


def test_a_row_that_is_measured_is_not_measured_again(
    base_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "rounds": 3, "threads": 1, "tokens": 96, "context": 2048, "bundle": base_bundle.generation, "calls": "kiosk",
    }  # fmt: skip
    known = Figure(what="decode in-process", value=interval([1.04, 1.05, 1.06]), bound=0.97)
    report = serving.Report(environment={}, rows={"decode": serving.Row(settings=settings, figures=(known,))})
    (tmp_path / "r.json").write_bytes(canonical_json(report))
    asked = ["--rows", "decode", "--rounds", "3", "--threads", "1", "--json", str(tmp_path / "r.json")]
    assert serving.main([*asked, "--bundle", str(base_bundle.folder)]) == 0
    assert "decode in-process  1.05 [1.03, 1.07] ×  ≥ 0.97 ×  yes" in capsys.readouterr().out


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"rows": 3}')
    with pytest.raises(InputError, match="is not a report of this program"):
        serving.load(tmp_path / "r.json")


def test_a_row_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serving.main(["--rows", "decode,dance"])
    assert "no row is called dance; there are decode, http" in capsys.readouterr().err
