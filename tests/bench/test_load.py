"""A running server under load: what people wait for, as it is counted, and a soak that goes on where it ended."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from fieldlm.bench import load, soak
from fieldlm.bench.load import Level, LoadAnswer, LoadSpec, percentiles, run_level, summary
from fieldlm.bench.load_report import describe_load, describe_soak, load_pages, soak_document, soak_pages
from fieldlm.bench.soak import Soak, SoakHead, SoakWindow, open_soak
from fieldlm.cli.bench import main
from fieldlm.core.errors import InputError
from fieldlm.formats.bundle import Bundle
from fieldlm.network.http_client import HttpClient, is_here
from tests.support.api_server import ApiServer, api_server

SPEC = LoadSpec(model="m", prompt_tokens=8, gen_tokens=4)
ONE = Level(concurrency=1)
HEAD = SoakHead(format=soak.FORMAT, url="http://x", spec=SPEC, level=ONE, window_s=30.0, is_here=True)
WINDOW = SoakWindow(ended_wall_s=0.0, answers=3, failed=0, tokens=90, tokens_per_s=30.0, ttft_s=0.2)


class Clockwork(http.server.BaseHTTPRequestHandler):
    """A server that takes its time to the millisecond, one request after the other, and fails where it is told to."""

    protocol_version = "HTTP/1.1"
    first_s, gap_s, pieces = 0.05, 0.02, 4
    fails = False
    one_at_a_time = threading.Lock()
    prompts: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "m"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.prompts.append(body["messages"][0]["content"])
        if self.fails:
            self._answer(503, json.dumps({"error": {"message": "no room"}}).encode(), "application/json")
            return
        with self.one_at_a_time:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(b": ping\n\n")
            time.sleep(self.first_s)
            for number in range(self.pieces):
                self._event({"choices": [{"delta": {"content": f"{number} "}}]})
                time.sleep(self.gap_s)
            words = len(body["messages"][0]["content"].split())
            details = {"cached_tokens": 2}
            usage = {"prompt_tokens": words, "completion_tokens": self.pieces, "prompt_tokens_details": details}
            self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("FIELDLM_API_KEY", raising=False)
    monkeypatch.setattr(Clockwork, "prompts", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Clockwork)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def served(base_bundle: Bundle) -> Iterator[ApiServer]:
    with api_server(base_bundle) as server:
        yield server


def test_what_is_counted_is_what_the_server_did(clockwork: str) -> None:
    asked = run_level(HttpClient(clockwork), SPEC, ONE, 3, name="a", on_end=lambda _: None)
    assert [(each.tokens, each.prompt_tokens, each.cached_tokens, each.error) for each in asked] == [(4, 8, 2, "")] * 3
    for each in asked:
        assert each.ttft_s is not None
        assert each.ttft_s >= Clockwork.first_s
        assert len(each.gaps_s) == 3
        # A piece may be read late, on a busy machine, but none before it was sent.
        assert each.ttft_s + sum(each.gaps_s) >= Clockwork.first_s + 3 * Clockwork.gap_s
        assert each.ended_s >= each.ttft_s + sum(each.gaps_s)
    found = summary(ONE, asked, SPEC)
    assert (found.requests, found.failed, found.gen_tokens, found.good) == (3, {}, 4.0, 3)
    assert found.tokens_per_s == pytest.approx(12 / found.took_s)
    late = summary(ONE, asked, msgspec.structs.replace(SPEC, deadline_s=Clockwork.first_s))
    assert (late.good, late.good_per_s) == (0, 0.0)


def test_who_waits_for_others_waits_from_the_moment_it_was_due(clockwork: str) -> None:
    level = Level(rate=1000.0)
    asked = run_level(HttpClient(clockwork), SPEC, level, 5, name="a", on_end=lambda _: None)
    one_s = Clockwork.first_s + Clockwork.pieces * Clockwork.gap_s
    assert max(each.ended_s for each in asked) >= 4.5 * one_s, "five came at once, and the last was served the fifth"
    assert [each.due_s for each in asked] == sorted(each.due_s for each in asked)


def test_strangers_arrive_by_a_poisson_process_and_the_same_for_a_seed() -> None:
    level = Level(rate=4.0)
    dues = list(load.dues(SPEC, level, 4000))
    assert dues == list(load.dues(SPEC, level, 4000))
    gaps = [later - earlier for earlier, later in pairwise(dues) if later and earlier is not None]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.25, rel=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02), "exponential: 1/e"
    assert list(load.dues(SPEC, ONE, 2)) == [None, None]


def test_no_two_prompts_are_the_same_and_each_is_as_long_as_asked() -> None:
    prompts = [load.body_of(SPEC, f"{number}")["messages"][0]["content"] for number in range(50)]
    assert len(set(prompts)) == 50
    assert {len(prompt.split()) for prompt in prompts} == {8}
    assert load.body_of(SPEC, "3") == load.body_of(SPEC, "3")


def test_no_load_and_no_run_asks_what_another_asked_unless_the_seed_is_said(
    clockwork: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--url", clockwork, "--requests", "2", "--concurrency", "1,1,2", "-p", "8", "-n", "4", "--json"]
    seeds = list[int]()
    for _ in range(2):
        assert main(command) == 0
        seeds.append(json.loads(capsys.readouterr().out)["spec"]["seed"])
    first = Clockwork.prompts[:9]
    assert len(set(Clockwork.prompts)) == len(Clockwork.prompts) == 18, "a warm-up and two requests, of three loads"
    assert main([*command, "--seed", str(seeds[0])]) == 0
    assert sorted(Clockwork.prompts[18:]) == sorted(first)
    # A seed that is the next one to another shares no prompt with it either.
    assert main([*command, "--seed", str(seeds[0] + 1)]) == 0
    assert not set(Clockwork.prompts[27:]) & set(first)


def test_a_server_that_refuses_is_counted_and_said(
    clockwork: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Clockwork, "fails", True)
    assert main(["--url", clockwork, "--requests", "2"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [f"m at {clockwork}", "1 at once: 2 requests failed: no room"], "the reason stands first"
    assert "tokens" not in "\n".join(said)
    assert "–" not in "\n".join(said)


def test_what_was_asked_is_told_of_a_load_that_was_answered() -> None:
    failed = summary(ONE, [LoadAnswer(due_s=0.0, ended_s=0.1, error="no room")], SPEC)
    answered = summary(ONE, [LoadAnswer(due_s=0.0, ended_s=0.1, ttft_s=0.1, tokens=4, prompt_tokens=8)], SPEC)
    lines = describe_load("http://x", SPEC, [failed, answered]).splitlines()
    assert "prompts of 8 tokens" in "\n".join(lines)
    reason, means = (next(at for at, line in enumerate(lines) if words in line) for words in ("no room", "prompts of"))
    assert reason < means


@pytest.mark.parametrize(
    ("count", "known"),
    [(0, ""), (1, ""), (2, "p50"), (10, "p50 p90"), (20, "p50 p90 p95"), (100, "p50 p90 p95 p99")],
)
def test_a_percentile_is_told_where_there_are_enough(count: int, known: str) -> None:
    found = msgspec.structs.asdict(percentiles([float(number) for number in range(count)]))
    assert [name for name, value in found.items() if value is not None] == known.split()


def test_a_real_server_is_measured_and_drawn(
    served: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "load.html"
    command = ["--url", served.url, "-p", "6", "-n", "5", "--requests", "2", "--concurrency", "1,2", "--rate", "50"]
    assert main([*command, "--deadline", "600", "--json", "--report", str(page)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [level["level"] for level in document["levels"]] == [
        {"concurrency": 1, "rate": 0.0}, {"concurrency": 2, "rate": 0.0}, {"concurrency": 0, "rate": 50.0},
    ]  # fmt: skip
    for level in document["levels"]:
        assert (level["requests"], level["failed"], level["good"]) == (2, {}, 2)
        assert 1 <= level["gen_tokens"] <= 5
        assert level["prompt_tokens"] > 6, "a template stands around it"
    assert "2 at once" in page.read_text()
    assert re.search(
        r"20\d\d-\d\d-\d\d \d\d:\d\d UTC, asked from .* by fieldlm \d.*; the server is on it too", page.read_text()
    )


def test_a_model_that_is_not_there_is_named_with_those_that_are(clockwork: str) -> None:
    with pytest.raises(InputError, match=r"has no model 'x'; it has m"):
        main(["x", "--url", clockwork])


def test_a_soak_keeps_each_window_and_goes_on_where_it_ended(
    clockwork: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "WINDOW_S", 1.5)
    out, page = tmp_path / "soak.jsonl", tmp_path / "soak.md"
    command = ["--url", clockwork, "--concurrency", "2", "--out", str(out)]
    assert main([*command, "--minutes", "0.05"]) == 0
    begun = out.read_bytes()
    assert begun.count(b"\n") == 3
    out.write_bytes(begun + b'{"ended_wall_s":1')
    asked = len(Clockwork.prompts)
    capsys.readouterr()
    assert main([*command, "--minutes", "0.075", "--json", "--report", str(page)]) == 0
    assert out.read_bytes().startswith(begun), "nothing is measured twice, and the torn line is gone"
    document = json.loads(capsys.readouterr().out)
    assert len(document["windows"]) == 3
    assert all(window["answers"] for window in document["windows"])
    assert len(Clockwork.prompts) > asked
    assert len(set(Clockwork.prompts)) == len(Clockwork.prompts), "nor is a prompt asked twice"
    assert len({window["seed"] for window in document["windows"]}) == 2, "each call drew its own"
    assert document["windows"][0]["load_average"] is not None, "the server is on this machine"
    assert "### m under lasting load" in page.read_text()
    with pytest.raises(InputError, match="other settings: --gen-tokens 64 then, 7 now; say the same"):
        main([*command, "-n", "7", "--minutes", "0.05"])


@pytest.mark.parametrize("text", ["nothing\n", "{}\n", "\n", '{"format": 1}\n'])
def test_what_is_no_soak_is_not_written_to(text: str, tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text(text)
    with pytest.raises(InputError, match="is no file of a soak"):
        open_soak(out, HEAD)
    assert out.read_text() == text


def soaked(*speeds: float, **last: Any) -> Soak:
    windows = [
        msgspec.structs.replace(WINDOW, tokens_per_s=speed, temperature_c=60.0 + at) for at, speed in enumerate(speeds)
    ]
    return Soak(head=HEAD, windows=(*windows[:-1], msgspec.structs.replace(windows[-1], **last)))


def test_a_board_that_grows_slow_is_seen_to() -> None:
    # The published case of a Pi 4: 32.7 to 28.0 tokens/s.
    falls = soaked(*(32.7 - 0.47 * step for step in range(11)), throttled=1)
    assert falls.droop_percent == pytest.approx(13.1, abs=0.5)
    drift = falls.drift_percent_h
    assert drift is not None
    assert drift[0] == pytest.approx(-170, abs=5)
    assert drift[1] <= drift[0] <= drift[2] < 0
    assert falls.throttled_min == 5.5
    words = describe_soak(falls)
    assert "first in minute 5.5" in words
    assert "60 °C at first, 70 °C at most" in words
    assert soak_pages(falls)[0].count("<svg") == 2
    assert all("UTC, asked from" in text for text in soak_pages(falls))
    assert soak_document(falls)["droop_percent"] == falls.droop_percent


def test_a_steady_board_is_told_from_one_that_drifts() -> None:
    steady = soaked(*(30.0 + 0.1 * (step % 2) for step in range(12)))
    drift = steady.drift_percent_h
    assert drift is not None
    assert drift[1] < 0 < drift[2]
    assert steady.throttled_min is None


@pytest.mark.parametrize(("count", "is_told"), [(1, False), (3, False), (9, False), (10, True)])
def test_the_drift_of_a_short_soak_is_not_told(count: int, is_told: bool) -> None:
    short = soaked(*(30.0 + (-1) ** at for at in range(count)))
    assert (short.drift_percent_h is not None, short.droop_percent is not None) == (is_told, is_told)
    assert ("too short to say: it takes 5 minutes" in describe_soak(short)) is not is_told


def test_a_server_elsewhere_has_no_heat_of_ours() -> None:
    away = msgspec.structs.replace(soaked(30.0, 30.0, 30.0), head=msgspec.structs.replace(HEAD, is_here=False))
    assert "not looked at: the server is on another machine" in describe_soak(away)
    here = ("unix:/x", "http://localhost:1", "http://127.0.0.2", "http://[::1]:1")
    assert all(is_here(url) for url in here)
    assert not is_here("http://10.0.0.1")


def test_what_a_server_says_is_text_on_the_page() -> None:
    asked = [LoadAnswer(due_s=0.0, ended_s=0.1, error="<b>|no")]
    found = [summary(ONE, asked, SPEC)]
    page, text = load_pages("http://x", SPEC, found)
    assert "<b>|no" not in page + text
    assert "<b>|no" in describe_load("http://x", SPEC, found)


def test_ctrl_c_hangs_up_and_what_is_kept_is_whole(clockwork: str, tmp_path: Path) -> None:
    out = tmp_path / "soak.jsonl"
    command = [sys.executable, "-m", "fieldlm", "bench", "--url", clockwork, "--minutes", "60", "--out", str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        while not out.exists():
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert f"what was measured is in {out}; the same command goes on" in said
    assert out.read_bytes().endswith(b"\n")


def test_ctrl_c_loses_no_level_that_was_measured(clockwork: str) -> None:
    command = [sys.executable, "-m", "fieldlm", "bench", "--url", clockwork, "--concurrency", "1,2", "--requests", "40"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stderr
        while not process.stderr.readline().startswith("  load 2 at once"):
            pass
        os.kill(process.pid, signal.SIGINT)
        told, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "1 at once" in told
    assert "2 at once" not in told
