"""Modules for a start on other hardware are added to an initial file system without running its programs."""

import gzip
import subprocess
import sys
from pathlib import Path

from tests.support.debian_root import ROOT

DEPENDENCIES = """\
kernel/drivers/mmc/host/sdhci-iproc.ko: kernel/drivers/mmc/host/sdhci-pltfm.ko kernel/net/core.ko
kernel/drivers/mmc/host/sdhci-pltfm.ko:
kernel/drivers/net/ethernet/big.ko: kernel/net/core.ko
kernel/net/core.ko:
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz
kernel/fs/jbd2/jbd2.ko.xz:
kernel/misc/crc-soft.ko:
"""


def add_modules(root: Path) -> None:
    subprocess.run([sys.executable, ROOT / "packaging/initramfs.py", root], check=True)


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read "newc" as the kernel does: path → mode and bytes."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        assert at % 4 == 0
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        start = at + 110 + length + -(at + 110 + length) % 4
        if name == "TRAILER!!!":
            return found
        found[name] = mode, archive[start : start + size]
        at = start + size + -(start + size) % 4


def make_root(root: Path) -> Path:
    """Make a root with one kernel's modules, /lib a link as in Debian; return its initial file system."""
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    folder = root / "lib/modules/6.1.0-1-arm64"
    for line in DEPENDENCIES.splitlines():
        path = folder / line.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (folder / "modules.dep").write_text(DEPENDENCIES)
    (folder / "modules.alias.bin").write_bytes(b"all aliases")
    (folder / "modules.softdep").write_text("# notes\nsoftdep ext4 pre: crc_soft post: nobody\n")
    (root / "boot").mkdir()
    initial = root / "boot/initrd.img-6.1.0-1-arm64"
    initial.write_bytes(b"Debian's own, of odd length")
    return initial


def test_what_a_disk_may_need_is_added_with_all_that_it_needs_and_nothing_else(tmp_path: Path) -> None:
    initial = make_root(tmp_path)
    before = initial.read_bytes()
    add_modules(tmp_path)
    after = initial.read_bytes()
    assert after.startswith(before + b"\0"), "what Debian made stays as it is, and stays first"
    assert after[len(before) + 1 :].startswith(b"\x1f\x8b"), "at a multiple of four bytes"
    files = unpacked(gzip.decompress(after[len(before) + 1 :]))
    home = "lib/modules/6.1.0-1-arm64"
    assert {name.removeprefix(f"{home}/") for name, (mode, _) in files.items() if mode == 0o100644} == {
        "kernel/drivers/mmc/host/sdhci-iproc.ko",
        "kernel/drivers/mmc/host/sdhci-pltfm.ko",
        "kernel/net/core.ko",
        "kernel/fs/ext4/ext4.ko.xz",
        "kernel/fs/jbd2/jbd2.ko.xz",
        "kernel/misc/crc-soft.ko",
        "modules.dep",
        "modules.alias.bin",
        "modules.softdep",
    }
    assert files[f"{home}/modules.dep"] == (0o100644, DEPENDENCIES.encode())
    assert files[f"{home}/kernel/fs/ext4"] == (0o040755, b"")


def test_every_folder_is_made_before_what_lies_in_it_and_lib_which_is_a_link_is_not(tmp_path: Path) -> None:
    initial = make_root(tmp_path)
    before = len(initial.read_bytes()) + 1
    add_modules(tmp_path)
    names = list(unpacked(gzip.decompress(initial.read_bytes()[before:])))
    assert names[0] == "lib/modules"
    for number, name in enumerate(names[1:], start=1):
        assert name.rpartition("/")[0] in names[:number]
