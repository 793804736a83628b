"""What an image holds: partitions, loader, systems without a fault, units that systemd takes, nobody's keys.

It is built without a kernel here, which is most of the time; `make deep` builds it whole and boots it
(`test_image_boots.py`).
"""

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fieldlm.formats.bundle import Bundle
from tests.support.debian_root import ROOT, Machine

BOARD = {"x86_64": "generic-amd64", "aarch64": "generic-arm64"}.get(platform.machine(), "generic-amd64")
TOLD = 'name = "kiosk-17"\n[settings]\nfleet = "north"\n[keys]\ntrust = "root.json"\n'
BUILD = (sys.executable, ROOT / "packaging/build_image.py")
UNITS = (
    "fieldlm-provision.service",
    "fieldlm-grow.service",
    "fieldlm.service",
    "systemd-networkd.service",
    "iwd.service",
)


@dataclass(frozen=True)
class Image:
    """An image, and its three partitions as folders; `system` is the last two together."""

    file: Path
    boot: Path
    system: Machine

    def partitions(self) -> list[dict[str, int | str]]:
        return json.loads(subprocess.check_output(["sfdisk", "--json", self.file]))["partitiontable"]["partitions"]


def start_bytes(file: Path, number: int) -> int:
    table = json.loads(subprocess.check_output(["sfdisk", "--json", file]))["partitiontable"]["partitions"]
    return int(table[number]["start"]) * 512


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, deb: Path, bundle: Bundle) -> Image:
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)
    (folder / "card").mkdir()
    (folder / "card/fieldlm.toml").write_text(TOLD)
    (folder / "card/root.json").write_text("{}")
    options = ["--board", BOARD, "--deb", deb, "--bundle", bundle.folder, "--provision", folder / "card", "--read-only"]
    places = ["--without-kernel", "--work", folder / "work", "--out", folder]
    subprocess.run([*BUILD, *options, *places], check=True)
    (file,) = folder.glob("fieldlm_*.img")
    boot, system = folder / "boot", folder / "system"
    boot.mkdir()
    subprocess.run(["mcopy", "-s", "-Q", "-i", f"{file}@@{start_bytes(file, 0)}", "::", boot], check=True)
    system.mkdir(mode=0o755)
    for number, place in ((1, "/"), (2, "/var")):
        device = f"{file}?offset={start_bytes(file, number)}"
        subprocess.run(["debugfs", "-R", f"rdump / {system}{place}", device], check=True, capture_output=True)
    return Image(file, boot, Machine(system))


def test_it_has_three_partitions_and_the_first_is_where_uefi_looks(image: Image) -> None:
    table = image.partitions()
    assert len(table) == 3
    assert table[0]["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "the EFI system partition"
    assert all(int(part["start"]) % 2048 == 0 for part in table), "on whole megabytes, as cards like it"
    loader = {"generic-amd64": "X64", "generic-arm64": "AA64"}[BOARD]
    for name in (f"EFI/BOOT/BOOT{loader}.EFI", f"EFI/BOOT/grub{loader.lower()}.efi"):
        assert (image.boot / name).read_bytes().startswith(b"MZ")
    menu = (image.boot / "EFI/debian/grub.cfg").read_text()
    assert menu.count("linux /vmlinuz") == 2
    assert "root=LABEL=fieldlm-root ro " in menu
    assert "@" not in menu


def test_its_file_systems_are_without_a_fault(image: Image) -> None:
    for number, label in ((1, "fieldlm-root"), (2, "fieldlm-var")):
        device = f"{image.file}?offset={start_bytes(image.file, number)}"
        subprocess.run(["e2fsck", "-f", "-n", device], check=True, capture_output=True)
        header = subprocess.run(["dumpe2fs", "-h", device], check=True, capture_output=True, text=True).stdout
        assert f"Filesystem volume name:   {label}\n" in header
        assert "has_journal" in header


def test_it_holds_the_bundle_and_what_it_is_told(image: Image, bundle: Bundle) -> None:
    assert (image.boot / "fieldlm.toml").read_text() == TOLD
    assert (image.boot / "root.json").read_text() == "{}"
    assert (image.boot / "fieldlm-template.toml").exists()
    factory = image.system.root / "var/lib/fieldlm/factory"
    assert {path.name for path in factory.iterdir()} == {path.name for path in bundle.folder.iterdir()}
    assert image.system.run("stat", "--format=%U", "/var/lib/fieldlm/factory/manifest.json") == "fieldlm\n"


def test_nothing_that_two_devices_must_not_share_is_in_it(image: Image) -> None:
    root = image.system.root
    assert (root / "etc/machine-id").read_bytes() == b""
    assert list(root.glob("etc/ssh/ssh_host_*")) == []
    assert not (root / "var/lib/systemd/random-seed").exists()
    assert {path.name for path in (root / "var/lib/fieldlm").iterdir()} == {"factory"}
    (login,) = [line for line in (root / "etc/shadow").read_text().splitlines() if line.startswith("root:")]
    assert login.split(":")[1][0] in "!*"


def test_only_var_is_written_to_and_a_kernel_may_be_put_beside(image: Image) -> None:
    table = {line.split()[1]: line.split()[3] for line in (image.system.root / "etc/fstab").read_text().splitlines()}
    assert "ro" in table["/"].split(",")
    assert "ro" in table["/boot/firmware"].split(",")
    assert "x-systemd.growfs" in table["/var"].split(",")
    assert not (image.system.root / "etc/dpkg/dpkg.cfg.d/building").exists(), "dpkg waits for the disk on a device"


def test_systemd_finds_no_fault_with_its_units_and_starts_them(image: Image) -> None:
    for unit in UNITS:
        assert image.system.run("systemctl", "is-enabled", unit) == "enabled\n"
    for unit in UNITS[:2]:
        said = image.system.run("sh", "-c", f"systemd-analyze verify --man=no {unit} 2>&1")
        assert "fieldlm" not in said


def test_the_system_takes_in_what_the_card_says(image: Image) -> None:
    shutil.copytree(image.boot, image.system.root / "boot/firmware", dirs_exist_ok=True)
    told = image.system.run("fieldlm", "provision", "/boot/firmware/fieldlm.toml")
    assert told == "/boot/firmware/fieldlm.toml: taken in: name kiosk-17; settings fleet; keys trust\n"
    assert json.loads(image.system.run("fieldlm", "config", "--json"))["trust"]["value"] == "/etc/fieldlm/keys/trust"
    owner = image.system.run("stat", "--format=%U:%G %a", "/etc/fieldlm/keys/trust")
    assert owner == "root:fieldlm 640\n"
    left = {path.name for path in (image.system.root / "boot/firmware").iterdir()}
    assert left & {"fieldlm.toml", "root.json"} == set()


def test_what_cannot_be_built_is_said_in_a_line_before_anything_is(tmp_path: Path, image: Image) -> None:
    (tmp_path / "fieldlm.toml").write_text('name = "Kiosk 17"')
    wrong = {
        "want 1–63 small letters": ["--provision", tmp_path / "fieldlm.toml"],
        "is no bundle": ["--bundle", tmp_path],
        "invalid choice: 'toaster'": ["--board", "toaster"],
        "knows neither the network nor the USB of a Raspberry Pi 5": ["--board", "pi5"],
    }
    for line, options in wrong.items():
        done = subprocess.run(
            [*BUILD, *options, "--work", tmp_path / "work"], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert line in done.stderr
        assert not (tmp_path / "work").exists()
