"""Candidates on a Ray cluster of two nodes that share nothing, started here: the same bundle, whoever is lost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fieldlm.compiler.search.limits import Limits, Request
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.runtime.cli import main as fieldlm

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
ROOM = ["--num-cpus=1", "--memory=2000000000", "--object-store-memory=100000000"]
SMALL_MB = 4.6
SEARCH = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fieldlm.compiler.build import compile_model
from fieldlm.compiler.search.limits import Limits, Request
from fieldlm.formats.profile import load_profile

model, text, out, work, ray = sys.argv[1:]
compile_model(model, profile=load_profile("generic-x86-64-avx2"), out=Path(out), work=Path(work),
              key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
              request=Request(calibration=(Path(text),), limits=Limits(max_bundle_mb=4.6), ray=ray))
"""


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
        deadline_s = time.monotonic() + 60
        while b"Ray runtime started" not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill every process of this node at once, as a power cut does: they are those that have its folder."""
        mine = f"XDG_CACHE_HOME={self.folder / 'cache'}".encode()
        for _ in range(2):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if mine in (process / "environ").read_bytes().split(b"\0"):
                        os.kill(int(process.name), signal.SIGKILL)
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
        self.process.wait()

    def has(self, pattern: str) -> bool:
        return any(self.folder.glob(pattern))


@pytest.fixture
def cluster() -> Generator[tuple[str, Node, Node]]:
    """Two nodes on two loopback addresses, and the address of the first."""
    # The names of Unix sockets have 107 bytes: pytest's folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    own = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    nodes = [Node(folder / "head", [*own, f"--temp-dir={folder / 's'}"])]
    try:
        nodes[0].wait()
        nodes.append(Node(folder / "other", [f"--address={address}", "--node-ip-address=127.0.0.2"]))
        nodes[1].wait()
        yield address, nodes[0], nodes[1]
    finally:
        for node in reversed(nodes):
            node.kill()
        shutil.rmtree(folder)


def test_a_node_that_is_lost_in_the_middle_changes_no_byte(
    cluster: tuple[str, Node, Node],
    build: Callable[..., Bundle],
    tiny_folder: Path,
    text: Path,
    work: Path,
    *,
    tmp_path: Path,
) -> None:
    address, head, other = cluster
    here = build(
        tiny_folder,
        tmp_path / "here",
        request=Request(calibration=(text,), limits=Limits(max_bundle_mb=SMALL_MB)),
    )
    # What comes before the candidates is taken from the local run; candidates are made anew.
    kept = tmp_path / "work"
    kept.mkdir()
    for path in work.glob("*-*"):
        if not path.name.startswith(("mixture-", "measured-", "answers-MIX")):
            (kept / path.name).symlink_to(path)
    command = [sys.executable, "-c", SEARCH, str(tiny_folder), str(text), str(tmp_path / "out"), str(kept), address]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
        deadline_s = time.monotonic() + 120
        while not other.has("tmp/fieldlm-*/mixture.gguf"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline_s, (tmp_path / "log").read_text()
            time.sleep(0.005)
        other.kill()
        assert process.wait() == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert "was lost; it is tried again elsewhere (2 of 3)" in said
    assert open_bundle(tmp_path / "out").id == here.id
    # Each had its own copy, by its digest.
    assert head.has("cache/fieldlm/nodes/*")
    assert other.has("cache/fieldlm/nodes/*")
    made = {path.name for path in kept.glob("m*-*")}
    assert {path.name for path in work.glob("m*-*")} >= made
    assert made


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--ray", "127.0.0.1:1", "--max-bundle-mb", "4.6"], "no Ray cluster answers at 127.0.0.1:1 ("),
        (["--ray", "nowhere", "--max-bundle-mb", "4.6"], "--ray nowhere is no address of a cluster; give HOST:PORT"),
        (
            ["--ray", "127.0.0.1:1"],
            "--ray shares out the candidates of a search: name --calibration, --task or a limit",
        ),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    profile = ["--profile", "generic-x86-64-avx2", "--keys", str(tmp_path)]
    assert fieldlm(["compile", str(tiny_folder), *arguments, *profile, "--out", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err.splitlines()
    assert line in said[-1]
    assert len(said) == 1
