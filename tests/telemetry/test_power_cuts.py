"""Power cuts at every write of the spool: tests/support/sqlite_power_cuts.py says what a disk may lose."""

import os
import random
import sqlite3
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fieldlm.formats.record import Record, Stream
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.spool_database import Connect
from tests.support import depth, sqlite_power_cuts
from tests.support.sqlite_power_cuts import Disk, Files

LEAST = 1_000
"""States that the power may leave; at depth 1 one in ONE_IN of them is looked at."""
ONE_IN = 20


@dataclass
class Mark:
    """What the spool had reported after `calls` calls: per stream, the last seq durable and the last one committed."""

    calls: int = 0
    last: dict[str, int] = field(default_factory=dict[str, int])
    committed: dict[str, int] = field(default_factory=dict[str, int])


def honest(disk: Disk) -> Connect:
    return disk.connect


def hasty(database: sqlite3.Connection) -> sqlite3.Connection:
    """Forget what the spool asks for: a commit is then only on its way to the disk."""
    execute = database.execute
    database.execute = lambda sql, *values: execute(sql.replace("= FULL", "= OFF"), *values)  # type: ignore[method-assign]
    return database


class Life:
    """A spool on a disk that remembers. The n-th record of a stream is called n, so that each can be told again."""

    def __init__(self, folder: Path, name: str, *, max_mb: float, connect: Callable[[Disk], Connect]) -> None:
        self.disk = Disk(name)
        self.marks: list[Mark] = []
        self.max_mb = max_mb
        self._given: dict[str, int] = {"gen": 0, "fb": 0}
        self._committed: dict[str, int] = {}
        self.spool = Spool(folder / "spool.db", max_mb=max_mb, connect=connect(self.disk))
        self.epoch = self.spool.epoch

    def write(self, stream: Stream, count: int, size: int) -> None:
        kind = "generation" if stream == "gen" else "feedback"
        for _ in range(count):
            self._given[stream] += 1
            name = f"{self._given[stream]}"
            assert self.spool.append(Record(device="k", stream=stream, kind=kind, response=name, answer="x" * size))
        assert self.spool.flush(60)
        self._mark()

    def commit(self, stream: Stream, upto: int) -> None:
        self.spool.commit(self.epoch, stream, upto)
        self._committed[stream] = upto
        self._mark()

    def _mark(self) -> None:
        self.marks.append(Mark(len(self.disk.calls), dict(self._given), dict(self._committed)))

    def reported(self, calls: int) -> Mark:
        return next((mark for mark in reversed(self.marks) if mark.calls <= calls), Mark())


def busy_life(folder: Path, name: str, connect: Callable[[Disk], Connect] = honest) -> Life:
    """Groups, single critical records, acknowledgements, checkpoints and a log that begins anew several times."""
    life = Life(folder, name, max_mb=4, connect=connect)
    rng = random.Random(depth.SEED)
    for _ in range(50):
        life.write("gen", rng.choice((1, 3, 20, 60)), rng.choice((0, 40, 300)))
        if rng.random() < 0.3:
            life.write("fb", 1, 30)
        if rng.random() < 0.3:
            life.commit("gen", life.spool.ends()["gen"][0] - rng.randrange(10))
    life.spool.close()
    return life


def crowded_life(folder: Path, name: str) -> Life:
    """A spool at its bound, which thins in every few transactions."""
    life = Life(folder, name, max_mb=0.4, connect=honest)
    for number in range(40):
        life.write("gen", 20, 400)
        if number % 8 == 7:
            life.write("fb", 3, 100)
    life.spool.close()
    return life


def check(files: Files, life: Life, calls: int, folder: Path) -> None:
    """Open what a power cut left, with the standard library's SQLite, and compare it with what was reported."""
    sqlite_power_cuts.lay(files, folder)
    reported = life.reported(calls)
    with Spool(folder / "spool.db", max_mb=life.max_mb) as spool:
        assert spool.health().quarantined == ()
        if reported.last:
            assert spool.epoch == life.epoch
        told = [r.detail for r in spool.pending("sys", 0, 10**6) if r.kind == "drop"]
        for stream in ("gen", "fb"):
            last, committed = spool.ends()[stream]
            records = spool.pending(stream, 0, 10**6, max_bytes=1 << 30)
            held = [record.seq for record in records]
            assert [record.response for record in records] == [str(seq) for seq in held]
            assert last >= reported.last.get(stream, 0)
            assert reported.committed.get(stream, 0) <= committed <= last
            missing = set(range(committed + 1, last + 1)) - set(held)
            inside = [d for d in told if d["stream"] == stream and int(d["to"]) > committed]
            assert all(any(int(d["from"]) <= seq <= int(d["to"]) for d in inside) for seq in missing)
            assert bool(missing) == bool(inside)


def check_all(life: Life, folder: Path, one_in: int) -> tuple[int, int]:
    """Check one in `one_in` of the states that a power cut may leave; return how many that is, and of how many."""
    checked = states = 0
    for states, (calls, files) in enumerate(
        sqlite_power_cuts.states(life.disk.calls, random.Random(depth.SEED), variants=3), start=1
    ):
        if depth.is_tried(states, one_in):
            check(files, life, calls, folder)
            checked += 1
    return checked, states


@pytest.fixture
def folder() -> Generator[Path]:
    """Give a folder in memory where there is one: a power cut is what is tested, not this machine's disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made)


def test_after_any_power_cut_every_record_that_was_reported_durable_is_there_once(tmp_path: Path, folder: Path) -> None:
    lives = busy_life(tmp_path / "busy", "busy"), crowded_life(tmp_path / "crowded", "crowded")
    for life in lives:
        assert {call.what for call in life.disk.calls} >= {"create", "write", "sync", "truncate"}
        checked, states = check_all(life, folder, ONE_IN)
        print(f"{checked} of {states} crash states")
        assert states >= LEAST
        assert checked >= states // ONE_IN


def test_a_spool_that_did_not_sync_would_be_found_out(tmp_path: Path, folder: Path) -> None:
    life = busy_life(tmp_path / "hasty", "hasty", connect=lambda disk: lambda path: hasty(disk.connect(path)))
    with pytest.raises(AssertionError):
        check_all(life, folder, 1)
