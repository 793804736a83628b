"""Clients that people have, unchanged: one short script each, in a process of its own, against a running server.

Every change runs those that are installed here anyway; `make deep` fetches the others from PyPI, in the newest version.
"""

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
}
CLIENTS = [*INSTALLED, *(FETCHED if DEPTH > 1 else ())]
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
        subprocess.run([python, "-m", "pip", "install", "-q", FETCHED[client]], check=True)
    return python


def test_each_script_is_run_for_some_client() -> None:
    scripts = {path.name.removesuffix("_client.py") for path in Path(__file__).parent.glob("*_client.py")}
    assert scripts == {*INSTALLED, *FETCHED}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_answered_as_it_comes(client: str, url: str) -> None:
    script = Path(__file__).parent / f"{client}_client.py"
    run = subprocess.run(
        [python_of(client), script, url, MODEL], capture_output=True, text=True, timeout=MINUTES_S, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    print(client, run.stdout.strip())
