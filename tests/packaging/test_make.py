"""`make setup`: a Python that is too old is said in one line, and a llama.cpp that is built is not built again."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Runs what is given with -c as this Python would, if it were another one.
OLD = """#!/bin/sh
exec {python} -c 'import sys
sys.version_info, code, sys.argv = (3, 10, 12), sys.argv[2], ["-c", *sys.argv[3:]]
exec(code)' "$@"
"""


# Makes an environment whose pip says what it is told.
NEW = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
mkdir -p .venv/bin
ln -s {python} .venv/bin/python
printf '#!/bin/sh\necho "$@" >> told\n' > .venv/bin/pip
chmod +x .venv/bin/pip
"""
FOLDER = """
import build_engine, platform
try:
    build_engine.engine_wheel(platform.machine(), builds=False)
except FileNotFoundError as error:
    print(error)
"""


def set_up(folder: Path, python: Path, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    # The tests may be run by make themselves, which tells those that it runs how llama.cpp is built.
    told = ("MAKE", "MFLAGS", "CMAKE_ARGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    return subprocess.run(
        ["make", "setup", f"PYTHON={python}"], cwd=folder, env={**env, "LC_ALL": "C", **settings},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_python_that_is_too_old_is_said_in_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "compiler/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (old := tmp_path / "python3.10").write_text(OLD.format(python=shlex.quote(sys.executable)))
    old.chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    made = set_up(tmp_path, old, {})
    assert made.returncode != 0
    first, *rest = made.stderr.splitlines()
    assert first == f"fieldlm needs Python 3.11 or newer, {old} is older; name one: make PYTHON=python3.12"
    assert all(line.startswith("make: *** ") for line in rest)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("is_built", "settings", "is_taken"),
    [(True, {}, True), (False, {}, False), (True, {"CMAKE_ARGS": "-DGGML_CUDA=on"}, False)],
)
def test_a_llama_cpp_that_is_built_for_every_processor_is_taken_unless_another_is_asked_for(
    tmp_path: Path, is_built: bool, settings: Mapping[str, str], is_taken: bool
) -> None:
    for name in ("Makefile", "packaging/build_engine.py", "packaging/requirements.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "compiler/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (new := tmp_path / "python3").write_text(NEW.format(python=shlex.quote(sys.executable)))
    new.chmod(0o755)
    settings = {**settings, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", FOLDER]
    folder = subprocess.run(
        command, cwd=tmp_path / "packaging", env=os.environ | settings, capture_output=True, text=True, check=True
    ).stdout.strip()
    if is_built:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "llama_cpp_python-0-py3-none-any.whl").touch()
    made = set_up(tmp_path, new, settings)
    assert made.returncode == 0, made.stderr
    told = (tmp_path / "told").read_text()
    assert "-e .[broker,llama,onnx]" in told
    assert (f"--find-links {folder} -e " in told) is is_taken
    assert ("--find-links" in told) is is_taken
