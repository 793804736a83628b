"""A clean Debian root to install the package in. Each command gets its own mount namespace: nothing stays mounted."""

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.material import cache

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SUITES = {"3.11": "bookworm", "3.13": "trixie"}  # the Debian whose python3 is the one that built the package
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
ENTER = 'for name in proc sys dev; do mount --rbind "/$name" "$0/$name"; done; exec chroot "$0" "$@"'
PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Machine:
    """A Debian that lives in the folder `root`."""

    root: Path

    def run(self, *command: str) -> str:
        """Run `command` in it as root and return what it printed; a failure shows everything it said."""
        done = subprocess.run(
            [*self.enter(), *command], env=PATH, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def boot(self) -> subprocess.Popen[str]:
        """Start its systemd, which starts the enabled units; terminating the process shuts the machine down."""
        options = ["--quiet", "--boot", "--register=no", "--keep-unit", "--resolv-conf=off", "--console=pipe"]
        return subprocess.Popen(
            ["systemd-nspawn", *options, "--directory", self.root],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def process(self, command: str) -> dict[str, str]:
        """Return the kernel's word, /proc/PID/status, on the process of this machine that runs `command`."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                words = (process / "cmdline").read_text().replace("\0", " ")
                if command in words and (process / "root").samefile(self.root):
                    lines = (process / "status").read_text().splitlines()
                    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raise AssertionError(f"{command} does not run in {self.root}")

    def enter(self) -> list[str]:
        return ["unshare", "--mount", "--uts", "sh", "-ec", ENTER, str(self.root)]

    def has(self, package: str) -> bool:
        command = ["dpkg-query", f"--admindir={self.root / 'var/lib/dpkg'}", "--show", package]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def install(self, deb: Path) -> None:
        """Install `deb` and what it depends on, as a user would with apt."""
        shutil.copy(deb, self.root / "tmp")
        self.run("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", f"/tmp/{deb.name}")
        (self.root / "tmp" / deb.name).unlink()


def clean_machine(root: Path) -> Machine:
    """Make a minimal Debian in `root`. The first call downloads it; it is kept in the tests' cache."""
    assert PYTHON in SUITES, f"no Debian has Python {PYTHON}; run the tests with one of {', '.join(SUITES)}"
    suite = SUITES[PYTHON]
    archive = cache() / f"debian-{suite}.tar"
    if not archive.exists():
        # With systemd, as on a device, so that enabling and disabling the unit is real.
        bootstrap = ["debootstrap", "--variant=minbase", "--include=systemd,ca-certificates,python3"]
        subprocess.run([*bootstrap, suite, root, MIRROR], check=True)
        part = archive.with_suffix(".part")
        subprocess.run(["tar", "-C", root, "--one-file-system", "-cf", part, "."], check=True)
        os.replace(part, archive)
    else:
        subprocess.run(["tar", "-C", root, "-xf", archive], check=True)
    (root / "etc/apt/apt.conf.d/99host").write_text(host_fetch_settings())
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    machine = Machine(root)
    machine.run("apt-get", "update", "--quiet")
    return machine


def host_fetch_settings() -> str:
    """Return how this host's apt reaches its mirrors: proxies and the like."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    return "".join(f"{line}\n" for line in dump.splitlines() if line.startswith("Acquire::"))
