"""`make` says in one line that a Python is too old, before it makes anything."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Runs what is given with -c as this Python would, if it were another one.
OLD = """#!/bin/sh
exec {python} -c 'import sys
sys.version_info, code, sys.argv = (3, 10, 12), sys.argv[2], ["-c", *sys.argv[3:]]
exec(code)' "$@"
"""


def test_a_python_that_is_too_old_is_said_in_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "compiler/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (old := tmp_path / "python3.10").write_text(OLD.format(python=shlex.quote(sys.executable)))
    old.chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    # The tests may be run by make themselves.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    made = subprocess.run(
        ["make", "setup", f"PYTHON={old}"], cwd=tmp_path, env=env | {"LC_ALL": "C"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode != 0
    first, *rest = made.stderr.splitlines()
    assert first == f"fieldlm needs Python 3.11 or newer, {old} is older; name one: make PYTHON=python3.12"
    assert all(line.startswith("make: *** ") for line in rest)
    assert sorted(tmp_path.rglob("*")) == before
