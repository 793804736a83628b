"""Talk to a fieldlm that was started as a command: wait for it, ask it."""

import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import httpx

PATIENCE_S = 300  # how long a start may take before the test gives up; machines that run tests are busy


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Return when `url`/ready answers 200; shows what `process` said when it ends or stays silent instead."""
    deadline_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{url}/ready", timeout=10, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    process.kill()
    raise AssertionError(f"{process.args} never became ready; it said:\n{process.communicate()[0]}")


def ask(url: str, question: str) -> str:
    """Return the answer to one chat completion."""
    model = httpx.get(f"{url}/v1/models", timeout=PATIENCE_S, trust_env=False).json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 12, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def updated(url: str) -> dict[str, Any]:
    """Ask for an update and return how it came out."""
    assert httpx.post(f"{url}/v1/fieldlm/update", json={}, timeout=PATIENCE_S, trust_env=False).status_code == 202
    deadline_s = time.monotonic() + PATIENCE_S
    state: dict[str, Any] = {}
    while time.monotonic() < deadline_s:
        state = httpx.get(f"{url}/v1/fieldlm/update", timeout=PATIENCE_S, trust_env=False).json()
        if state["last"]:
            return state["last"]
        time.sleep(0.2)
    raise AssertionError(f"no update has ended: {state}")


@contextmanager
def serving(process: subprocess.Popen[str], url: str) -> Generator[None]:
    """Run the block while `process` serves at `url`; then ask it to end, and see that it ends well."""
    with process:
        try:
            wait_until_ready(url, process)
            yield
            process.terminate()
            said = process.communicate(timeout=PATIENCE_S)[0]
            assert process.returncode == 0, said
        finally:
            process.kill()
