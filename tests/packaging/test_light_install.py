"""`pip install .` alone, in a new virtual environment: the device half stands on its own feet."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fieldlm.formats.bundle import Bundle
from tests.support.debian_root import ROOT
from tests.support.packed import EVERY_HELP, EVERY_MODULE
from tests.support.served_process import ask, free_port, serving


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of a virtual environment that holds the device half and what it needs."""
    folder = tmp_path_factory.mktemp("device")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", "-qq", ROOT], check=True)
    return folder / "bin"


def said(command: Sequence[str | Path], *, exit_code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_brings_no_training_libraries(device: Path) -> None:
    installed = {line.split("==")[0] for line in said([device / "pip", "freeze"]).splitlines()}
    assert not installed & {
        "torch",
        "transformers",
        "onnx",
        "onnxruntime",
        "pandas",
        "pyarrow",
        "duckdb",
        "scikit-learn",
    }


def test_its_parts_import_without_the_other_half(device: Path) -> None:
    # llama_cpp/_utils.py holds two files open until the end.
    warnings = ["-W", "error", "-W", "ignore::ResourceWarning"]
    assert said([device / "python", "-I", *warnings, "-c", EVERY_MODULE]) == ""


def test_every_command_says_what_it_can(device: Path) -> None:
    assert said([device / "python", "-I", "-c", EVERY_HELP]) == ""


def test_the_command_says_its_version_and_knows_the_boards(device: Path) -> None:
    assert said([device / "fieldlm", "--version"]).startswith("fieldlm ")
    assert "jetson" in said([device / "fieldlm", "profiles"]).lower()


def test_compile_says_what_to_install(device: Path) -> None:
    assert "pip install ./compiler" in said([device / "fieldlm", "compile", "model"], exit_code=2)


def test_it_answers_from_a_file_that_nobody_compiled(
    device: Path, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "is unproved" in said([device / "fieldlm", "run", smollm2_gguf, "Say hello.", "--max-tokens", "4"])
    assert "smollm2" in said([device / "fieldlm", "list"])


def test_it_serves_a_bundle_that_was_built_elsewhere(device: Path, bundle: Bundle, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [device / "fieldlm", "serve", bundle.folder, "--port", str(port), "--state", tmp_path, "--no-discovery"]
    with serving(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), url):
        assert ask(url, "Say hello.")
