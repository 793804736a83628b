"""Disks that are full, read-only, broken or too small, and clocks that jump: serving goes on."""

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace

import apsw
import pytest

from fieldlm.core import sqlite
from fieldlm.formats.record import Record, Stream
from fieldlm.telemetry import spool as spool_module
from fieldlm.telemetry.spool import Spool
from tests.support.sqlite_power_cuts import Call, Disk
from tests.telemetry.test_spool import drops, numbers_of, record


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "RETRY_S", 0.01)


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> Generator[Disk]:
    made = Disk(request.node.name)
    yield made
    made.unregister()


def soon(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def refuse_with(error: type[apsw.Error]) -> Callable[[Call], None]:
    def refuse(call: Call) -> None:
        if call.what in ("write", "sync", "create"):
            raise error

    return refuse


def accept(call: Call) -> None:
    return


@pytest.mark.parametrize(
    ("error", "name"),
    [(apsw.FullError, "disk-full"), (apsw.ReadOnlyError, "read-only"), (apsw.IOError, "disk-error")],
)
def test_a_disk_that_refuses_is_named_and_nothing_is_lost_when_it_comes_back(
    tmp_path: Path, disk: Disk, error: type[apsw.Error], name: str
) -> None:
    with Spool(tmp_path / "spool.db", connect=disk.connect) as spool:
        assert spool.append(record(1))
        assert spool.flush(30)
        disk.refuse = refuse_with(error)
        assert all(spool.append(record(number)) for number in range(2, 50))
        assert not spool.flush(0.3)
        assert soon(lambda: spool.health().problem == name)
        assert soon(lambda: spool.health().waiting == 48)
        assert {spool.health().problem for _ in range(2000)} == {name}, "also while it is tried again"
        disk.refuse = accept
        assert spool.flush(30)
        assert spool.health().problem == ""
        assert [r.response for r in spool.pending("gen", 0, 100)] == [f"r{n}" for n in range(1, 50)]
        assert drops(spool) == []


def test_a_spool_may_begin_on_a_disk_that_cannot_be_written(tmp_path: Path, disk: Disk) -> None:
    disk.refuse = refuse_with(apsw.ReadOnlyError)
    with Spool(tmp_path / "spool.db", connect=disk.connect) as spool:
        assert (spool.epoch, spool.counts(), spool.ends(), spool.pending("gen", 0, 1)) == (0, {}, {}, [])
        assert spool.append(record(1))
        assert spool.health().problem == "read-only"
        disk.refuse = accept
        assert spool.flush(30)
        assert (spool.epoch > 0, numbers_of(spool, "gen")) == (True, [1])


def test_a_folder_on_a_read_only_file_system_is_waited_for(tmp_path: Path) -> None:
    is_writable = False

    def connect(path: Path) -> sqlite3.Connection:
        if not is_writable:
            raise OSError(errno.EROFS, "Read-only file system")
        return sqlite.connect(path)

    with Spool(tmp_path / "spool.db", connect=connect) as spool:
        assert spool.append(record(1))
        assert spool.health().problem == "read-only"
        is_writable = True
        assert spool.flush(30)
        assert numbers_of(spool, "gen") == [1]


@pytest.mark.parametrize(
    ("disk", "code", "name"),
    [
        ({"f_flag": os.ST_RDONLY, "f_bavail": 9}, sqlite3.SQLITE_CANTOPEN, "read-only"),
        ({"f_flag": 0, "f_bavail": 0}, sqlite3.SQLITE_IOERR_SHMSIZE, "disk-full"),
        ({"f_flag": 0, "f_bavail": 9}, sqlite3.SQLITE_IOERR, "disk-error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_log_that_cannot_be_made_is_put_down_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: dict[str, int], code: int, name: str
) -> None:
    is_well = False

    def connect(path: Path) -> sqlite3.Connection:
        if not is_well:
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = code
            raise error
        return sqlite.connect(path)

    def statvfs(_folder: Path) -> SimpleNamespace:
        return SimpleNamespace(**disk)

    # What a card does to itself when it is worn out, which takes a mount of one's own to try.
    monkeypatch.setattr(os, "statvfs", statvfs)
    with Spool(tmp_path / "spool.db", connect=connect) as spool:
        assert spool.append(record(1))
        assert spool.health().problem == name
        is_well = True
        assert spool.flush(30)
        assert (spool.health().problem, numbers_of(spool, "gen")) == ("", [1])


def test_a_commit_that_failed_and_reached_the_disk_all_the_same_is_not_written_twice(
    tmp_path: Path, disk: Disk
) -> None:
    with Spool(tmp_path / "spool.db", connect=disk.connect) as spool:
        spool.append(record(1))
        assert spool.flush(30)
        written: list[Call] = []

        def refuse(call: Call) -> None:
            written.append(call)
            if call.what == "sync" or (call.what == "write" and call.file == "spool.db"):
                raise apsw.IOError

        disk.refuse = refuse
        spool.append(record(2, stream="fb"))
        assert soon(lambda: spool.health().problem == "disk-error")
        assert any(call.file == "spool.db-wal" for call in written)
        disk.refuse = accept
        assert spool.flush(30)
        assert [r.response for r in spool.pending("fb", 0, 9)] == ["r2"]


def test_damage_in_the_middle_of_its_life_is_set_aside_and_a_new_epoch_begins(tmp_path: Path, disk: Disk) -> None:
    with Spool(tmp_path / "spool.db", connect=disk.connect) as spool:
        spool.append(record(1))
        assert spool.flush(30)
        epoch = spool.epoch
        disk.refuse = refuse_with(apsw.CorruptError)
        spool.append(record(2))
        assert soon(lambda: len(spool.health().quarantined) > 0)
        disk.refuse = accept
        assert spool.flush(30)
        assert spool.epoch not in (0, epoch)
        assert [r.response for r in spool.pending("gen", 0, 9)] == ["r2"]
        assert soon(lambda: [drop["reason"] for drop in drops(spool)][:1] == ["quarantine"])
        assert spool.health().problem == ""


def fill(spool: Spool, stream: Stream, count: int, size: int = 400) -> None:
    for number in range(count):
        while not spool.append(record(number, stream=stream, text="x" * size)):
            spool.flush()
    assert spool.flush(60)


def test_each_class_keeps_its_quota_when_another_floods_the_spool(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db", max_mb=2) as spool:
        for stream in ("ota", "fb", "sys"):
            fill(spool, stream, 200)
        fill(spool, "gen", 8000)
        held = {stream: count.held for stream, count in spool.counts().items()}
        assert (held["ota"], held["fb"]) == (200, 200)
        assert sum(r.kind == "system" for r in spool.pending("sys", 0, 10**6, max_bytes=1 << 30)) == 200
        fill(spool, "sys", 8000)
        held = {stream: count.held for stream, count in spool.counts().items()}
        assert (held["ota"], held["fb"]) == (200, 200)
        assert held["gen"] > 300


@pytest.mark.parametrize("stream", ["ota", "fb", "sys", "gen"])
def test_every_number_that_a_flood_of_one_class_costs_is_told(tmp_path: Path, stream: Stream) -> None:
    with Spool(tmp_path / "spool.db", max_mb=1) as spool:
        fill(spool, stream, 3000)
        held = numbers_of(spool, stream)
        told = [drop for drop in drops(spool) if drop.get("stream") == stream]
        last = spool.ends()[stream][0]
        missing = set(range(1, last + 1)) - set(held)
        assert held[-1] == last
        assert len(missing) == sum(int(drop["count"]) for drop in told) == spool.health().dropped["spool-full"]
        assert all(any(int(d["from"]) <= seq <= int(d["to"]) for d in told) for seq in missing)


def test_thinning_leaves_a_picture_of_the_whole_time(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db", max_mb=2) as spool:
        fill(spool, "gen", 8000)
        held = numbers_of(spool, "gen")
        assert len(held) < 6000
        assert max(b - a for a, b in zip([0, *held], held, strict=False)) <= 2000


@pytest.mark.parametrize("size", [0, 400, 20_000])
def test_database_and_log_together_stay_below_the_bound(tmp_path: Path, size: int) -> None:
    path, most = tmp_path / "spool.db", 0
    with Spool(path, max_mb=1) as spool:
        for _ in range(25):
            fill(spool, "gen", 1 + 100_000 // (size + 200), size)
            most = max(most, sum(file.stat().st_size for file in (path, Path(f"{path}-wal"))))
    assert 500_000 < most <= 1_000_000


@pytest.mark.parametrize("years", [-50, 50])
def test_a_clock_that_jumps_changes_no_number_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    now_ns = time.time_ns()
    with Spool(tmp_path / "spool.db") as spool:
        for jump in (0, years, 0):
            monkeypatch.setattr(time, "time_ns", lambda jump=jump: now_ns + jump * 31_557_600 * 10**9)
            wall_ms = time.time_ns() // 1_000_000
            for _ in range(10):
                spool.append(Record(device="k", stream="gen", kind="generation", wall_ms=wall_ms))
            assert spool.flush(30)
        assert numbers_of(spool, "gen") == list(range(1, 31))
        assert drops(spool) == []


def test_a_card_that_wakes_up_in_another_board_goes_on_under_a_new_epoch(tmp_path: Path) -> None:
    epochs: list[int] = []
    for number, machine in enumerate(("one", "one", "two", "", "two")):
        with Spool(tmp_path / "spool.db", machine=machine) as spool:
            spool.append(record(number))
            assert spool.flush(30)
            epochs.append(spool.epoch)
            assert [r.response for r in spool.pending("gen", 0, 9)] == [f"r{n}" for n in range(number + 1)]
    assert epochs[0] == epochs[1] != epochs[2] == epochs[3] == epochs[4]
    with Spool(tmp_path / "spool.db", machine="two") as spool:
        assert spool.health().moved_from == str(epochs[0])


def test_a_record_that_nobody_will_have_is_buried_and_told(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        fill(spool, "gen", 3)
        spool.dead_letter(spool.epoch + 1, "gen", 1, "refused")
        spool.dead_letter(spool.epoch, "gen", 2, "refused")
        spool.dead_letter(spool.epoch, "gen", 2, "refused")
        assert numbers_of(spool, "gen") == [1, 3]
        assert drops(spool) == [{"stream": "gen", "from": "2", "to": "2", "count": "1", "reason": "refused"}]
