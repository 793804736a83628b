"""What the benchmarks measure against is taken out of the source distribution, and named when it is not there."""

import io
import os
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import anchors
from fieldlm.core.errors import EngineError, InputError, MissingDependencyError
from fieldlm.core.files import canonical_json

MADE = anchors.Built(release="1", sdist_sha256="0" * 64, flags=("-DX=ON",), compiler="c++ 1")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/fieldlm/anchors"


def sdist(path: Path, names: tuple[str, ...]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"llama_cpp_python-1/{name}")
            member.size = 2
            archive.addfile(member, io.BytesIO(b"ok"))
    return path


def finished(cache: Path, key: str, *, age_s: int) -> Path:
    folder = cache / f"llama.cpp-{version('llama-cpp-python')}-{key}"
    folder.mkdir(parents=True)
    (folder / anchors.DONE).write_bytes(canonical_json(MADE))
    written_s = (folder / anchors.DONE).stat().st_mtime - age_s
    os.utime(folder / anchors.DONE, (written_s, written_s))
    return folder


def test_only_what_the_build_needs_is_unpacked(tmp_path: Path) -> None:
    llama = "vendor/llama.cpp"
    names = ("setup.py", f"{llama}/CMakeLists.txt", f"{llama}/src/llama.cpp", f"{llama}/models/vocab.gguf")
    anchors.unpack(sdist(tmp_path / "s.tar.gz", names), tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"CMakeLists.txt", "src/llama.cpp"}


def test_a_source_distribution_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    bad = sdist(tmp_path / "s.tar.gz", ("vendor/llama.cpp/CMakeLists.txt", "vendor/llama.cpp/../../evil"))
    with pytest.raises(InputError, match="outside its folder"):
        anchors.unpack(bad, tmp_path / "out")


def test_another_source_distribution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"carries no CMakeLists\.txt"):
        anchors.unpack(sdist(tmp_path / "s.tar.gz", ("setup.py",)), tmp_path / "out")


def test_what_is_not_built_is_named_with_what_to_run() -> None:
    with pytest.raises(MissingDependencyError, match=r"llama-bench of llama\.cpp .* is not built; run: make anchors"):
        anchors.llama_tool("llama-bench")
    with pytest.raises(MissingDependencyError, match="run: make anchors"):
        anchors.genai_overlay()


def test_an_unfinished_build_is_not_taken(cache: Path) -> None:
    (cache / f"llama.cpp-{version('llama-cpp-python')}-abc/build/bin").mkdir(parents=True)
    with pytest.raises(MissingDependencyError):
        anchors.llama_tool("llama-server")


def test_the_newest_of_several_builds_is_taken(cache: Path) -> None:
    newest = finished(cache, "bbb", age_s=0)
    finished(cache, "aaa", age_s=100)
    finished(cache, "ccc", age_s=50)
    assert anchors.llama_tool("llama-server") == newest / "bin/llama-server"
    assert anchors.facts()["flags"] == ["-DX=ON"]


def test_a_step_that_fails_says_its_own_reason_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('[1/2] one'); print('x.cpp:3: error: no such thing'); raise SystemExit(1)"]
    with pytest.raises(EngineError, match=r"build failed: x\.cpp:3: error: no such thing .* run the same command"):
        anchors.run_step(command, tmp_path / "build", "build")
    assert "[1/2] one" in (tmp_path / "build/anchors.log").read_text()
