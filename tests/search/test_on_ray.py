"""Candidates on a Ray cluster of two nodes that share nothing, started here: the same bundle, whoever is lost."""

import contextlib
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

import msgspec
import pytest

from fieldlm.cli.main import main as fieldlm
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.export.format import lower, shrink
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search import ray_pool
from fieldlm_compiler.verify import divergence as measuring
from fieldlm_compiler.verify.divergence import Divergences
from fieldlm_compiler.verify.limits import Limits, SearchRequest

# The cluster of these tests is this machine alone; newer versions would ask each node for a token.
os.environ["RAY_AUTH_MODE"] = "disabled"
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
PATIENCE_S = 600.0  # a guard against waiting for ever, on however slow a machine
ROOM = ["--num-cpus=1", "--memory=2000000000", "--object-store-memory=100000000"]
SMALL_MB = 0.6
SEARCH = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.verify.limits import Limits, SearchRequest
from fieldlm.core.logs import to_terminal
from fieldlm.formats.profile import load_profile

to_terminal()
model, text, out, work, ray = sys.argv[1:]
compile_model(model, profile=load_profile("generic-x86-64-avx2"), out=Path(out), work=Path(work),
              key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
              request=SearchRequest(calibration=(Path(text),), limits=Limits(max_bundle_mb=0.6), ray=ray))
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


def _until(done: Callable[[], bool], log: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.005)


def _until_busy(command: list[str], node: Node, log: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start `command` and wait until `node` has written a mixture and not yet measured it."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)
    _until(lambda: process.poll() is not None or node.has("tmp/fieldlm-*/mixture.gguf"), log)
    assert process.poll() is None, log.read_text()
    return process, log


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


def test_a_ctrl_c_that_foreign_code_swallows_counts() -> None:
    seen: list[str] = []

    def wait() -> None:
        with ray_pool.keep_interrupt() as check:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            try:
                check()
            except KeyboardInterrupt:
                seen.append("where it asks")

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert seen == ["where it asks"], "and at the end of the block"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_neither_ctrl_c_nor_a_node_lost_in_the_middle_changes_a_byte(
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
        request=SearchRequest(calibration=(text,), limits=Limits(max_bundle_mb=SMALL_MB)),
    )
    # What comes before the candidates is taken from the local run; candidates are made anew.
    kept = tmp_path / "work"
    kept.mkdir()
    for path in work.glob("*-*"):
        if not path.name.startswith(("mixture-", "measured-", "answers-MIX")):
            (kept / path.name).symlink_to(path)
    command = [sys.executable, "-c", SEARCH, str(tiny_folder), str(text), str(tmp_path / "out"), str(kept), address]
    stopped, _ = _until_busy(command, other, tmp_path / "stopped")
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait() != 0
    _until(lambda: not other.steps(), tmp_path / "stopped")
    for left in other.folder.glob("tmp/fieldlm-*"):
        shutil.rmtree(left)
    process, log = _until_busy(command, other, tmp_path / "log")
    other.kill()
    assert process.wait() == 0, log.read_text()
    said = log.read_text()
    assert "was lost; it is tried elsewhere (2 of 3)" in said
    assert open_bundle(tmp_path / "out").id == here.id
    # Each had its own copy, by its digest.
    assert head.has("cache/fieldlm/nodes/*")
    assert other.has("cache/fieldlm/nodes/*")
    made = {path.name for path in kept.glob("m*-*")}
    assert {path.name for path in work.glob("m*-*")} >= made
    assert made


def test_mixtures_measured_one_by_one_stop_where_all_together_would(
    tiny: Checkpoint, stages: Stages, profile: Profile
) -> None:
    full = lower(tiny, "gguf", stages)
    files = [shrink(full, quant, profile, stages).base for quant in ("Q8_0", "Q4_0")]
    windows = [[(at * 97 + each * 31) % 1900 + 100 for at in range(64)] for each in range(10)]
    examples = [(windows[0][:20], windows[0][20:30])]
    alone = [measuring.measure_one(full.base, file, windows, examples).value for file in files]
    for max_kl, count in ((None, 10), (5.0, 6)):
        ran = measuring.measure(full.base, files, windows, examples, what="measure", max_kl=max_kl)
        whole = msgspec.convert(ran.value, list[Divergences])
        assert measuring.together(alone, max_kl) == whole
        assert [each.kl.count for each in whole] == [count, count]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--ray", "127.0.0.1:1", "--max-bundle-mb", "0.6"], "no Ray cluster answers at 127.0.0.1:1 ("),
        (["--ray", "nowhere", "--max-bundle-mb", "0.6"], "--ray nowhere is no address of a cluster; give HOST:PORT"),
        (["--ray", "127.0.0.1:1", "--max-kl", "1", "--format", "onnx"], "--ray is not for onnx: leave it out"),
        (
            ["--ray", "127.0.0.1:1"],
            "--ray shares out the candidates of a search: name --calibration, --task or a limit",
        ),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    load_or_create_key(tmp_path / "signing.pem")
    profile = ["--profile", "generic-x86-64-avx2", "--keys", str(tmp_path)]
    assert fieldlm(["compile", str(tiny_folder), *arguments, *profile, "--out", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err.splitlines()
    assert line in said[-1]
    assert len(said) == 1
