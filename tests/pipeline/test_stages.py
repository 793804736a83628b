"""What each stage made, kept by what it was made from."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fieldlm.core.errors import GateError, NoSpaceError
from fieldlm.core.files import cache_root
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.stages import Stages

SLOW = """
import sys, time
from pathlib import Path
from fieldlm_compiler.pipeline.stages import Stages

def make(folder):
    (folder / "half").write_text("half")
    time.sleep(60)

Stages(Path(sys.argv[1])).run("step", {"of": 1}, make)
"""


def write(folder: Path, text: str = "whole") -> Ran:
    (folder / "file").write_text(text)
    return Ran(value={"text": text}, seconds=1.5, peak_mb=20)


def test_the_same_inputs_are_made_once(tmp_path: Path) -> None:
    first, second = Stages(tmp_path), Stages(tmp_path)
    folder, made = first.run("step", {"of": 1}, write)
    again, kept = second.run("step", {"of": 1}, lambda _: pytest.fail("made twice"))
    assert (folder, made.value, made.cached) == (again, kept.value, not kept.cached)
    assert kept.seconds == 1.5


def test_other_inputs_are_another_stage(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    one, _ = stages.run("step", {"of": 1}, write)
    other, _ = stages.run("step", {"of": 2}, lambda folder: write(folder, "other"))
    assert (one / "file").read_text() != (other / "file").read_text()


def test_a_file_changed_behind_its_back_is_made_again(tmp_path: Path) -> None:
    folder, _ = Stages(tmp_path).run("step", {}, write)
    (folder / "file").write_text("damage")
    folder, made = Stages(tmp_path).run("step", {}, write)
    assert not made.cached
    assert (folder / "file").read_text() == "whole"


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> Ran:
        write(folder)
        raise GateError("it is not good enough")

    with pytest.raises(GateError):
        Stages(tmp_path).run("step", {}, fail)
    assert [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_killed_stage_is_made_afresh_and_its_leavings_are_swept(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)])
    deadline_s = time.monotonic() + 30
    while not list(tmp_path.glob(".step-*.part/half")) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert list(tmp_path.glob(".step-*.part/half")), "the kill came before there was anything to leave"
    folder, made = Stages(tmp_path).run("step", {"of": 1}, write)
    assert not made.cached
    assert sorted(path.name for path in folder.iterdir()) == ["file", "stage.json"]
    assert not list(tmp_path.glob(".step-*.part"))


def test_a_stage_that_cannot_fit_is_refused_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match=r"step needs 1000000000\.0 MB"):
        Stages(tmp_path).run("step", {}, lambda _: pytest.fail("started"), needs_mb=1e9)


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Stages().folder == tmp_path / "fieldlm" / "compile" == cache_root() / "compile"
