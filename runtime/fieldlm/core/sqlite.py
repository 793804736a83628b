"""SQLite files as this project keeps them: a write-ahead log that is synced, and damage that is set aside, whole."""

import os
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

BUSY_S = 30


def connect(path: Path) -> sqlite3.Connection:
    """Open a file for any thread, with transactions begun by hand; waits half a minute for another process."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a file that another process may hold, and damage nothing."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def make_durable(database: sqlite3.Connection) -> None:
    """Have each transaction on the disk before it is said to be done; waits half a minute for another process."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait by itself for who makes the file, or opens it too, in this moment.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    database.execute("PRAGMA synchronous = FULL")


@contextmanager
def transaction(database: sqlite3.Connection) -> Generator[None]:
    """Write all that the block changes, or nothing of it where it fails; no other process writes meanwhile."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def is_damage(error: BaseException) -> bool:
    """Say whether the file itself is wrong, and not the disk, the rights or another process."""
    code = getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.DatabaseError) else 0
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def check(database: sqlite3.Connection) -> None:
    """Read the whole file; raises DamageError."""
    if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
        raise DamageError("quick_check found damage")


def set_aside(path: Path) -> Path:
    """Rename a damaged file and its log and return the new name; the log goes first: it is never a new file's."""
    aside = Path(f"{path}.quarantine-{time.time_ns() // 1_000_000}")
    for suffix in ("-wal", "-shm", ""):
        file = Path(f"{path}{suffix}")
        if file.exists():
            os.replace(file, f"{aside}{suffix}")
    return aside


class DamageError(sqlite3.DatabaseError):
    """The file is a database, but not one to be believed."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT
