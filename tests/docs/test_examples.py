"""The programs of docs/examples, each run as its first line says, with a real model, server and broker."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fieldlm.cli.broker import EmbeddedBroker
from tests.support.served_process import PATIENCE_S, ask, free_port, serving

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
FIELDLM = [sys.executable, "-m", "fieldlm"]


@contextmanager
def started(log: Path, *command: str | Path) -> Generator[Path]:
    """Run a program until the block ends, as one who presses Ctrl-C then; what it says goes into `log`."""
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as child:
        try:
            yield log
        finally:
            child.send_signal(signal.SIGINT)


@contextmanager
def served(model: Path, state: Path, *flags: str) -> Generator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [*FIELDLM, "serve", model, "--port", str(port), "--state", state, "--no-discovery", *flags]
    with serving(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), url):
        yield url


def said_by(name: str, *arguments: str | Path, stdin: str = "") -> str:
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_examples_are_short_listed_and_run_here() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.read_text().count("\n") < 60
        assert f"`{path.name}`" in listed
        assert path.stem in tests
    for folder in (path for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"):
        assert f"`{folder.name}/`" in listed
        assert any(f"docs/examples/{folder.name}" in test.read_text() for test in Path(__file__).parent.glob("*.py"))


def test_a_conversation_is_answered_turn_by_turn(smollm2_gguf: Path) -> None:
    _, first, second, end = said_by(
        "in_process_chat.py", smollm2_gguf, stdin="What is a robot?\nAnd what is a map?\n"
    ).split("> ")
    assert "robot" in first
    assert "map" in second
    assert end == ""


def test_a_robot_gets_a_move_in_time_and_stops_where_there_is_none(smollm2_gguf: Path) -> None:
    *moves, last = said_by("robot_decision.py", smollm2_gguf).splitlines()
    assert [move.partition("Move(direction=")[2][1:2] != "" for move in moves] == [True, True]
    assert last == "in no time: Move(direction='stop', metres=0)"


def test_a_stream_is_read_counted_and_stopped(smollm2_gguf: Path, tmp_path: Path) -> None:
    with served(smollm2_gguf, tmp_path / "state") as url:
        answer = said_by("openai_stream.py", url)
    assert "tokens read, " in answer
    assert "stopped after: " in answer


def test_an_app_answers_with_the_model_inside_it(smollm2_gguf: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "starlette_app:app", "--app-dir", EXAMPLES, "--port", str(port)]
    with subprocess.Popen(command, env={**os.environ, "MODEL": str(smollm2_gguf)}) as app:
        try:
            with httpx.Client(
                base_url=url, timeout=PATIENCE_S, transport=httpx.HTTPTransport(retries=8), trust_env=False
            ) as client:
                assert "robot" in client.post("/ask", content="What is a robot?").text
                assert client.post("/mood", content="What a lovely day!").json()["mood"] in ("glad", "sad", "angry")
        finally:
            app.terminate()


def test_what_a_device_tells_is_read_off_the_broker(smollm2_gguf: Path, tmp_path: Path) -> None:
    with EmbeddedBroker(port=0) as broker:
        port = broker.url.rpartition(":")[2]
        collector = [*FIELDLM, "collect", "--broker", broker.url, "--store", tmp_path / "store"]
        with (
            started(tmp_path / "readout.log", sys.executable, EXAMPLES / "mqtt_readout.py", "127.0.0.1", port) as said,
            started(tmp_path / "collect.log", *collector),
            served(smollm2_gguf, tmp_path / "state", "--broker", broker.url, "--device", "kiosk-7") as url,
        ):
            ask(url, "Say hello.")
            deadline_s = time.monotonic() + PATIENCE_S
            while " generation " not in said.read_text():
                assert time.monotonic() < deadline_s, said.read_text()
                time.sleep(0.1)
    (line,) = [line for line in said.read_text().splitlines() if " generation " in line]
    assert line.startswith("kiosk-7 gen/1 ")
    assert "tokens" in line
