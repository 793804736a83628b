"""A server that is stopped for a while by a signal, as a debugger or a frozen container does, and goes on."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.support.served_process import PATIENCE_S, free_port, serving

STOPPED_S = 3.0
ENDLESS = {"messages": [{"role": "user", "content": "Tell a story."}], "logit_bias": {"0": -100, "2": -100}}
"""Without the tokens that end an answer of this model."""


def test_an_answer_goes_on_where_it_was_and_a_deadline_that_passed_meanwhile_is_kept(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "fieldlm", "serve", smollm2_gguf, "--port", str(port), "--no-discovery"]
    command += ["--state", tmp_path / "state", "--parallel", "2", "--context", "2048"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with (
        serving(server, url),
        ThreadPoolExecutor(1) as threads,
        httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client,
    ):
        late = {**ENDLESS, "max_tokens": 1500, "deadline_ms": 2000, "fallback": "stop"}
        whole = {**ENDLESS, "max_tokens": 100, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=whole) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            asked = threads.submit(client.post, "/v1/chat/completions", json=late)
            server.send_signal(signal.SIGSTOP)
            time.sleep(STOPPED_S)
            server.send_signal(signal.SIGCONT)
            said = [first, *lines]
        assert said[-2:] == ["data: [DONE]", ""]
        assert any('"finish_reason":"length"' in line for line in said)
        assert not any('"error"' in line for line in said)
        answered = asked.result().json()
        assert answered["choices"][0]["message"]["content"] == "stop"
        assert client.get("/health").status_code == 200
