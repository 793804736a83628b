"""One build of the package, one Debian root and one bundle for all tests here; Debian needs root to be installed in."""

import functools
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.formats.bundle import Bundle, write_bundle
from fieldlm.formats.profile import profile_sha256
from fieldlm.hardware.detect import detect
from tests.support import depth
from tests.support.debian_root import PYTHON, ROOT, SUITES, Machine, clean_machine
from tests.support.material import tiny_bundle
from tests.support.virtual_machine import boards_that_boot

WHY = {
    "machine": "tests/packaging: left out what needs root, debootstrap, systemd-nspawn and a Debian's Python",
    "qemu": "tests/packaging: left out what needs qemu-user-static",
    "bare_machine": "tests/packaging: left out what needs root, debootstrap and mmdebstrap",
    "image": "tests/packaging: left out what needs root, mmdebstrap, mtools, dosfstools and fdisk",
}
"""Fixtures that not every machine can have → what is said where tests are left out for want of them."""
IMAGE_TOOLS = ("mmdebstrap", "mcopy", "mkfs.vfat", "sfdisk")
WHY_NO_BOOT = "tests/packaging: left out what boots images, for want of QEMU with UEFI (qemu-system-x86 ovmf)"
BOARDS = boards_that_boot()
# A boot takes minutes; at depth 1 the images are looked into only.
collect_ignore = ["test_image_boots.py"] if depth.DEPTH <= 1 or not BOARDS else []
# What builds for arm64 elsewhere takes minutes, too.
collect_ignore += ["test_old_systems.py"] if depth.DEPTH <= 1 or "generic-arm64" not in BOARDS else []
QEMU = f"qemu-{platform.machine()}-static"


@functools.cache
def runs_here() -> bool:
    """In CI what is missing has to fail, so there the tests always run."""
    if os.environ.get("CI"):
        return True
    tools = [shutil.which("debootstrap"), shutil.which("systemd-nspawn")]
    if os.geteuid() != 0 or not all(tools) or PYTHON not in SUITES:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


@functools.cache
def wanting() -> frozenset[str]:
    """Return the fixtures that this machine cannot have. In CI what is missing has to fail."""
    has_qemu = bool(os.environ.get("CI") or shutil.which(QEMU))
    has_tools = runs_here() and all(shutil.which(tool) for tool in IMAGE_TOOLS)
    in_ci = bool(os.environ.get("CI"))
    unpacks = in_ci or (runs_here() and shutil.which("mmdebstrap") is not None)
    has = {"machine": runs_here(), "qemu": has_qemu, "bare_machine": unpacks, "image": in_ci or has_tools}
    return frozenset(name for name in WHY if not has[name])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if wanting() & set(getattr(item, "fixturenames", ()))]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_report_collectionfinish() -> list[str]:
    said = [WHY[name] for name in sorted(wanting())]
    return said if BOARDS or depth.DEPTH <= 1 else [*said, WHY_NO_BOOT]


@pytest.fixture(scope="session")
def qemu() -> str:
    """Return the program that runs this architecture's programs on a processor that it imitates."""
    return QEMU


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package, built the way `make deb` builds it."""
    folder = tmp_path_factory.mktemp("deb")
    command = [sys.executable, ROOT / "packaging/build_deb.py", "--work", folder / "work", "--out", folder]
    subprocess.run(command, check=True)
    (built,) = folder.glob("fieldlm_*.deb")
    return built


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the libraries in the wheel for every processor."""
    command = [sys.executable, ROOT / "packaging/build_engine.py"]
    wheel = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    folder = tmp_path_factory.mktemp("engine")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder / "llama_cpp/lib"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle of the small model that says it was compiled for this machine."""
    made = tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle")
    profile = detect().best
    manifest = msgspec.structs.replace(made.manifest, profile=profile.id, profile_sha256=profile_sha256(profile))
    return write_bundle(made.folder, manifest, Ed25519PrivateKey.generate())


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Generator[Machine]:
    root = tmp_path_factory.mktemp("debian")
    root.chmod(0o755)
    yield clean_machine(root)
    shutil.rmtree(root)


@pytest.fixture
def machine(clean: Machine, deb: Path) -> Machine:
    """Return a Debian in which the package is installed; a test may remove it."""
    if not clean.has("fieldlm"):
        clean.install(deb)
    return clean
