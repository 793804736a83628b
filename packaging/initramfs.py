"""Give the initial file systems in a root the kernel modules that a start may need, without running a program of it.

Debian's mkinitramfs asks about each of two thousand modules with several programs. Emulated, which is how a root of
another architecture is built, that takes half an hour. So it is told to take none (MODULES=list), and they are written
here: Linux takes several archives one after the other, and a later one's files win. What the device makes later, when
`apt upgrade` brings a kernel, is Debian's own, from its own list of modules.
"""

import gzip
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

FOLDERS = (
    "arch/arm64/crypto", "arch/x86/crypto", "crypto", "fs/ext4", "lib",
    *(f"drivers/{name}" for name in (
        "ata", "block", "bus", "char/hw_random", "clk", "dma", "extcon", "firmware", "gpio", "hv", "hwspinlock",
        "i2c/busses", "i2c/muxes", "interconnect", "iommu", "irqchip", "mailbox", "memory", "message", "mfd", "mmc",
        "mux", "nvme", "nvmem", "pci", "phy", "pinctrl", "pmdomain", "pwm", "regulator", "reset", "rpmsg", "scsi",
        "soc", "spi", "tee", "ufs", "usb/chipidea", "usb/common", "usb/core", "usb/dwc2", "usb/dwc3", "usb/host",
        "usb/musb", "usb/phy", "usb/roles", "usb/storage", "usb/typec", "virtio",
    )),
)  # fmt: skip
"""Where the modules lie that a disk, a card or a stick may need until / is mounted, and what these may need."""
SUFFIX = re.compile(r"\.ko(\.\w+)?$")
SOFT = re.compile(r"^softdep (\S+) (.*)$", re.MULTILINE)


def main(argv: Sequence[str] | None = None) -> int:
    """Add them to every initial file system in the root that is named; print how many."""
    (root,) = sys.argv[1:] if argv is None else argv
    for initial in sorted(Path(root, "boot").glob("initrd.img-*")):
        folder = Path(root, "lib/modules", initial.name.removeprefix("initrd.img-"))
        names = chosen(folder)
        add(initial, newc(members(folder, names)))
        print(f"{initial.name}: {len(names)} modules added", file=sys.stderr)
    return 0


def chosen(folder: Path) -> list[str]:
    """Return the modules in `folder`, by their paths there, that lie in FOLDERS, and all that they need."""
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        name, _, others = line.partition(":")
        needs[name] = others.split()
    by_name = {plain(name): name for name in needs}
    for name, others in soft_needs(folder).items():
        if name in by_name:
            needs[by_name[name]] += [by_name[other] for other in others if other in by_name]
    wanted = [name for name in needs if name.startswith(tuple(f"kernel/{each}/" for each in FOLDERS))]
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted += needs[name]
    return sorted(found)


def soft_needs(folder: Path) -> dict[str, list[str]]:
    """Return what modules ask for beside what they are linked with, by their plain names."""
    path = folder / "modules.softdep"
    text = path.read_text() if path.exists() else ""
    found: dict[str, list[str]] = {}
    for name, words in SOFT.findall(text):
        found.setdefault(plain(name), []).extend(plain(word) for word in words.split() if not word.endswith(":"))
    return found


def plain(name: str) -> str:
    """Return how a module is called: its file's name, in which - and _ are the same."""
    return SUFFIX.sub("", name.rpartition("/")[2]).replace("-", "_")


def members(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
    """Yield path, mode and bytes of `names`, of the lists about modules, and of the folders above them."""
    lists = sorted(path.name for path in folder.glob("modules.*"))
    # "lib" is there already, and most often a link.
    made = {"lib"}
    for name in [*lists, *names]:
        path = Path("lib/modules", folder.name, name)
        for above in reversed([str(each) for each in path.parents[:-1]]):
            if above not in made:
                made.add(above)
                yield above, stat.S_IFDIR | 0o755, b""
        yield str(path), stat.S_IFREG | 0o644, (folder / name).read_bytes()


def newc(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Return an archive as Linux unpacks it when it starts (cpio's "newc"): files of root, without a time."""
    archive = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        # inode, mode, user, group, links, time, size, device's two numbers, those of a device file, length of the name
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def add(initial: Path, archive: bytes) -> None:
    """Append `archive` to the initial file system, compressed as every kernel can read it, where Linux looks for it."""
    with initial.open("ab") as file:
        file.write(bytes(-file.tell() % 4) + gzip.compress(archive, 6, mtime=0))


if __name__ == "__main__":
    sys.exit(main())
