"""Clients that people have, unchanged: one short script each, in a process of its own, against a running server.

Every change runs those that are installed here anyway; `make deep` fetches the others from PyPI and npm, in the newest
version. It needs node, npm and a JDK: apt-get install nodejs npm default-jdk-headless.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.formats.bundle import Bundle
from tests.support import material
from tests.support.api_server import api_server
from tests.support.depth import DEPTH

MODEL = "smollm2-135m-instruct"
INSTALLED = ("openai", "ollama", "anthropic")
FETCHED = {
    "litellm": "litellm",
    "pydantic_ai": "pydantic-ai-slim[openai]",
    "instructor": "instructor",
    "langchain": "langchain-openai",
    "openai_agents": "openai-agents",
    "smolagents": "smolagents[openai]",
    "llama_index": "llama-index-llms-openai-like",
    "haystack": "haystack-ai",
    "dspy": "dspy",
    "litellm_proxy": "litellm[proxy]",
    "semantic_kernel": "semantic-kernel",
    "guidance": "guidance openai",
}
FROM_NPM = {"openai_node": ("openai",), "ai_sdk": ("ai", "@ai-sdk/openai-compatible", "zod")}
JAVA = "JavaClient"
HERE = Path(__file__).parent
CLIENTS = [*INSTALLED, *((*FETCHED, *FROM_NPM, JAVA) if DEPTH > 1 else ())]
MINUTES_S = 600


@pytest.fixture(scope="module")
def url(base_bundle: Bundle) -> Iterator[str]:
    with api_server(base_bundle, context=1024) as server:
        yield server.url


def python_of(client: str) -> Path:
    """Return the interpreter that has the client, installed when it is asked for the first time."""
    if client in INSTALLED:
        return Path(sys.executable)
    # A place for each: together they would want versions of openai that exclude each other.
    python = material.cache() / f"client-{client}" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *FETCHED[client].split()], check=True)
    return python


def command_of(client: str) -> list[str | Path]:
    """Return what runs the script of `client`."""
    if client == JAVA:
        return ["java", HERE / f"{JAVA}.java"]
    if client not in FROM_NPM:
        return [python_of(client), HERE / f"{client}_client.py"]
    folder = material.cache() / f"client-{client}"
    folder.mkdir(exist_ok=True)
    if not (folder / "node_modules").exists():
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", *FROM_NPM[client]], cwd=folder, check=True
        )
    # It finds its packages beside itself.
    return ["node", shutil.copy(HERE / f"{client}_client.mjs", folder)]


def test_each_script_is_run_for_some_client() -> None:
    scripts = {path.name.split(".")[0].removesuffix("_client") for path in HERE.iterdir() if "lient." in path.name}
    assert scripts == {*INSTALLED, *FETCHED, *FROM_NPM, JAVA}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_answered_as_it_comes(client: str, url: str) -> None:
    command = [*command_of(client), url, MODEL]
    run = subprocess.run(command, capture_output=True, text=True, timeout=MINUTES_S, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    print(client, run.stdout.strip())
