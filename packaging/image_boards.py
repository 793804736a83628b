"""What boards differ in that images are made for: architecture, packages, the way to start, the first partition.

`image/files` is laid over the Debian of all; a board's `overlay` beside it over its own.
"""

from dataclasses import dataclass

import debian


@dataclass(frozen=True)
class Loader:
    """A file of one of Debian's packages that goes to the boot partition; the package itself is not installed."""

    package: str
    inside: str
    target: str


@dataclass(frozen=True)
class Board:
    """How a board starts. `texts`: file in `image/` → its place on the boot partition, with @CMDLINE@ filled in."""

    architecture: str
    packages: tuple[str, ...]
    loaders: tuple[Loader, ...]
    texts: dict[str, str]
    table: str = "gpt"
    boot_type: str = "U"
    """How sfdisk calls the boot partition's type."""
    boot_mib: int = 128
    cmdline: str = "console=tty0"
    overlay: str = ""


def uefi(architecture: str, short: str, target: str, *firmware: str) -> Board:
    """Return a board whose UEFI starts Debian's signed shim and GRUB from where a stick has them."""
    grub = f"usr/lib/grub/{target}-signed/grub{short}.efi.signed"
    loaders = (
        Loader("shim-signed", f"usr/lib/shim/shim{short}.efi.signed", f"EFI/BOOT/BOOT{short.upper()}.EFI"),
        Loader(f"grub-efi-{architecture}-signed", grub, f"EFI/BOOT/grub{short}.efi"),
    )
    return Board(architecture, (f"linux-image-{architecture}", *firmware), loaders, {"grub.cfg": "EFI/debian/grub.cfg"})


def raspberry_pi() -> Board:
    """Return the Raspberry Pi 4 and 400, which start Debian's kernel from the card by their own firmware."""
    names = ("start4.elf", "fixup4.dat", "bootcode.bin", "start.elf", "fixup.dat")
    files = [Loader("raspi-firmware", f"usr/lib/raspi-firmware/{name}", name) for name in names]
    # The firmware is not free: what its makers allow goes with it.
    licence = Loader("raspi-firmware", "usr/share/doc/raspi-firmware/copyright", "LICENCE.raspi-firmware")
    return Board(
        "arm64",
        ("linux-image-arm64", "firmware-brcm80211"),
        (*files, licence),
        {"pi4/config.txt": "config.txt", "pi4/cmdline.txt": "cmdline.txt"},
        # Its boot ROM and older firmware look into no other kind of table.
        table="dos",
        boot_type="c",
        # Two kernels, each with its initial file system.
        boot_mib=384,
        cmdline="console=ttyS1,115200 console=tty0 rootwait net.ifnames=0",
        overlay="pi4/files",
    )


BOARDS = {
    "generic-amd64": uefi("amd64", "x64", "x86_64-efi", "firmware-realtek"),
    "generic-arm64": uefi("arm64", "aa64", "arm64-efi"),
    "pi4": raspberry_pi(),
}
NOT_YET = {
    "pi5": (
        "the kernel of Debian {suite} knows neither the network nor the USB of a Raspberry Pi 5 (from Linux 6.18 on); "
        "on Raspberry Pi OS install the package: make deb ARCH=arm64"
    ),
}
"""Boards that people ask for → why there is no image for them."""


def why_not(name: str) -> str | None:
    """Return why there is no image for the board `name`, if that is known."""
    return NOT_YET[name].format(suite=debian.suite()) if name in NOT_YET else None
