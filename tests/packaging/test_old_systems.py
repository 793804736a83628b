"""The arm64 package that brings its Python, on a system as old as JetPack 5: Ubuntu 20.04's C library, and no Python.

Only `make deep` has the time: the package is built for another architecture, and its programs are emulated.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import material
from tests.support.debian_root import MIRROR, ROOT, Machine
from tests.support.packed import EVERY_HELP, EVERY_MODULE, MULTIPLY

SUITE = "bullseye"
"""A Debian whose C library is 2.31, which is Ubuntu 20.04's."""


def test_the_arm64_package_answers_where_the_c_library_is_old_and_no_python_is(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "packaging/build_deb.py", "--with-python", "--arch", "arm64"]
    subprocess.run([*command, "--work", tmp_path / "work", "--out", tmp_path], check=True)
    (deb,) = tmp_path.glob("fieldlm_*_arm64_with-python.deb")
    assert int(subprocess.check_output(["dpkg-deb", "--field", deb, "Installed-Size"])) * 1024 <= 90e6
    machine = Machine(old_root(tmp_path / "root"))
    subprocess.run(["dpkg-deb", "--extract", deb, machine.root], check=True)
    bundle = material.compiled_for(material.tiny_bundle(tmp_path / "tiny"), "generic-aarch64", tmp_path / "bundle")
    shutil.copytree(bundle, machine.root / "tmp/bundle")
    assert machine.run("uname", "-m") == "aarch64\n"
    assert machine.run("fieldlm", "--version").startswith("fieldlm ")
    for script in (EVERY_MODULE, EVERY_HELP):
        assert machine.run("/opt/fieldlm/bin/python3", "-I", "-c", script) == ""
    assert machine.run("/opt/fieldlm/bin/python3", "-I", "-c", MULTIPLY) == "[[10.0, 13.0], [28.0, 40.0]]\n"
    assert machine.run("fieldlm", "run", "/tmp/bundle", "Hello").strip()


def old_root(root: Path) -> Path:
    """Unpack, without running a program of it, what a shell needs; return the folder."""
    include = "--include=dash,coreutils,ca-certificates"
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--format=directory", "--architectures=arm64", include]
    subprocess.run([*command, SUITE, root, f"deb {MIRROR} {SUITE} main"], check=True)
    root.chmod(0o755)
    assert (root / "lib/aarch64-linux-gnu/libc-2.31.so").exists()
    assert not list(root.glob("usr/bin/python*"))
    for folder in ("proc", "sys", "dev", "tmp"):
        (root / folder).mkdir(exist_ok=True)
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to("dash")
    return root
