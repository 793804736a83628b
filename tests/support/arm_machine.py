"""A Debian for ARM in a folder: its Python runs here in qemu, on any processor that qemu imitates.

Nothing is installed: its packages are unpacked and never configured, and wheels are unpacked by this machine's pip, so
that nothing but the tests themselves is imitated. It lies in the tests' cache. Whoever starts a program in it starts
one of this machine: tests that begin processes of their own have no place in there.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.debian_root import MIRROR, ROOT
from tests.support.material import cache

QEMU = "qemu-aarch64-static"
SUITE, PYTHON, LIBC = "bookworm", "3.11", 36
"""Debian 12, its Python, and the minor version of its GNU C library, which is the newest that a wheel may ask for."""
WANTED = ("fieldlm", "onnx")
ABSENT = {"llama-cpp-python"}
"""What has no wheel for ARM: it is built, which takes longer than all of the tests but those of `make deep`."""
INCLUDED = ("python3", "libgomp1")
"""What is unpacked of Debian: libgomp1 is llama.cpp's."""
CROSS_COMPILER = "aarch64-linux-gnu-g++"
FOR_TESTS = ("apsw", "gguf", "hypothesis", "httpx", "pytest", "pytest-xdist")


def has_tools() -> bool:
    """Whether this machine can make one and run it. In CI what is missing has to fail."""
    if platform.machine() == "aarch64":
        return False  # all tests ran on such a processor
    has_all = os.geteuid() == 0 and all(shutil.which(tool) for tool in (QEMU, "debootstrap"))
    return has_all or bool(os.environ.get("CI"))


def has_compiler() -> bool:
    """Whether llama.cpp can be built for it here."""
    return shutil.which(CROSS_COMPILER) is not None


@dataclass(frozen=True)
class ArmMachine:
    """What `arm_machine` made."""

    root: Path
    packages: Path
    engine: Path | None = None
    """Where llama.cpp's Python lies, if it was asked for."""

    def python(self, processor: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run its Python in the project's folder on `processor`, as qemu calls it; wait for it to end."""
        command = [QEMU, "-cpu", processor, "-L", self.root, self.root / f"usr/bin/python{PYTHON}", *arguments]
        folders = (*filter(None, [self.engine]), self.packages, ROOT, ROOT / "runtime", ROOT / "compiler")
        here = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in folders),
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        }
        return subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, check=False)


def arm_machine(*, with_engine: bool = False) -> ArmMachine:
    """Return it; the first call fetches a hundred megabytes, and builds llama.cpp if that is asked for."""
    wheels = "\n".join(requirements())
    digest = hashlib.sha256(wheels.encode()).hexdigest()[:12]
    included = INCLUDED if with_engine else INCLUDED[:1]
    root = cache() / "-".join(["debian", SUITE, "arm64", *included[1:]])
    packages = cache() / f"arm64-wheels-{PYTHON}-{digest}"
    if not root.exists():
        _unpack_debian(root, included)
    if not packages.exists():
        _unpack_wheels(packages, requirements())
    return ArmMachine(root, packages, _engine() if with_engine else None)


def _engine() -> Path:
    """Return the folder of llama-cpp-python as packages have it, with kernels for every arm64 processor."""
    command = [sys.executable, ROOT / "packaging/build_engine.py", "--arch", "arm64"]
    wheel = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    folder = cache() / f"arm64-engine-{PYTHON}-{wheel.parent.name}"
    if not folder.exists():
        # What it needs has a wheel for every machine, or is there already.
        _unpack_wheels(folder, [str(wheel), "diskcache"], "--no-deps")
    return folder


def requirements() -> Iterator[str]:
    """Return what the device half and its tests need, in Python's own spelling, without what has no wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in (*project["dependencies"], *project["optional-dependencies"]["onnx"], *FOR_TESTS):
        needed = Requirement(line)
        if needed.name not in ABSENT and (needed.marker is None or needed.marker.evaluate({"python_version": PYTHON})):
            needed.marker = None
            yield str(needed)


def _unpack_debian(root: Path, included: Iterable[str]) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent) as name:
        part = Path(name) / "root"
        bootstrap = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--include={','.join(included)}"]
        subprocess.run([*bootstrap, SUITE, part, MIRROR], check=True, stdout=subprocess.DEVNULL)
        for package in sorted(part.glob("var/cache/apt/archives/*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, part], check=True)
        os.replace(part, root)


def _unpack_wheels(folder: Path, wanted: Iterable[str], *more: str) -> None:
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(17, LIBC + 1)]
    options = [*more, *(f"--platform={tag}" for tag in (*tags, "manylinux2014_aarch64", "linux_aarch64"))]
    options += [f"--abi={abi}" for abi in ("cp" + PYTHON.replace(".", ""), "abi3", "none")]
    options += ["--implementation=cp", f"--python-version={PYTHON}", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        part = Path(name) / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*command, *options, "--target", part, *wanted], check=True, stdout=subprocess.DEVNULL)
        os.replace(part, folder)
