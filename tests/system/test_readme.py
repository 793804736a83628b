"""The blocks of the README and of the documentation, run in order, each page in a folder of its own.

`run` blocks are run to their end, `serve` blocks until the page's last one is done.
"""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python) (run|serve)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Page → what a block that has this text in it must print.
SAID = {
    "README.md": {"run smollm2": "robot", "print(model)": "unproved", "Name three colours": "."},
    "docs/tutorials/app.md": {
        "fieldlm ps": "smollm2", "stream=True": ".", "Which colour": "", "/v1/feedback": "",
    },
    "docs/tutorials/robot.md": {
        "print(model)": "unproved", "class Move": "Move(", "AsyncModel": "robot", "class Turn": "direction",
    },
    "docs/tutorials/bench.md": {"fieldlm detect": "generic-x86-64-avx2", "fieldlm bench": "smollm2"},
    "docs/tutorials/finetune.md": {"DRINKS": "32 examples", "unpack": "checkpoint"},
    "docs/tutorials/fleet.md": {
        "keys create": "", "You are a helpful": "assistant", "fieldlm ps": "smollm2", "OpenAI": "",
        "fieldlm publish": "", "fieldlm rollback": "",
    },
    "docs/howto/compile.md": {"capital of France": "Paris", "Model.open": "generation"},
}  # fmt: skip


def environment() -> dict[str, str]:
    """The reader has activated the virtual environment these tests run in."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(language: str, text: str, folder: Path) -> str:
    text = text.replace(". .venv/bin/activate\n", "")
    command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def served(text: str, folder: Path) -> Generator[None]:
    child = subprocess.Popen(
        ["bash", "-euc", f"exec {text}"], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
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


@pytest.mark.parametrize("page", SAID)
def test_every_block_of_a_page_runs(page: str, tmp_path: Path) -> None:
    printed: dict[str, str] = {}
    with ExitStack() as stack:
        for language, kind, text in BLOCK.findall((ROOT / page).read_text()):
            if kind == "serve":
                stack.enter_context(served(text.strip(), tmp_path))
            else:
                printed[text] = run(language, text, tmp_path)
    assert all(said.strip() for said in printed.values())
    for block, word in SAID[page].items():
        assert [said for text, said in printed.items() if block in text and word in said], (block, printed)


def test_every_page_with_blocks_to_run_is_run() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert {str(page.relative_to(ROOT)) for page in pages if BLOCK.search(page.read_text())} == set(SAID)


def test_the_readme_opens_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    opening = readme[: readme.index("## ")]
    assert "make demo" in opening
    assert "make test" in opening
