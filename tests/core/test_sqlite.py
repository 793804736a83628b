"""SQLite files that several processes open."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.core import sqlite as kept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept.db"


@pytest.fixture
def holder(path: Path) -> Iterator[sqlite3.Connection]:
    """Who makes the file right now."""
    database = kept.connect(path)
    database.execute("BEGIN EXCLUSIVE")
    yield database
    database.close()


def test_who_opens_a_file_that_is_being_made_waits(
    path: Path, holder: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            holder.execute("COMMIT")

    monkeypatch.setattr("time.sleep", sleep)
    database = sqlite3.connect(path, isolation_level=None, timeout=0)
    kept.make_durable(database)
    assert len(waited) == 3
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_who_never_gets_a_file_is_told_so(
    path: Path, holder: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holder.in_transaction
    monkeypatch.setattr(kept, "BUSY_S", 0)
    database = sqlite3.connect(path, isolation_level=None, timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        kept.make_durable(database)
    database.close()


def test_what_is_no_waiting_is_not_waited_for(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    database = kept.connect(path)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        kept.make_durable(database)
    database.close()
