"""A release is tried in a process that leaves the processor to those who answer."""

import contextlib
import hashlib
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.core import timing
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference import probe
from fieldlm.inference.generations import Generations
from fieldlm.updates import rehearsal
from fieldlm.updates.gates import UnhealthyError
from fieldlm.updates.rehearsal import RehearsalLimits

LIMITS = RehearsalLimits(context=256)


def children() -> set[int]:
    found = set[int]()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found.update(int(pid) for pid in (task / "children").read_text().split())
    return found


def test_the_child_computes_only_when_nobody_else_does(base_bundle: Bundle) -> None:
    before, found = children(), set[int]()
    thread = threading.Thread(target=rehearsal.rehearse, args=(base_bundle, LIMITS))
    thread.start()
    while thread.is_alive():
        for pid in children() - before:
            try:
                found.add(os.sched_getscheduler(pid))
            except ProcessLookupError:
                continue
        time.sleep(0.005)
    assert os.SCHED_IDLE in found


def test_a_child_that_gets_no_processor_is_started_again_with_a_small_share(
    base_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "STARVED_S", -1.0)
    started: list[str] = []
    ways = dict(rehearsal.WAYS)

    class Ways(dict[str, str]):
        def __getitem__(self, way: str) -> str:
            started.append(way)
            return ways[way]

    monkeypatch.setattr(rehearsal, "WAYS", Ways())
    assert rehearsal.rehearse(base_bundle, LIMITS).score == 1.0
    assert started == ["idle", "nice"]


HASH = """\
import hashlib, os, sys, threading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
def compute():
    while True:
        hashlib.sha256(bytes(1 << 20))
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=compute).start()
compute()
"""


@contextlib.contextmanager
def computing(threads: int) -> Generator[subprocess.Popen[bytes]]:
    """A process whose threads share one core, and say nothing."""
    with subprocess.Popen([sys.executable, "-c", HASH, str(threads)], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_child_that_computes_for_too_long_is_ended() -> None:
    with computing(1) as process:
        child = rehearsal.ChildWatch(process, patience_s=0.2, starved_s=math.inf)
        with pytest.raises(UnhealthyError, match="it hangs at: start"):
            any(child.wait() for _ in itertools.count())
        process.kill()
        child.close()


def test_what_a_thread_spins_while_another_waits_for_its_core_is_not_held_against_the_child() -> None:
    with computing(4) as process:
        child = rehearsal.ChildWatch(process, patience_s=0.5, starved_s=math.inf)
        while child.spent().computed_s < 2.0:
            assert not child.wait()
        process.kill()
        child.close()


def test_each_answer_of_a_probe_is_a_step(tiny_compiled: Bundle) -> None:
    answered: list[int] = []
    with contextlib.closing(Generations(tiny_compiled, EngineOptions(context=256))) as live:
        assert probe.score(live.current, on_answer=answered.append) == 1.0
    assert answered == list(range(1, len(answered) + 1))
    assert answered


def test_a_file_that_is_read_slowly_has_the_same_digest(tmp_path: Path) -> None:
    data = os.urandom(2 * timing.PIECE_BYTES + 7)
    (tmp_path / "file").write_bytes(data)
    assert timing.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
