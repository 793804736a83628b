"""Candidates on a Ray cluster of two nodes that share nothing, started here: the same bundle, whoever is lost."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import msgspec
import pytest

from fieldlm.cli.main import main as fieldlm
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.export.format import lower, shrink
from fieldlm_compiler.pipeline.ray_cluster import keep_interrupt
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import divergence as measuring
from fieldlm_compiler.verify.divergence import Divergences
from fieldlm_compiler.verify.limits import Limits, SearchRequest
from tests.support.ray_nodes import PATIENCE_S, Node, two_nodes

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
    with two_nodes() as nodes:
        yield nodes


def test_a_ctrl_c_that_foreign_code_swallows_counts() -> None:
    seen: list[str] = []

    def wait() -> None:
        with keep_interrupt() as check:
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
