"""The package that brings its Python, where there is none, nor the libraries that it needs: it works all the same."""

import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.formats.bundle import Bundle
from tests.support.debian_root import ROOT, Machine, clean_machine
from tests.support.packed import EVERY_HELP, EVERY_MODULE, MULTIPLY

GONE = (
    "usr/bin/python3*",
    "usr/lib/python3*",
    *(f"usr/lib/*-linux-gnu/lib{name}.so*" for name in ("stdc++", "gomp", "ffi", "sqlite3")),
)
IMPORTS = "import ctypes, sqlite3, ssl, numpy, llama_cpp, cryptography.fernet"


@pytest.fixture(scope="module")
def bringing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package, built the way `make deb WITH_PYTHON=1` builds it."""
    folder = tmp_path_factory.mktemp("bringing")
    command = [sys.executable, ROOT / "packaging/build_deb.py", "--with-python"]
    subprocess.run([*command, "--work", folder / "work", "--out", folder], check=True)
    shutil.rmtree(folder / "work")
    (built,) = folder.glob("fieldlm_*_with-python.deb")
    return built


@pytest.fixture(scope="module")
def bare_machine(tmp_path_factory: pytest.TempPathFactory, bringing: Path) -> Generator[Machine]:
    """Return a Debian without any Python and without the libraries that llama.cpp needs, where it is installed."""
    root = tmp_path_factory.mktemp("bare")
    root.chmod(0o755)
    machine = clean_machine(root)
    for pattern in GONE:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copy(bringing, root / "tmp/fieldlm.deb")
    machine.run("dpkg", "--install", "/tmp/fieldlm.deb")
    yield machine
    shutil.rmtree(root)


def test_it_depends_on_no_python_and_no_c_library(bringing: Path, bare_machine: Machine) -> None:
    asked = subprocess.check_output(["dpkg-deb", "--field", bringing, "Depends"], text=True)
    names = {word.split()[0] for word in asked.strip().split(", ")}
    assert names == {"ca-certificates", "init-system-helpers", "passwd"}
    assert "installed" in bare_machine.run("dpkg-query", "--show", "--showformat=${db:Status-Status}", "fieldlm")
    # Debian 11's dpkg reads no zstd.
    names = subprocess.check_output(["ar", "t", bringing], text=True).split()
    assert names == ["debian-binary", "control.tar.gz", "data.tar.gz"]


def test_it_answers_for_any_user(bare_machine: Machine, bundle: Bundle) -> None:
    shutil.copytree(bundle.folder, bare_machine.root / "tmp/bundle")
    bare_machine.run("chmod", "-R", "a+rX", "/tmp/bundle")
    nobody = ("setpriv", "--reuid=nobody", "--clear-groups", "env", "HOME=/tmp/home")
    bare_machine.run("install", "-d", "-o", "nobody", "/tmp/home")
    assert bare_machine.run(*nobody, "fieldlm", "--version").startswith("fieldlm ")
    assert bare_machine.run(*nobody, "fieldlm", "run", "/tmp/bundle", "Hello").strip()


def test_it_takes_90_mb(bare_machine: Machine) -> None:
    size_kib = int(bare_machine.run("dpkg-query", "--show", "--showformat=${Installed-Size}", "fieldlm"))
    assert size_kib * 1024 <= 90e6


def test_every_module_imports_and_every_command_says_what_it_can(bare_machine: Machine) -> None:
    for script in (EVERY_MODULE, EVERY_HELP):
        assert bare_machine.run("/opt/fieldlm/bin/python3", "-I", "-c", script) == ""


def test_numpy_multiplies_and_says_what_it_has_not(bare_machine: Machine) -> None:
    assert bare_machine.run("/opt/fieldlm/bin/python3", "-I", "-c", MULTIPLY) == "[[10.0, 13.0], [28.0, 40.0]]\n"
    said = bare_machine.run(
        "sh", "-c", "/opt/fieldlm/bin/python3 -I -c 'import numpy; numpy.linalg.inv([[2]])' 2>&1 || :"
    )
    assert "numpy.linalg has no inv here: the package of fieldlm brings numpy without LAPACK" in said


def test_a_traceback_shows_our_lines_and_names_those_of_others(bare_machine: Machine) -> None:
    script = "import msgspec, starlette.routing as r; from fieldlm.core.config import Config; r.Mount('x')"
    said = bare_machine.run("sh", "-c", f'/opt/fieldlm/bin/python3 -I -c "{script}" 2>&1 || :')
    assert "/opt/fieldlm/lib/" in said
    assert "starlette/routing.py" in said
    assert "AssertionError: Routed paths must start with '/'" in said


def test_whatever_it_loads_is_its_own(bare_machine: Machine) -> None:
    script = f"{IMPORTS}; print(open('/proc/self/maps').read())"
    maps = bare_machine.run("/opt/fieldlm/bin/python3", "-I", "-c", script)
    loaded = {line.split()[5] for line in maps.splitlines() if len(line.split()) > 5 and ".so" in line}
    assert len(loaded) > 20
    assert {path for path in loaded if not path.startswith("/opt/fieldlm/")} == set()


def test_its_children_start_as_it_does_and_other_programs_take_the_systems_libraries(bare_machine: Machine) -> None:
    child = "import subprocess, sys; print(sys.executable); sys.stdout.flush(); subprocess.run({}, check=True)"
    own = child.format("[sys.executable, '-I', '-c', 'import fieldlm, numpy; print(numpy.sqrt(4.0))']")
    said = bare_machine.run("/opt/fieldlm/bin/python3", "-I", "-c", own)
    assert said.split() == ["/opt/fieldlm/bin/python3", "2.0"]
    systems = child.format("['cat', '/proc/self/maps']")
    maps = bare_machine.run("/opt/fieldlm/bin/python3", "-I", "-c", systems)
    assert "libc.so" in maps
    assert "/opt/fieldlm" not in maps.partition("\n")[2]


def test_running_it_writes_nothing_into_the_package(bare_machine: Machine) -> None:
    bare_machine.run("fieldlm", "detect")
    assert bare_machine.run("dpkg", "--verify", "fieldlm") == ""
    owned = set(bare_machine.run("dpkg", "-L", "fieldlm").split())
    assert set(bare_machine.run("find", "/opt/fieldlm").split()) <= owned


def test_what_it_brings_comes_with_its_licences(bare_machine: Machine) -> None:
    licences = {path.parent.name for path in bare_machine.root.glob("opt/fieldlm/python/share/doc/*/copyright")}
    assert {"libc6", "libssl3"} <= {name.removesuffix("t64") for name in licences}
    assert any(name.startswith("gcc-") for name in licences)
    assert any("python3." in name for name in licences)
