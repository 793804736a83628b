"""A device with a large model, as a command: without a small model, over a kill, without a network for a while."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from fieldlm.formats.bundle import Bundle
from tests.support.device_process import FIELDLM, DeviceProcess
from tests.support.large_server import LargeServer, large_server
from tests.support.material import tiny_bundle

PRICES = ["--large-prompt-price", "2", "--large-completion-price", "10"]


def device(folder: Path, *arguments: str) -> DeviceProcess:
    return DeviceProcess([*arguments, "--state", str(folder / "state"), "--no-discovery", *PRICES], folder)


def ledger(port: int) -> dict[str, object]:
    command = [FIELDLM, "ledger", "--json", "--url", f"http://127.0.0.1:{port}"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_a_device_without_a_small_model_passes_on_and_keeps_count_over_a_kill(tmp_path: Path) -> None:
    with large_server() as large:
        kiosk = device(tmp_path, "--large", large.url)
        try:
            kiosk.wait_ready()
            assert kiosk.chat("Hello")[1]["choices"][0]["message"]["content"] == "from the large one"
            # An answer is counted in a thread beside; what the ledger has shown is on the disk.
            kiosk.wait_until("counted", lambda: ledger(kiosk.port)["by_large"] == 1)
            os.kill(kiosk.pid, signal.SIGKILL)
            kiosk.wait_until("killed", lambda: bool(kiosk.ends))
            kiosk.wait_ready()
            status, answer = kiosk.chat("Hello")
            assert status == 200
            said = {"id": answer["id"], "correction": "from a customer"}
            assert httpx.post(f"http://127.0.0.1:{kiosk.port}/v1/feedback", json=said, timeout=20).status_code == 200
            kept = ledger(kiosk.port)
        finally:
            kiosk.stop()
    assert kept["by_large"] == len(large.asked) == 2
    total = kept["total"]
    assert isinstance(total, dict)
    assert (total["prompt_tokens"], total["completion_tokens"]) == (22, 14)
    assert (total["liked"], total["disliked"]) == (0, 1)


def test_an_endpoint_that_hangs_keeps_no_device_from_its_end_and_no_deadline_waiting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:  # accepts, and says nothing
        port = silent.getsockname()[1]
        kiosk = device(tmp_path, "--large", f"http://127.0.0.1:{port}/v1", "--large-model", "m")
        try:
            kiosk.wait_ready()
            url = f"http://127.0.0.1:{kiosk.port}/v1/chat/completions"
            body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n" % len(body)
            waiting = [socket.create_connection(("127.0.0.1", kiosk.port)) for _ in range(40)]
            for each in waiting:
                each.sendall(head + body)
            late = httpx.post(url, json=json.loads(body) | {"deadline_ms": 300}, timeout=20)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        finally:
            began_s = time.monotonic()
            kiosk.stop()
            took_s = time.monotonic() - began_s
        for each in waiting:
            each.close()
    assert took_s < 20, "what waits for the network is silent for a minute"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("small"))


def test_no_request_fails_while_the_network_is_away_and_the_large_one_comes_back(tmp_path: Path, small: Bundle) -> None:
    class Network:
        is_there = True

    def say(_: dict[str, object]) -> str | int:
        return "from the large one" if Network.is_there else 503

    with large_server(say=say) as large:
        kiosk = device(tmp_path, str(small.need("base")), "--large", large.url, "--large-when", "always")
        try:
            kiosk.wait_ready()
            assert _who(kiosk) == "large"
            Network.is_there = False
            assert [_who(kiosk) for _ in range(6)] == ["small"] * 6
            tried = len(large.asked)
            Network.is_there = True
            kiosk.wait_until("the large one answers again", lambda: _who(kiosk) == "large")
            total = ledger(kiosk.port)
        finally:
            kiosk.stop()
    assert total["by_large"] == _answered(large)
    assert tried < 6, "while it was away, it was left alone"


def _who(kiosk: DeviceProcess) -> str:
    status, answer = kiosk.chat("Hello")
    assert status == 200, answer
    return answer["fieldlm"]["answered_by"]


def _answered(large: LargeServer) -> int:
    return len(large.asked) - large.refused


def test_a_state_without_any_model_is_refused_in_a_line(tmp_path: Path) -> None:
    with large_server() as large:
        kiosk = device(tmp_path, "--large", large.url)
        kiosk.wait_ready()
        kiosk.stop()
    state = ["--state", str(tmp_path / "state"), "--no-discovery"]
    done = subprocess.run([FIELDLM, "serve", *state], capture_output=True, text=True, check=False)
    assert (done.returncode, "holds no model; name one" in done.stderr) == (2, True), done.stderr
    updated = [FIELDLM, "serve", *state, "--large", large.url, "--repository", str(tmp_path)]
    done = subprocess.run(updated, capture_output=True, text=True, check=False)
    assert (done.returncode, "no small model here yet" in done.stderr) == (2, True), done.stderr
