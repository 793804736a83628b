"""Ray clusters of a node or two on this machine, which share nothing, each with a cache and processes of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

# These clusters are this machine alone; newer versions would ask each node for a token.
os.environ["RAY_AUTH_MODE"] = "disabled"
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
PATIENCE_S = 600.0  # a guard against waiting for ever, on however slow a machine
ROOM = ["--num-cpus=1", "--memory=2000000000", "--object-store-memory=100000000"]


@dataclass
class Node:
    """One node: a cache and a folder for what passes of its own."""

    folder: Path
    arguments: list[str]

    def __post_init__(self) -> None:
        for name in ("cache", "tmp"):
            (self.folder / name).mkdir(parents=True)
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*RAY, *ROOM, *self.arguments],
                env={**os.environ, "XDG_CACHE_HOME": str(self.folder / "cache"), "TMPDIR": str(self.folder / "tmp")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while b"Ray runtime started" not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill every process of this node at once, as a power cut does."""
        for _ in range(2):
            for process in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGKILL)
        self.process.wait()

    def steps(self) -> list[Path]:
        """Return the compiler's own steps that run on this node."""
        return [each for each in self._processes() if b"fieldlm_compiler.pipeline.step" in _read(each / "cmdline")]

    def _processes(self) -> list[Path]:
        """Return the folders in /proc of this node's processes: they are those that have its cache."""
        mine = f"XDG_CACHE_HOME={self.folder / 'cache'}".encode()
        return [each for each in Path("/proc").glob("[0-9]*") if mine in _read(each / "environ").split(b"\0")]

    def has(self, pattern: str) -> bool:
        return any(self.folder.glob(pattern))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def one_node() -> Generator[tuple[str, Node]]:
    """One node, and its address; it is not left at the end."""
    with _nodes(()) as (address, (head,)):
        yield address, head


@contextlib.contextmanager
def two_nodes() -> Generator[tuple[str, Node, Node]]:
    """Two nodes on two loopback addresses, and the address of the first; none is left at the end."""
    with _nodes(("127.0.0.2",)) as (address, (head, other)):
        yield address, head, other


@contextlib.contextmanager
def _nodes(others: Sequence[str]) -> Generator[tuple[str, list[Node]]]:
    """A head, and a node at the address of each of the `others`."""
    # The names of Unix sockets have 107 bytes: pytest's folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    own = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    nodes = [Node(folder / "head", [*own, f"--temp-dir={folder / 's'}"])]
    try:
        nodes[0].wait()
        for other in others:
            nodes.append(Node(folder / other, [f"--address={address}", f"--node-ip-address={other}"]))
            nodes[-1].wait()
        yield address, nodes
    finally:
        for node in reversed(nodes):
            node.kill()
        shutil.rmtree(folder)
