"""Build dist/fieldlm_VERSION_BOARD.img: a disk that boots Debian with fieldlm in it, from `make deb`'s package.

The stages, in order: bootstrap (mmdebstrap: Debian, the package, `packaging/image/`), measure, partition, fill. Three
partitions: `FIELDLM` (FAT; boot loader, fieldlm.toml), `fieldlm-root`, and `fieldlm-var`, which grows to the end of the
disk. `image_boards.py` says what boards differ in. Needs mmdebstrap, mtools, dosfstools, fdisk and e2fsprogs, and root
or a user who may have other user ids (/etc/subuid). Knows nothing of what fieldlm does.
"""

import argparse
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import build_deb
import debian
import image_boards
from image_boards import BOARDS, Board

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "packaging" / "image"
TOOLS = {
    "mmdebstrap": "mmdebstrap", "mcopy": "mtools", "mkfs.vfat": "dosfstools", "sfdisk": "fdisk", "mke2fs": "e2fsprogs",
}  # fmt: skip
PACKAGES = (
    "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "udev", "dbus", "kmod", "initramfs-tools", "zstd",
    "e2fsprogs", "dosfstools", "fdisk", "iproute2", "iputils-ping", "iwd", "wireless-regdb", "openssh-server", "less",
    "nano-tiny", "procps", "login", "ca-certificates", "python3", "libgomp1", "libstdc++6",
)  # fmt: skip
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
MIB = 1 << 20
START_MIB = 4
FIRST = "./boot/firmware/"
"""Where the archive of the system holds what goes to the boot partition."""
GROWTH = 1.15
"""What ext4 needs over the sum of its files: tables, journal, directories."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build the image and print its path."""
    arguments = argparse.ArgumentParser(description="Build a disk image that boots into fieldlm.")
    arguments.add_argument("--board", type=board_named, choices=tuple(BOARDS), default="generic-amd64")
    arguments.add_argument("--deb", type=Path, help="fieldlm's package; built unless given")
    arguments.add_argument("--bundle", type=Path, help="bundle that it serves from its first start on")
    arguments.add_argument("--provision", type=Path, help="a fieldlm.toml, or a folder with it and the files it names")
    arguments.add_argument("--read-only", action="store_true", help="mount / read-only; /var stays writable")
    arguments.add_argument("--packages", default="", help="more of Debian's packages, with blanks between")
    arguments.add_argument("--cmdline", default="", help="more words for the kernel, as in console=ttyS0")
    arguments.add_argument(
        "--without-kernel", action="store_true", help="for a look at all else, in a third of the time"
    )
    arguments.add_argument("--work", type=Path, default=ROOT / "build" / "image", help="emptied, then built in")
    arguments.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the image")
    given = arguments.parse_args(argv)
    board = BOARDS[given.board]
    check(given)
    work: Path = given.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    deb = given.deb or built_deb(work, board.architecture)
    tree = bootstrap(work, board, deb.resolve(), given)
    image = (given.out / f"fieldlm_{version('fieldlm')}_{given.board}.img").resolve()
    image.parent.mkdir(parents=True, exist_ok=True)
    part = image.with_suffix(".part")
    sizes = partition(part, board, tree, given.bundle)
    fill_boot(part, board, tree, given.provision, work)
    fill_systems(part, tree, sizes, work, given.bundle)
    part.replace(image)
    shutil.rmtree(work)
    print(image)
    return 0


def board_named(name: str) -> str:
    """Return `name`; where it is known why it is no board, that is said."""
    if reason := image_boards.why_not(name):
        raise argparse.ArgumentTypeError(reason)
    return name


def check(given: argparse.Namespace) -> None:
    """End with one line where a tool is missing or an input is not what it has to be."""
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    os.environ["PATH"] = search
    if missing := [package for tool, package in TOOLS.items() if not shutil.which(tool)]:
        raise SystemExit(f"building an image needs {', '.join(missing)}; run: sudo apt install {' '.join(missing)}")
    debian.suite()
    if given.bundle and not (given.bundle / "manifest.json").is_file():
        raise SystemExit(f"--bundle {given.bundle} is no bundle: it has no manifest.json; see: fieldlm compile")
    if given.provision:
        file = given.provision / "fieldlm.toml" if given.provision.is_dir() else given.provision
        checked = [sys.executable, "-m", "fieldlm", "provision", "--check", file]
        if subprocess.run(checked, stdout=sys.stderr, check=False).returncode:
            raise SystemExit(f"--provision {given.provision} is wrong, as said above")
    if is_foreign(BOARDS[given.board]) and not foreign_programs_run(given):
        raise SystemExit(
            f"{given.board} is no {os.uname().machine}; "
            "to run its programs here: sudo apt install qemu-user-static binfmt-support"
        )


def is_foreign(board: Board) -> bool:
    """Say whether the programs of `board` are emulated here."""
    return build_deb.ARCHITECTURES.get(os.uname().machine) != board.architecture


def foreign_programs_run(given: argparse.Namespace) -> bool:
    """Whether this kernel hands the board's programs to an emulator."""
    name = {"arm64": "aarch64", "amd64": "x86_64"}[BOARDS[given.board].architecture]
    return Path(f"/proc/sys/fs/binfmt_misc/qemu-{name}").exists()


def built_deb(work: Path, architecture: str) -> Path:
    """Return fieldlm's package for every processor of `architecture`, built here."""
    out = work / "deb"
    build_deb.main(["--work", str(work / "deb-work"), "--out", str(out), "--arch", architecture])
    return next(out.glob("fieldlm_*.deb"))


def bootstrap(work: Path, board: Board, deb: Path, given: argparse.Namespace) -> Path:
    """Have mmdebstrap make the whole system as a tar archive; returns its path. The loaders lie in `work`/loaders."""
    tree, overlay = work / "tree.tar", work / "overlay.tar"
    write_overlay(overlay, board, given)
    (work / "deb.tar").write_bytes(tar_of({f"tmp/{deb.name}": (deb.read_bytes(), 0o644)}))
    (work / "loaders").mkdir()
    excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    kept = ["--dpkgopt=path-include=/usr/share/doc/*/copyright", "--aptopt=Acquire::Languages none"]
    kernel = () if given.without_kernel else board.packages
    install = "env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends"
    hooks = [
        # Nothing has to survive a power cut of this machine; of the device, it has.
        # Before the kernel's package makes its first initial file system, and before anything is enabled.
        '--essential-hook=echo force-unsafe-io > "$1/etc/dpkg/dpkg.cfg.d/building"',
        f"--essential-hook=tar-in {shlex.quote(str(overlay))} /",
        # systemd-resolved has put a link there that leads nowhere while it does not run.
        '--customize-hook=rm -f "$1/etc/resolv.conf"; cat /etc/resolv.conf > "$1/etc/resolv.conf"',
        f"--customize-hook=tar-in {shlex.quote(str(work / 'deb.tar'))} /",
        # The kernel, too, only now: among the others its initial file system would be made twice.
        f'--customize-hook=chroot "$1" {install} {" ".join([*kernel, f"/tmp/{deb.name}"])}',
        *(f"--customize-hook={command}" for command in finishing(board, work, has_kernel=bool(kernel))),
    ]
    packages = ",".join([*PACKAGES, *given.packages.split()])
    command = ["mmdebstrap", "--variant=minbase", "--format=tar", f"--architectures={board.architecture}"]
    options = [*excluded, *kept, *hooks, f"--include={packages}"]
    subprocess.run(
        [*command, *options, debian.suite(), tree, *debian.sources()],
        check=True,
        stdout=sys.stderr,
        env=os.environ | {"SOURCE_DATE_EPOCH": build_deb.source_date()},
    )
    return tree


def finishing(board: Board, work: Path, *, has_kernel: bool) -> list[str]:
    """Return the commands that make a system of what is installed; "$1" is its root."""
    commands: list[str] = []
    for package in dict.fromkeys(loader.package for loader in board.loaders):
        # Only its files are wanted, not what its package does to a machine's firmware.
        script = f"cd /tmp && apt-get download --quiet {package} && dpkg-deb --extract {package}_*.deb loader"
        commands.append(f'chroot "$1" sh -c {shlex.quote(script)}')
    loaders = shlex.quote(str(work / "loaders"))
    commands += [f"copy-out /tmp/loader/{loader.inside} {loaders}" for loader in board.loaders]
    if has_kernel and is_foreign(board):
        # Its own programs would take half an hour for it; see write_overlay.
        commands.append(f'{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / "packaging/initramfs.py"))} "$1"')
    if has_kernel and board.overlay:
        commands.append('sh "$1/usr/lib/fieldlm-image/name-kernel" "$1"')
    return [
        *commands,
        'chroot "$1" systemctl enable --quiet fieldlm-provision fieldlm-grow systemd-networkd iwd',
        'chroot "$1" passwd --quiet --lock root',
        # What must not be in two devices: keys of sshd, the machine's id, the seed of its random numbers.
        'rm -rf "$1"/etc/ssh/ssh_host_* "$1"/var/lib/systemd/random-seed "$1"/var/lib/dbus/machine-id '
        '"$1"/etc/dpkg/dpkg.cfg.d/building "$1"/etc/initramfs-tools/conf.d/zz-building "$1"/tmp/* '
        '"$1"/var/cache/apt/*.bin "$1"/var/log/*.log',
        # Empty, not missing: a "first boot" would enable every unit there is.
        ': > "$1/etc/machine-id"',
        'echo fieldlm > "$1/etc/hostname"',
        'ln -sf ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"',
    ]


def write_overlay(path: Path, board: Board, given: argparse.Namespace) -> None:
    """Write what is laid over Debian as a tar archive; what belongs on the boot partition lies in /boot/firmware."""
    files: dict[str, tuple[bytes, int]] = {}
    for folder in (IMAGE / "files", *([IMAGE / board.overlay] if board.overlay else [])):
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                mode = 0o755 if os.access(file, os.X_OK) else 0o644
                files[str(file.relative_to(folder))] = (file.read_bytes(), mode)
    options = "noatime,ro" if given.read_only else "noatime"
    table = (
        f"LABEL=fieldlm-root / ext4 {options} 0 1\n"
        "LABEL=fieldlm-var /var ext4 noatime,x-systemd.growfs 0 2\n"
        # FAT has no journal: written to only while fieldlm.toml is taken in.
        "LABEL=FIELDLM /boot/firmware vfat ro,noatime,umask=0077,nofail 0 2\n"
        "tmpfs /tmp tmpfs nosuid,nodev,size=25% 0 0\n"
    )
    files["etc/fstab"] = (table.encode(), 0o644)
    if is_foreign(board):
        # packaging/initramfs.py adds the modules.
        files["etc/initramfs-tools/conf.d/zz-building"] = (b"MODULES=list\n", 0o644)
    words = f"root=LABEL=fieldlm-root ro fsck.repair=yes panic=10 {board.cmdline} {given.cmdline}".strip()
    for source, target in board.texts.items():
        text = (IMAGE / source).read_text().replace("@CMDLINE@", words)
        files[f"boot/firmware/{target}"] = (text.encode(), 0o644)
    path.write_bytes(tar_of(files))


def tar_of(files: dict[str, tuple[bytes, int]]) -> bytes:
    """Return a tar archive of root's files: path → bytes and mode; with the folders above them."""
    held = io.BytesIO()
    folders: set[str] = set()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, (data, mode) in files.items():
            for folder in reversed(Path(name).parents[:-1]):
                if str(folder) not in folders:
                    folders.add(str(folder))
                    info = tarfile.TarInfo(f"./{folder}")
                    info.type, info.mode = tarfile.DIRTYPE, 0o1777 if str(folder) == "tmp" else 0o755
                    archive.addfile(info)
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mode, info.mtime = len(data), mode, int(build_deb.source_date())
            archive.addfile(info, io.BytesIO(data))
    return held.getvalue()


def partition(image: Path, board: Board, tree: Path, bundle: Path | None) -> dict[str, tuple[int, int]]:
    """Write an empty image with its table; returns where partitions `root` and `var` begin and what they hold, MiB."""
    held = {"root": 0, "var": 0}
    with tarfile.open(tree) as archive:
        for member in archive:
            if not member.name.startswith(FIRST):
                held["var" if member.name.startswith("./var/") else "root"] += -(-member.size // 4096) * 4096 + 256
    if bundle:
        held["var"] += sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    root_mib = int(held["root"] * GROWTH / MIB) + 256  # room for one more kernel
    var_mib = int(held["var"] * GROWTH / MIB) + 256
    root_start = START_MIB + board.boot_mib
    var_start = root_start + root_mib
    areas = (
        (START_MIB, board.boot_mib, board.boot_type),
        (root_start, root_mib, "L"),
        (var_start, var_mib, "L"),
    )
    lines = [f"start={start}MiB, size={size}MiB, type={kind}\n" for start, size, kind in areas]
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate((var_start + var_mib + 4) * MIB)
    script = f"label: {board.table}\n" + "".join(lines)
    subprocess.run(["sfdisk", "--quiet", image], check=True, input=script, text=True, stdout=sys.stderr)
    return {"root": (root_start, root_mib), "var": (var_start, var_mib)}


def fill_boot(image: Path, board: Board, tree: Path, provision: Path | None, work: Path) -> None:
    """Make the boot partition in `image`: the loader, what it reads, and what the device is told."""
    part = work / "boot.vfat"
    # Small clusters: with fewer than 65525 it would be no FAT32.
    vfat = ["mkfs.vfat", "-F", "32", "-s", "2", "-n", "FIELDLM", "-C", part, str(board.boot_mib * 1024)]
    subprocess.run(vfat, check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        boot = Path(folder)
        with tarfile.open(tree) as archive:
            for member in archive:
                if member.name.startswith(FIRST) and member.isfile():
                    target = boot / member.name.removeprefix(FIRST)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    data = archive.extractfile(member)
                    assert data
                    target.write_bytes(data.read())
        for loader in board.loaders:
            (boot / loader.target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(work / "loaders" / Path(loader.inside).name, boot / loader.target)
        shutil.copy(IMAGE / "fieldlm-template.toml", boot)
        if provision:
            given = sorted(provision.iterdir()) if provision.is_dir() else [provision]
            for file in given:
                shutil.copy(file, boot / ("fieldlm.toml" if file == provision else file.name))
        entries = sorted(boot.iterdir())
        subprocess.run(["mcopy", "-s", "-Q", "-i", part, *entries, "::"], check=True)
    with part.open("rb") as source, image.open("r+b") as target:
        target.seek(START_MIB * MIB)
        shutil.copyfileobj(source, target, MIB)


def fill_systems(image: Path, tree: Path, sizes: dict[str, tuple[int, int]], work: Path, bundle: Path | None) -> None:
    """Write / and /var into `image`. Runs as root, or as who is taken for root where files get their owners."""
    features = "^metadata_csum_seed,^orphan_file"  # that GRUB 2.06 does not know
    make = f"mke2fs -q -F -t ext4 -O {features} -m 1"
    target, folder = shlex.quote(str(image)), shlex.quote(str(work / "unpacked"))
    commands = [
        f"mkdir {folder}",
        f"tar -xf {shlex.quote(str(tree))} -C {folder} --numeric-owner --xattrs --xattrs-include='*'",
        # What lies there is on the partition that is mounted over it.
        f"rm -rf {folder}/boot/firmware",
        f"mkdir {folder}/boot/firmware",
        f"rm -rf {folder}/dev/*",
        f"mv {folder}/var {folder}.var",
        f"mkdir {folder}/var",
    ]
    if bundle:
        state = f"{folder}.var/lib/fieldlm"
        commands += [
            f"cp -rL --no-preserve=all {shlex.quote(str(bundle.resolve()))} {state}/factory",
            f"chown -R --reference={state} {state}/factory",
        ]
    for name, source in (("var", f"{folder}.var"), ("root", folder)):
        start, size = sizes[name]
        commands.append(f"{make} -L fieldlm-{name} -E offset={start * MIB} -d {source} {target} {size}M")
    commands.append(f"rm -rf {folder} {folder}.var")
    outer = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-auto", "--map-root-user"]
    subprocess.run([*outer, "sh", "-ec", "\n".join(commands)], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
