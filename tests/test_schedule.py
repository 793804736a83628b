"""What the run of the tests promises: a worker that dies, as one that hangs does, costs one test and not the run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    "one": """
import os
def test_before():
    pass
def test_dies():
    os._exit(1)
def test_behind():
    pass
""",
    "two": """
import time
def test_hangs():
    time.sleep(600)
def test_behind():
    pass
""",
    "three": """
def test_fails():
    assert False
def test_passes():
    pass
""",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_dies_or_hangs_fails_once_and_all_others_run(workers: int, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfaulthandler_timeout = 2\nfaulthandler_exit_on_timeout = true\n")
    options = [
        "-p",
        "tests.support.schedule",
        "-p",
        "no:cacheprovider",
        f"-n{workers}",
        "-q",
        "--import-mode=importlib",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "3 failed, 4 passed" in ran.stdout
    for test in ("one.py::test_dies", "three.py::test_fails"):
        assert f"test_{test} failed after" in ran.stdout, "it is named at once"
    assert re.search(r"test_two\.py::test_hangs failed after [1-9]", ran.stdout)
    assert "in test_hangs" in ran.stderr, "it says where"
