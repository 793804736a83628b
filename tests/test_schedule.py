"""What the run of the tests promises: a worker that dies, as one that hangs does, costs one test and not the run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = """
import os

def test_before():
    pass

def test_dies():
    os._exit(1)

def test_behind():
    pass
"""


def test_a_test_during_which_a_worker_dies_fails_once_and_all_others_run(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / f"test_{name}.py").write_text(TESTS if name == "one" else "def test_it():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-p", "tests.support.schedule", "-p", "no:cacheprovider", "-n1", "-q", "--import-mode=importlib"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "1 failed, 3 passed" in ran.stdout
    assert "test_one.py::test_dies failed after" in ran.stdout, "it is named at once"
