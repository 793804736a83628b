"""The README's blocks, run in order: `run` blocks to their end, `serve` blocks until the last one is done."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fieldlm.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(bash|python) (run|serve)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def environment() -> dict[str, str]:
    """The reader has activated the virtual environment these tests run in."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(language: str, text: str) -> str:
    text = text.replace(". .venv/bin/activate\n", "")
    command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def served(text: str) -> Generator[None]:
    child = subprocess.Popen(
        ["bash", "-euc", f"exec {text}"], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        url = "http://127.0.0.1:" + re.findall(r"--port (\d+)", text)[0]
        deadline_s = time.monotonic() + 120
        while not answers(f"{url}/ready"):
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline_s, f"{text} was not ready in two minutes"
            time.sleep(0.2)
        yield
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def test_every_block_of_the_readme_runs() -> None:
    shutil.rmtree(ROOT / "build" / "readme", ignore_errors=True)
    blocks = BLOCK.findall(README)
    assert len(blocks) >= 7
    printed: dict[str, str] = {}
    with ExitStack() as stack:
        for language, kind, text in blocks:
            if kind == "serve":
                stack.enter_context(served(text.strip()))
            else:
                printed[text] = run(language, text)
    for block, word in (("run smollm2", "robot"), ('open("smollm2")', "unproved"), ("capital of France", "Paris")):
        (said,) = [said for text, said in printed.items() if block in text]
        assert word in said
    assert "smollm2" in "".join(said for text, said in printed.items() if "fieldlm ps" in text)
    assert all(said.strip() for said in printed.values())


def test_the_readme_opens_with_the_two_commands() -> None:
    opening = README[: README.index("## ")]
    assert "make demo" in opening
    assert "make test" in opening


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_every_file_the_readme_points_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_command_of_the_readme_is_a_command() -> None:
    assert set(re.findall(r"(?<!from )\bfieldlm ([a-z]+)\b", README)) <= set(COMMANDS)
