"""What a package's modules become: compiled, in a zip file that is the same from the same files, imported as before."""

import compileall
import os
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.debian_root import ROOT
from tests.support.packed import packaging_module

FILES = {
    "alone.py": "",
    "pure/__init__.py": "from pure.inner import deep\n",
    "pure/inner/__init__.py": "def deep():\n    raise ValueError('deep')\n",
    "pure/py.typed": "",
    "kept/__init__.py": "'Kept as it was written.'\n\ndef fail():\n    assert False, 'kept'\n",
    "data/__init__.py": "",
    "data/table.json": "{}",
}


@pytest.fixture(scope="module")
def compact() -> Any:
    """Return the module that packs modules."""
    return packaging_module("compact")


def packed(compact: Any, folder: Path) -> Path:
    """Write FILES, compile them and gather those that may be; return the zip file."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    assert compileall.compile_dir(folder, quiet=1, stripdir=folder, prependdir="/opt", invalidation_mode=unchecked)
    compact.keep_compiled(folder, ("kept",))
    compact.gather(folder, compact.plain(folder), folder / "modules.zip", 1_700_000_000)
    (folder / "modules.pth").write_text("modules.zip\n")
    return folder / "modules.zip"


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", f"import site; site.addsitedir({str(folder)!r}); {script}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})


def test_what_holds_nothing_but_modules_goes_into_the_file(compact: Any, tmp_path: Path) -> None:
    packed(compact, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "modules.pth", "modules.zip"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["__init__.pyc", "table.json"]


def test_modules_are_imported_from_the_file_as_they_were(compact: Any, tmp_path: Path) -> None:
    packed(compact, tmp_path)
    said = run(tmp_path, "import alone, pure, kept, data; print(pure.__file__, data.__file__)").stdout.split()
    assert said == [str(tmp_path / "modules.zip/pure/__init__.pyc"), str(tmp_path / "data/__init__.pyc")]
    broken = run(tmp_path, "import pure; pure.deep()").stderr
    assert 'File "/opt/pure/inner/__init__.py", line 2, in deep' in broken
    assert broken.endswith("ValueError: deep\n")


def test_where_the_source_stays_what_is_logged_shows_it(compact: Any, tmp_path: Path) -> None:
    packed(compact, tmp_path)
    script = "import kept, logging, sys; sys.excepthook = lambda *what: logging.error('', exc_info=what); kept.fail()"
    assert "    assert False, 'kept'\n" in run(tmp_path, script).stderr


def test_the_same_files_make_the_same_bytes(compact: Any, tmp_path: Path) -> None:
    first, second = (packed(compact, tmp_path / name) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_date_before_1980_is_the_first_that_a_zip_file_knows(compact: Any, tmp_path: Path) -> None:
    (tmp_path / "alone.pyc").write_bytes(b"")
    compact.gather(tmp_path, ["alone.pyc"], tmp_path / "modules.zip", 0)
    assert (tmp_path / "modules.zip").exists()


def test_what_was_installed_from_a_file_is_asked_for_by_its_version(tmp_path: Path) -> None:
    wheel = tmp_path / "plain-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("plain.py", "")
        archive.writestr("plain-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: plain\nVersion: 1.5\n")
        archive.writestr("plain-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("plain-1.5.dist-info/RECORD", "")
    python = tmp_path / "device/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "device"], check=True)
    into = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-index", "--no-deps"]
    subprocess.run([*into, wheel], check=True)
    said = subprocess.run(
        [sys.executable, "-c", "import sys, build_deb; print(build_deb.installed_versions(sys.argv[1]))", python],
        cwd=ROOT / "packaging", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.split() == ["plain==1.5"]
