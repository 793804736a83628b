"""A release is tried in a process that leaves the processor to those who answer."""

import contextlib
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from fieldlm.core import timing
from fieldlm.formats.bundle import Bundle
from fieldlm.updates import rehearsal
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


def test_a_file_that_is_read_slowly_has_the_same_digest(tmp_path: Path) -> None:
    data = os.urandom(2 * timing.PIECE_BYTES + 7)
    (tmp_path / "file").write_bytes(data)
    assert timing.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
