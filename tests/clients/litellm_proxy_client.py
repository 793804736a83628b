"""litellm's proxy between the client and the server: a chat, a stream, a forced call, a form."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from openai import OpenAI
from pydantic import BaseModel

url, model = sys.argv[1:3]
KEY = f"sk-{secrets.token_hex(32)}"  # without one it does not start
START_S = 300.0  # it imports for half a minute on a small machine
asked = [{"role": "user", "content": "Name a colour."}]
schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}


class Colour(BaseModel):
    red: bool


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def started(folder: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start the proxy; it takes a port by its number alone, which somebody else may have taken since."""
    to = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}
    config = Path(folder) / "config.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": "here", "litellm_params": to}]}))  # JSON is YAML, too
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config), "--host", "127.0.0.1"]
    alone = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}  # nothing is fetched
    for _ in range(3):
        port = free_port()
        proxy = subprocess.Popen([*command, "--port", str(port)], env=alone, cwd=folder, stdout=sys.stderr)
        end_s = time.monotonic() + START_S
        while proxy.poll() is None and time.monotonic() < end_s:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=10).status_code == 200:
                    return proxy, f"http://127.0.0.1:{port}"
            except httpx.TransportError:
                time.sleep(0.5)
        proxy.kill()
    raise SystemExit("the proxy does not start")


with tempfile.TemporaryDirectory() as folder:
    proxy, here = started(folder)
    try:
        client = OpenAI(base_url=here, api_key=KEY, max_retries=0)
        chat = client.chat.completions
        assert chat.create(model="here", messages=asked, max_tokens=8).choices[0].message.content
        pieces = chat.create(model="here", messages=asked, max_tokens=8, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        called = chat.create(
            model="here",
            messages=asked,
            max_tokens=64,
            tools=[{"type": "function", "function": {"name": "switch", "parameters": schema}}],
            tool_choice="required",
        )
        assert isinstance(json.loads(called.choices[0].message.tool_calls[0].function.arguments)["on"], bool)
        formed = chat.parse(model="here", messages=asked, max_tokens=32, response_format=Colour)
        assert isinstance(formed.choices[0].message.parsed, Colour)
    finally:
        proxy.kill()
        proxy.wait()
print("chat, stream, call, form through it")
