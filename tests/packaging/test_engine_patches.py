"""What llama.cpp is built with beside its own source. That the patches fit it, each build shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "packaging"
PATCHES = sorted((FOLDER / "patches").rglob("*.patch"))
MEND = """
import sys, build_engine
from pathlib import Path
build_engine.mend(Path(sys.argv[1]), [Path(sys.argv[2])])
"""


def mend(source: Path, patch: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MEND, source, patch]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)


def before_and_after(patch: str) -> dict[str, tuple[str, str]]:
    """Return by name a file in which the hunks of `patch` fit, and what it becomes."""
    files = dict[str, tuple[str, str]]()
    for part in re.split(r"(?m)^--- .*\n\+\+\+ b/", patch)[1:]:
        name, _, hunks = part.partition("\n")
        old = new = ""
        for first, hunk in re.findall(r"^@@ -(\d+),.*?@@.*?\n(.*?)(?=^@@ |\Z)", hunks, re.MULTILINE | re.DOTALL):
            gap = "".join(f"line {number}\n" for number in range(old.count("\n") + 1, int(first)))
            lines = hunk.splitlines(keepends=True)
            was, becomes = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
            old, new = old + gap + was, new + gap + becomes
        files[name] = (old, new)
    return files


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
@pytest.mark.parametrize("is_in_a_repository", [False, True])
def test_a_patch_is_applied_wherever_the_cache_lies(patch: Path, is_in_a_repository: bool, tmp_path: Path) -> None:
    if is_in_a_repository:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    files = before_and_after(patch.read_text())
    assert files
    for name, (old, _) in files.items():
        file = tmp_path / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(old)
    assert mend(tmp_path / "source", patch).returncode == 0
    for name, (old, new) in files.items():
        assert (tmp_path / "source" / name).read_text() == new != old


def test_a_patch_that_does_not_fit_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    done = mend(tmp_path / "source", PATCHES[0])
    assert done.returncode == 1
    assert done.stderr.startswith(f"{PATCHES[0].name} does not fit this llama.cpp; mend or remove it: ")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_a_patch_says_why_it_is_there(patch: Path) -> None:
    assert len(patch.read_text().partition("\n--- ")[0].split()) > 20
