"""What a Raspberry Pi's firmware finds: the newest kernel, named last, in a config.txt that stays the owner's."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.debian_root import ROOT

PI = ROOT / "packaging/image/pi4"
NAME_KERNEL = PI / "files/usr/lib/fieldlm-image/name-kernel"
TREES = ("bcm2711-rpi-4-b.dtb", "bcm2711-rpi-400.dtb", "bcm2837-rpi-3-b.dtb")


def add_kernel(root: Path, version: str) -> None:
    """Put a kernel where Debian's package does."""
    for folder in ("boot", trees := f"usr/lib/linux-image-{version}/broadcom"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / f"boot/vmlinuz-{version}").write_text(f"kernel {version}")
    (root / f"boot/initrd.img-{version}").write_text(f"initial {version}")
    for name in (*TREES, "bcm2835-rpi-zero-w.dtb"):
        (root / trees / name).write_text(f"tree {version}")


def card_of(root: Path) -> Path:
    """Return the boot partition of a device on which nothing has been named yet."""
    card = root / "boot/firmware"
    card.mkdir(parents=True)
    shutil.copy(PI / "config.txt", card)
    return card


def name_kernel(root: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"} if path else None
    return subprocess.run(["sh", NAME_KERNEL, root], capture_output=True, text=True, check=False, env=environment)


def named(card: Path) -> dict[str, str]:
    """Return what config.txt says, as the firmware reads it: NAME=VALUE, or `initramfs FILE`."""
    said: dict[str, str] = {}
    for line in (card / "config.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=" if "=" in line else " ")
            assert value, f"the firmware makes nothing of {line!r}"
            said[name] = value
    return said


def test_the_newest_kernel_is_on_the_card_and_config_txt_names_it(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    for version in ("6.1.0-9-arm64", "6.1.0-10-arm64"):
        add_kernel(tmp_path, version)
    assert name_kernel(tmp_path).returncode == 0
    said = named(card)
    assert said == {
        "arm_64bit": "1",
        "upstream_kernel": "1",
        "enable_uart": "1",
        "kernel": "vmlinuz-6.1.0-10-arm64",
        "initramfs": "initrd.img-6.1.0-10-arm64",
    }
    assert (card / said["kernel"]).read_text() == "kernel 6.1.0-10-arm64"
    assert (card / said["initramfs"]).read_text() == "initial 6.1.0-10-arm64"
    assert {path.name for path in card.glob("*.dtb")} == set(TREES)
    assert {path.name for path in card.iterdir()} == {"config.txt", said["kernel"], said["initramfs"], *TREES}


def test_a_later_kernel_takes_the_place_of_the_one_before_and_leaves_the_owners_lines(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    add_kernel(tmp_path, "6.1.0-9-arm64")
    name_kernel(tmp_path)
    with (card / "config.txt").open("a") as file:
        file.write("dtparam=audio=off\n")
    add_kernel(tmp_path, "6.1.0-10-arm64")
    assert name_kernel(tmp_path).returncode == 0
    assert named(card)["kernel"] == "vmlinuz-6.1.0-10-arm64"
    assert named(card)["dtparam"] == "audio=off"
    assert sorted(path.name for path in card.glob("*-arm64")) == ["initrd.img-6.1.0-10-arm64", "vmlinuz-6.1.0-10-arm64"]
    (tmp_path / "boot/initrd.img-6.1.0-10-arm64").write_text("made anew")
    assert name_kernel(tmp_path).returncode == 0
    assert (card / "initrd.img-6.1.0-10-arm64").read_text() == "made anew"


def test_until_all_of_a_kernel_is_there_the_one_before_starts(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    add_kernel(tmp_path, "6.1.0-9-arm64")
    name_kernel(tmp_path)
    before = named(card)
    add_kernel(tmp_path, "6.1.0-10-arm64")
    (initial := tmp_path / "boot/initrd.img-6.1.0-10-arm64").rename(tmp_path / "aside")
    assert name_kernel(tmp_path).returncode == 0, "between a kernel and its initial file system"
    assert named(card) == before
    (tmp_path / "aside").rename(initial)
    # The card is full when the initial file system comes.
    programs = tmp_path / "programs"
    programs.mkdir()
    copy = shutil.which("cp")
    (programs / "cp").write_text(f'#!/bin/sh\ncase "$1" in *initrd*) echo full >&2; exit 1 ;; esac\nexec {copy} "$@"\n')
    (programs / "cp").chmod(0o755)
    assert name_kernel(tmp_path, str(programs)).returncode != 0
    assert named(card) == before
    for name in ("kernel", "initramfs"):
        assert (card / before[name]).read_text().endswith("6.1.0-9-arm64")
