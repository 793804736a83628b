import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fieldlm.core.errors import InputError
from fieldlm.formats.record import Record
from fieldlm.telemetry import spool as spool_module
from fieldlm.telemetry import spool_database
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.spool_database import AnsweredResponse


def record(number: int, *, stream: str = "gen", text: str = "") -> Record:
    kinds = {"gen": "generation", "fb": "feedback", "ota": "update", "sys": "system"}
    fields = {"device": "kiosk-1", "stream": stream, "kind": kinds[stream], "response": f"r{number}", "answer": text}
    return Record(**fields)  # type: ignore[arg-type]  # the literals are right, the checker sees str


def drops(spool: Spool) -> list[dict[str, str]]:
    return [r.detail for r in spool.pending("sys", 0, 1_000_000, max_bytes=1 << 30) if r.kind == "drop"]


def numbers_of(spool: Spool, stream: str) -> list[int]:
    return [r.seq for r in spool.pending(stream, 0, 1_000_000, max_bytes=1 << 30)]


def test_numbers_have_no_gaps_within_a_stream(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        for number in range(300):
            spool.append(record(number, stream=("gen", "fb")[number % 2]))
        assert spool.flush()
        assert numbers_of(spool, "gen") == list(range(1, 151))
        assert numbers_of(spool, "fb") == list(range(1, 151))


def test_what_comes_out_is_what_went_in_with_its_key(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        spool.append(record(1, text="hello"))
        spool.flush()
        (found,) = spool.pending("gen", 0, 10)
        assert (found.device, found.epoch, found.seq, found.answer) == ("kiosk-1", spool.epoch, 1, "hello")


def test_reopening_goes_on_where_it_ended(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as first:
        first.append(record(1))
        epoch = first.epoch
    with Spool(tmp_path / "spool.db") as again:
        again.append(record(2))
        again.flush()
        assert (again.epoch, numbers_of(again, "gen")) == (epoch, [1, 2])


def test_committed_records_are_gone_and_their_numbers_never_return(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        for number in range(10):
            spool.append(record(number))
        spool.flush()
        assert spool.commit(spool.epoch, "gen", 10) == 10
        spool.append(record(11))
        spool.flush()
        assert numbers_of(spool, "gen") == [11]
        assert (spool.counts()["gen"].last, spool.counts()["gen"].committed, spool.counts()["gen"].held) == (11, 10, 1)


def test_a_commit_for_another_epoch_deletes_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        spool.append(record(1))
        spool.flush()
        assert spool.commit(spool.epoch + 1, "gen", 99) == 0
        assert numbers_of(spool, "gen") == [1]


def test_a_commit_beyond_the_end_does_not_skip_numbers(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        spool.append(record(1))
        spool.flush()
        spool.commit(spool.epoch, "gen", 1000)
        assert spool.ends()["gen"] == (1, 1)


def test_appending_does_not_wait_for_a_disk_that_hangs(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        spool.append(record(0))
        spool.flush()
        blocker = sqlite3.connect(tmp_path / "spool.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        kept = sum(spool.append(record(number)) for number in range(3 * spool_module.RING_RECORDS))
        assert spool_module.RING_RECORDS <= kept <= 2 * spool_module.RING_RECORDS
        blocker.execute("ROLLBACK")
        blocker.close()
        assert spool.flush(30)
        lost = 3 * spool_module.RING_RECORDS - kept
        spool.append(record(1, stream="fb"))
        assert spool.flush(30)
        assert spool.counts()["gen"].last == kept + 1
        assert {drop["reason"] for drop in drops(spool)} == {"ring-full"}
        assert sum(int(drop["count"]) for drop in drops(spool)) == lost
        assert spool.dropped == lost


def test_a_full_spool_thins_the_oldest_and_says_so(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db", max_mb=1) as spool:
        for number in range(4000):
            while not spool.append(record(number, text=f"{number:>600}")):
                spool.flush()
        spool.append(record(0, stream="ota"))
        assert spool.flush(30)
        held, told = numbers_of(spool, "gen"), drops(spool)
        assert spool.counts()["gen"].last == 4000
        assert held[-100:] == list(range(3901, 4001))
        missing = set(range(1, 4001)) - set(held)
        assert len(missing) == sum(int(drop["count"]) for drop in told)
        assert all(any(int(d["from"]) <= seq <= int(d["to"]) for d in told) for seq in missing)
        assert spool.counts()["ota"].held == 1
    assert (tmp_path / "spool.db").stat().st_size <= 1_000_000


def test_one_record_larger_than_the_spool_is_dropped_and_the_next_is_kept(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db", max_mb=0.5) as spool:
        spool.append(record(1, text="x" * 2_000_000))
        assert spool.flush(30)
        spool.append(record(2))
        assert spool.flush(30)
        assert [r.response for r in spool.pending("gen", 0, 10)] == ["r2"]
        assert {"reason": "too-large", "count": "1"} in drops(spool)


def damage_header(path: Path) -> None:
    path.write_bytes(b"this is no database" * 500)


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 4] = b"\xa5" * (4096 * 3)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_header, damage_middle])
def test_a_damaged_spool_is_set_aside_and_a_new_epoch_begins(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "spool.db"
    with Spool(path) as spool:
        for number in range(100):
            spool.append(record(number, text="x" * 500))
        spool.flush()
        epoch = spool.epoch
    damage(path)
    damaged = path.read_bytes()
    with Spool(path) as again:
        assert again.epoch != epoch
        again.append(record(1))
        again.flush()
        assert numbers_of(again, "gen") == [1]
        assert [drop["reason"] for drop in drops(again)] == ["quarantine"]
    (kept,) = (p for p in tmp_path.glob("spool.db.quarantine-*") if p.suffix not in ("-wal", "-shm"))
    assert kept.read_bytes() == damaged


def test_a_row_that_cannot_be_read_is_told_and_passed_over(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        for number in range(3):
            spool.append(record(number))
        spool.flush()
    with sqlite3.connect(tmp_path / "spool.db") as database:
        database.execute("UPDATE records SET row = x'00ff' WHERE stream = 'gen' AND seq = 2")
    database.close()
    with Spool(tmp_path / "spool.db") as spool:
        assert numbers_of(spool, "gen") == [1, 3]
        told = {"stream": "gen", "from": "2", "to": "2", "count": "1", "reason": "unreadable"}
        assert drops(spool) == [told]


def test_a_path_that_cannot_be_opened_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "spool.db").mkdir()
    with pytest.raises(InputError, match=r"spool\.db"):
        Spool(tmp_path / "spool.db")


def test_responses_are_known_after_a_restart_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_database, "RESPONSES", 5)
    with Spool(tmp_path / "spool.db") as spool:
        for number in range(20):
            spool.append(Record(device="k", stream="gen", kind="generation", response=f"r{number}", session="s"))
    with Spool(tmp_path / "spool.db") as spool:
        assert spool.response("r19") == AnsweredResponse(generation="", session="s", consent="")
        assert spool.response("r1") is None


def test_many_threads_may_append(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:

        def append(first: int) -> None:
            for number in range(first, first + 200):
                spool.append(record(number))

        threads = [threading.Thread(target=append, args=(1000 * t,)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spool.flush()
        assert len({r.response for r in spool.pending("gen", 0, 5000)}) == 1600
        assert numbers_of(spool, "gen") == list(range(1, 1601))


def test_what_was_durable_survives_kill_9_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    script = Path(__file__).parents[1] / "support/spool_process.py"
    seen: list[str] = []
    for _ in range(5):
        process = subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        durable = 0
        for line in process.stdout:
            durable = int(line)
            if durable >= 400:
                process.kill()
        process.wait()
        process.stdout.close()
        with Spool(path) as spool:
            for stream in ("gen", "fb"):
                assert numbers_of(spool, stream) == list(range(1, spool.ends()[stream][0] + 1))
            records = [r for stream in ("gen", "fb") for r in spool.pending(stream, 0, 10**6, max_bytes=1 << 30)]
        found = [r.response for r in records]
        for number in range(1, durable + 1):
            assert found.count(str(number)) == seen.count(str(number)) + 1
        seen = found


def test_nobody_else_on_the_machine_reads_what_waits(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with Spool(tmp_path / "state" / "spool.db") as spool:
            spool.append(Record(device="kiosk-1", stream="gen", kind="generation", answer="a person's words"))
            spool.flush()
            modes = [path.stat().st_mode & 0o077 for path in (tmp_path / "state", *(tmp_path / "state").iterdir())]
    finally:
        os.umask(before)
    assert modes == [0] * 4
