"""The ledger: sums by day, task and model that survive restarts, kill -9 and damage."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fieldlm.core.sqlite import connect, connect_read_only
from fieldlm.escalation.energy_shares import EnergyShares
from fieldlm.escalation.ledger import MOST_TASKS, OTHERS, Entry, Ledger, Prices, day_before, today

CALL = Entry(model="big", why="unsure", prompt_tokens=10, completion_tokens=5, seconds=0.5, cost=0.25)


def test_what_is_added_is_summed_by_task_model_and_reason(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.add([CALL, Entry(model="small", task="order", prompt_tokens=3)])
    ledger.add([CALL, Entry(model="small", task="order", prompt_tokens=4, failed=True)])
    rows = {(row["model"], row["task"], row["why"]): row for row in ledger.rows(days=1)}
    assert rows["big", "", "unsure"]["calls"] == 2
    assert rows["big", "", "unsure"]["cost"] == pytest.approx(0.5)
    small = rows["small", "order", ""]
    assert (small["calls"], small["failed"], small["prompt_tokens"]) == (2, 1, 7)
    assert {row["day"] for row in rows.values()} == {today()}
    ledger.close()


def test_it_goes_on_where_it_was_and_knows_what_was_spent_today(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.add([CALL])
    ledger.close()
    again = Ledger(tmp_path / "ledger.db")
    again.add([CALL], session="anna")
    assert again.tokens_today() == 30
    assert again.tokens_today("anna") == 15
    assert again.tokens_today("bert") == 0
    assert again.rows(days=1)[0]["calls"] == 2
    again.close()


def test_a_day_has_rows_for_no_more_tasks_than_a_bound_whatever_clients_call_theirs(tmp_path: Path) -> None:
    for _ in range(2):
        ledger = Ledger(tmp_path / "ledger.db")
        ledger.add(Entry(model="small", task=f"task {number}", prompt_tokens=1) for number in range(2 * MOST_TASKS))
        ledger.close()
    ledger = Ledger(tmp_path / "ledger.db")
    rows = {row["task"]: row["calls"] for row in ledger.rows(days=1)}
    ledger.close()
    assert len(rows) == MOST_TASKS + 1
    assert rows["task 0"] == 2
    assert rows[OTHERS] == 2 * MOST_TASKS
    assert sum(rows.values()) == 4 * MOST_TASKS


def written(path: Path) -> float:
    database = connect_read_only(path)
    try:
        return float(database.execute("SELECT coalesce(sum(cost), 0) FROM usage").fetchone()[0])
    finally:
        database.close()


def test_what_is_spent_is_known_while_the_disk_hangs(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    other = connect(tmp_path / "ledger.db")
    other.execute("BEGIN IMMEDIATE")  # who holds the file keeps every writer waiting
    for _ in range(3):
        ledger.add([CALL])
    assert ledger.tokens_today() == 45
    assert not logged.records, "who added did not wait until the writer gave up"
    other.execute("ROLLBACK")
    other.close()
    assert ledger.rows(days=1)[0]["calls"] == 3
    ledger.close()


def test_a_kill_loses_nothing_that_was_paid_for(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fieldlm.escalation.ledger import *;"
        "l = Ledger(Path(sys.argv[1]));"
        "[l.add([Entry(model='big', why='unsure', cost=1.0, prompt_tokens=1)]) for _ in range(50)];"
        "print('added', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "ledger.db")], stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline() == b"added\n"
    end_s = time.monotonic() + 60
    while written(tmp_path / "ledger.db") < 50 and time.monotonic() < end_s:
        time.sleep(0.02)  # nobody has asked for the rows, and nobody has closed it
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.rows(days=1)[0]["cost"] == 50
    ledger.close()


def test_many_threads_lose_no_call(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    threads = [threading.Thread(target=lambda: [ledger.add([CALL]) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.rows(days=1)[0]["calls"] == 160
    ledger.close()


def test_a_damaged_file_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database at all" * 100)
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.add([CALL])
    assert ledger.rows(days=1)[0]["calls"] == 1
    ledger.close()
    assert len(list(tmp_path.glob("ledger.db.quarantine-*"))) == 1


def test_a_new_day_begins_with_a_whole_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.add([CALL])
    monkeypatch.setattr("fieldlm.escalation.ledger.today", lambda: "2999-01-01")
    assert ledger.tokens_today() == 0
    ledger.add([CALL])
    assert [row["day"] for row in ledger.rows(days=1)] == ["2999-01-01"]
    ledger.close()


def test_prices_are_for_a_million_tokens() -> None:
    assert Prices(prompt=2.0, completion=8.0).of(500_000, 250_000) == pytest.approx(3.0)


def test_days_are_counted_back_over_months() -> None:
    assert day_before("2026-03-01", 1) == "2026-02-28"


def test_a_ledger_of_an_older_version_goes_on_with_new_columns(tmp_path: Path) -> None:
    old = connect(tmp_path / "ledger.db")
    columns = ("calls", "failed", "prompt_tokens", "completion_tokens", "seconds", "cost", "saved")
    old.execute(
        "CREATE TABLE usage (day TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL, why TEXT NOT NULL, "
        f"{', '.join(f'{name} REAL NOT NULL DEFAULT 0' for name in columns)}, PRIMARY KEY (day, task, model, why)) "
        "WITHOUT ROWID"
    )
    old.execute("INSERT INTO usage VALUES (?, '', 'big', 'unsure', 1, 0, 10, 5, 0.5, 0.25, 0)", (today(),))
    old.commit()
    old.close()
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.add([Entry(model="big", why="unsure", joules=2.5, liked=1)])
    (row,) = ledger.rows(days=1)
    assert (row["calls"], row["cost"], row["joules"], row["liked"]) == (2, 0.25, 2.5, 1)
    ledger.close()


def test_joules_are_split_among_the_requests_that_are_in_flight() -> None:
    meter = Meter()
    shares = EnergyShares(lambda: meter.joules)
    first = shares.begin()
    meter.joules = 10.0
    second, left = shares.begin(), shares.begin()
    meter.joules = 40.0
    assert shares.end(second) == 10
    del left  # its client went away before an answer began
    meter.joules = 45.0
    assert shares.end(first) == 25
    meter.joules = 1000.0  # nobody was there
    assert shares.end(shares.begin()) == 0
    meter.joules = None
    unmeasured = shares.begin()
    meter.joules = 2000.0
    assert shares.end(unmeasured) == 0


class Meter:
    joules: float | None = 0.0
