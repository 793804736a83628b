"""`fieldlm serve` as a process: what it says when something is wrong, and that what worked before still works after."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest

from fieldlm.cli.broker import free_port
from fieldlm.core.config import load_config
from fieldlm.core.errors import MissingDependencyError
from fieldlm.device.device import Device
from fieldlm.device.startup import Start
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import load_profile
from fieldlm.updates.slots import Slots
from tests.support import material

PROFILE = "generic-x86-64-avx2"
FIELDLM = str(Path(sys.executable).with_name("fieldlm"))


@pytest.fixture(scope="module")
def bundle(base_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, compiled for PROFILE."""
    return material.compiled_for(base_bundle, PROFILE, tmp_path_factory.mktemp("bundle") / "bundle")


def command(bundle: Path, state: Path, *more: str) -> list[str]:
    return [
        FIELDLM, "serve", str(bundle), "--state", str(state), "--profile", PROFILE, "--threads", "1",
        "--context", "512", "--no-discovery", *more,
    ]  # fmt: skip


def refusal(arguments: list[str]) -> tuple[int, str]:
    """Return the exit code and what was printed by a `serve` that does not start; it has to be one line."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@contextmanager
def running(bundle: Path, state: Path, *more: str) -> Generator[tuple[int, subprocess.Popen[str]]]:
    port = free_port()
    child = subprocess.Popen(command(bundle, state, "--port", str(port), *more), stderr=subprocess.PIPE, text=True)
    try:
        deadline_s = time.monotonic() + 120
        while ask(port, "GET", "/ready")[0] != 200:
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        yield port, child
    finally:
        child.kill()
        child.communicate()


def ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or "null")
    except OSError:
        return 0, None
    finally:
        connection.close()


def chat(port: int) -> tuple[int, Any]:
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "metadata": {"session": "s"}}
    return ask(port, "POST", "/v1/chat/completions", json.dumps(body))


def test_what_is_served_is_a_document_when_it_is_ready(bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    serve = command(bundle, tmp_path / "state", "--port", str(port), "--json")
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            lines = iter(child.stdout.readline, "}\n")
            document = json.loads("".join([*lines, "}"]))
            assert ask(port, "GET", "/ready")[0] == 200
            assert (document["url"], document["state"]) == (f"http://127.0.0.1:{port}", "ready")
            assert (document["profile"], document["model"]) == (PROFILE, "smollm2-135m-instruct")
            child.send_signal(signal.SIGINT)
            rest, said = child.communicate(timeout=60)
            assert (child.returncode, rest) == (0, ""), said
        finally:
            child.kill()


STARTED = """
import json, sys
environment = set(sys.modules)
import time
from pathlib import Path
from fieldlm.device import serve as service

def modules():
    return sorted(set(sys.modules) - environment)

before, (bundle, state, profile_id, port) = modules(), sys.argv[1:]
config = service.load_config({"device": "kiosk", "state": state, "context": "128", "discovery": "false", "port": port})
profile = service.load_profile(profile_id)
start = service.Start(config, profile, Path(bundle))
from fieldlm.device.device import Device
device = Device(config, profile, start)
not_ready = start.wait()[2]
while why := not_ready():
    assert why == "the first answer is not there yet", why
    time.sleep(0.01)
print(json.dumps([before, modules()]))
device.close()
"""
READY_PACKAGES = {
    *("anyio", "click", "cryptography", "fieldlm", "h11", "httptools", "idna", "jinja2", "llama_cpp", "markupsafe"),
    *("msgspec", "numpy", "prometheus_client", "sniffio", "starlette", "typing_extensions", "uvicorn", "uvloop"),
    *("websockets", "wsproto"),
    "cython_runtime",  # what modules that Cython made have in common
}
"""Of other people's, what may be imported before a device is ready. Each takes time from every start."""
AT_FIRST_USE = {
    # Forms, the large model, brokers, repositories, texts that are redacted: not every device has them.
    *("diskcache", "ifaddr", "llguidance", "paho", "securesystemslib", "tuf", "urllib3", "zeroconf"),
    *("llama_cpp.llama", "fieldlm.blobs.web_source", "fieldlm.engines.constraint", "fieldlm.escalation.policy"),
    *("fieldlm.network.http_client", "fieldlm.network.mqtt", "fieldlm.telemetry.sync"),
    *("fieldlm.telemetry.redaction.names", "fieldlm.telemetry.redaction.redact", "fieldlm.updates.trust"),
}


def test_a_start_imports_no_server_before_it_loads_and_what_an_answer_needs_before_it_is_ready(
    bundle: Path, tmp_path: Path
) -> None:
    arguments = [str(bundle), str(tmp_path / "state"), PROFILE, str(free_port())]
    done = subprocess.run([sys.executable, "-c", STARTED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, ready = map(set, json.loads(done.stdout))
    assert not before & {"asyncio", "jinja2", "llama_cpp", "numpy", "starlette", "uvicorn", *AT_FIRST_USE}
    assert {"llama_cpp.llama_cpp", "uvicorn"} <= ready
    assert not ready & AT_FIRST_USE
    packages = {name.partition(".")[0] for name in ready} - set(sys.stdlib_module_names)
    assert {name for name in packages if not name.startswith("_")} <= READY_PACKAGES


SLOW = """
import os, sys
from pathlib import Path
from fieldlm.core.config import load_config
from fieldlm.device.startup import Start
from fieldlm.formats.profile import load_profile
from fieldlm.updates import rehearsal

rehearsal.PATIENCE_S, rehearsal.SLOWEST_MB_S = 0.0, float("inf")  # any device is too slow
bundle, state, profile_id = sys.argv[1:]
config = load_config({"state": state, "context": "128", "discovery": "false"})
start = Start(config, load_profile(profile_id), Path(bundle))
print(start.wait()[0].status().current, flush=True)
os._exit(0)
"""


def test_a_device_that_is_slow_to_load_its_only_bundle_is_left_to_load_it(bundle: Path, tmp_path: Path) -> None:
    arguments = [str(bundle), str(tmp_path / "state"), PROFILE]
    done = subprocess.run([sys.executable, "-c", SLOW, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, "what it loaded"


def test_a_missing_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    code, said = refusal(command(tmp_path / "none", tmp_path / "state"))
    assert code == 2
    assert "fieldlm compile" in said


def test_a_bundle_for_another_profile_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    arguments = [part.replace(PROFILE, "rpi5-8gb") for part in command(bundle, tmp_path / "state")]
    code, said = refusal(arguments)
    assert code == 2
    assert PROFILE in said
    assert "rpi5-8gb" in said


def test_an_unknown_profile_names_its_neighbours(bundle: Path, tmp_path: Path) -> None:
    arguments = [part.replace(PROFILE, "rpi5-8bg") for part in command(bundle, tmp_path / "state")]
    code, said = refusal(arguments)
    assert code == 2
    assert "rpi5-8gb" in said


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [("model.gguf", 2, "model.gguf"), ("manifest.json", 1, "signature"), ("manifest.sig", 1, "signature")],
)
def test_a_flipped_byte_is_found_before_anything_is_served(
    bundle: Path, tmp_path: Path, name: str, code: int, reason: str
) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    path = damaged / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found, said = refusal(command(damaged, tmp_path / "state"))
    assert found == code, said
    assert reason in said


def test_a_wrong_setting_is_named_with_its_value(bundle: Path, tmp_path: Path) -> None:
    code, said = refusal(command(bundle, tmp_path / "state", "--port", "seventy"))
    assert code == 2
    assert "seventy" in said


def test_a_taken_port_and_a_taken_state_folder_are_one_line_each(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "state", "--telemetry", "off") as (port, _):
        code, said = refusal(command(bundle, tmp_path / "other", "--port", str(port)))
        assert code == 2
        assert str(port) in said
        code, said = refusal(command(bundle, tmp_path / "state", "--port", str(free_port())))
        assert code == 2
        assert str(tmp_path / "state") in said
        assert chat(port)[0] == 200, "the one that runs is not disturbed"


def test_being_told_to_stop_is_no_failure(bundle: Path, tmp_path: Path) -> None:
    for stop in (signal.SIGTERM, signal.SIGINT):
        with running(bundle, tmp_path / "state") as (port, child):
            assert chat(port)[0] == 200
            child.send_signal(stop)
            assert child.wait(60) == 0


def test_a_device_that_is_killed_serves_again_and_keeps_what_it_recorded(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "state") as (port, child):
        for _ in range(3):
            assert chat(port)[0] == 200
        deadline_s = time.monotonic() + 60
        while ask(port, "GET", "/v1/fieldlm/status")[1]["spool"]["gen"]["held"] < 3:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    with running(bundle, tmp_path / "state") as (port, _):
        status = ask(port, "GET", "/v1/fieldlm/status")[1]
        assert status["spool"]["gen"]["held"] == 3
        assert status["ready"]
        assert chat(port)[0] == 200


@pytest.mark.parametrize(("threads", "gives_way"), [({}, True), ({"threads": "1"}, False)])
def test_a_device_gives_way_to_busy_neighbours_unless_it_was_told_its_threads(
    bundle: Path, tmp_path: Path, threads: dict[str, str], gives_way: bool
) -> None:
    flags = {"state": str(tmp_path / "state"), "context": "128", "discovery": "false", "port": str(free_port())}
    flags["device"] = "kiosk"
    config, profile = load_config(flags | threads), load_profile(PROFILE)
    device = Device(config, profile, Start(config, profile, bundle))
    try:
        assert cast(LlamaEngine, device.live.current.engine).gives_way is gives_way
    finally:
        device.close()


def test_after_a_device_is_closed_no_thread_of_it_is_left_and_the_status_named_those_that_ran(
    bundle: Path, tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    flags = {"state": str(tmp_path / "state"), "context": "128", "port": str(free_port()), "host": "127.0.0.1"}
    flags["device"] = "kiosk"
    config = load_config(flags | {"broker": f"mqtt://127.0.0.1:{free_port()}", "discovery": "true"}, env={})
    profile = load_profile(PROFILE)
    device = Device(config, profile, Start(config, profile, bundle))
    try:
        serving = threading.Thread(target=device.run, name="server")
        serving.start()
        while ask(config.port, "GET", "/ready")[0] != 200:
            time.sleep(0.05)
        assert chat(config.port)[0] == 200
        device.tasks.start("toaster", lambda: int("toast"))
        while not (status := ask(config.port, "GET", "/v1/fieldlm/status")[1]["tasks"])["crashes"].get("toaster"):
            time.sleep(0.05)
        metrics = httpx.get(f"http://127.0.0.1:{config.port}/metrics").text
        device.http.stop()
        serving.join()
    finally:
        device.close()
    known = {"announce", "nearby", "poll", "rescue", "share", "spool", "sync", "sync-callbacks", "when-ready"}
    # One thread announces the blobs and is done with it.
    assert known - set(status["running"]) <= {"nearby"}
    assert status["crashes"]["toaster"] == 1
    assert 'fieldlm_task_crashes_total{task="toaster"} 1.0' in metrics
    assert not set(threading.enumerate()) - before


def test_a_gpu_that_is_promised_and_not_there_is_refused_and_no_generation_is_blamed(
    bundle: Path, tmp_path: Path
) -> None:
    gpu = load_profile("laptop-nvidia").accelerators
    promises = msgspec.structs.replace(load_profile(PROFILE), accelerators=gpu)
    config = load_config({"device": "kiosk", "state": str(tmp_path / "state"), "context": "128", "discovery": "false"})
    with pytest.raises(MissingDependencyError, match=r"promises GeForce .* sees only CPU here; .*GGML_CUDA=on"):
        Device(config, promises, Start(config, promises, bundle))
    with closing(Slots(tmp_path / "state")) as slots:
        assert slots.status().failed == ()


def test_the_device_says_what_it_holds(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "state", "--device", "kiosk-7") as (port, _):
        answer = chat(port)[1]
        status = ask(port, "GET", "/v1/fieldlm/status")[1]
        assert status["device"] == "kiosk-7"
        assert status["generation"] == answer["fieldlm"]["generation"]
        assert status["memory_mb"]["rss"] > status["memory_mb"]["weights"] > 50
        assert ask(port, "GET", "/v1/fieldlm/update")[1]["running"] is False
        assert (status["governor"]["reason"], status["governor"]["duty"]) == ("", 1.0)


def test_a_stop_ends_a_stream_with_the_reason_and_leaves_no_traceback(bundle: Path, tmp_path: Path) -> None:
    asked = {
        "messages": [{"role": "user", "content": "Count."}], "stream": True, "max_tokens": 7000,
        "logit_bias": {"0": -100, "2": -100},  # no end of its own
    }  # fmt: skip
    with running(bundle, tmp_path / "state", "--context", "8000", "--device", "kiosk") as (port, child):
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with httpx.stream("POST", url, json=asked, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            child.send_signal(signal.SIGTERM)
            events = [line.removeprefix("data: ") for line in lines if line]
        assert child.wait(60) == 0
        assert child.stderr
        said = child.stderr.read()
    (last,) = [json.loads(event) for event in events if '"error"' in event]
    assert last["error"]["code"] == "stopping"
    assert last["fieldlm"]["text"], "what was said so far"
    assert "Traceback" not in said
