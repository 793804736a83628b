"""The slots' journal in one SQLite file: which generation is which, what was tried, every step ever taken.

A step is on the disk (synchronous=FULL) before what it announces is done. A damaged file is set aside and a new one
begun: a device without memory still boots its factory bundle.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fieldlm.core.errors import InputError, NoSpaceError
from fieldlm.core.files import disk_errors, make_folder
from fieldlm.core.logs import logger
from fieldlm.core.sqlite import check, connect, connect_read_only, is_damage, make_durable, set_aside, transaction

log = logger(__name__)

TAIL = 20
SCHEMA = """
CREATE TABLE IF NOT EXISTS slot (name TEXT PRIMARY KEY, bundle TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS generation (
    bundle TEXT PRIMARY KEY, seq INTEGER NOT NULL, min_seq INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    failed TEXT NOT NULL DEFAULT '') STRICT;
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS step (
    id INTEGER PRIMARY KEY AUTOINCREMENT, wall_ms INTEGER NOT NULL, step TEXT NOT NULL, bundle TEXT NOT NULL,
    detail TEXT NOT NULL) STRICT;
"""


def journal_of(state: Path) -> Path:
    """Return the journal of the device in `state`; raises InputError where no device has begun one."""
    path = state / "slots.db"
    if not path.is_file():
        raise InputError(f"{state} holds no generation yet; run: fieldlm serve BUNDLE")
    return path


def release_folder(state: Path, bundle_id: str) -> Path:
    """Return where a bundle lies that the device in `state` holds."""
    return state / "releases" / bundle_id[:12]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the journal; `wall_ms` is what the device's clock said, which may be wrong."""

    wall_ms: int
    step: str
    bundle: str
    detail: str


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a generation: the release it came with, loads begun, and why it failed, if it did."""

    bundle: str
    seq: int = 0
    min_seq: int = 0
    attempts: int = 0
    failed: str = ""


class UnwritableError(InputError):
    """The journal can be read, and takes no line: a full disk, or one that wears out."""


class FullError(NoSpaceError, UnwritableError):
    """The journal takes no line because the disk is full."""


class Journal:
    """The memory of one state folder. Any thread may use it; one process at a time does."""

    def __init__(
        self, path: Path, on_step: Callable[[str], None] = lambda step: None, *, read_only: bool = False
    ) -> None:
        self._on_step = on_step
        self._lock = threading.RLock()
        self._db = connect_read_only(path) if read_only else _open(path)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def step(self, step: str, bundle: str = "", detail: str = "") -> Generator[None]:
        """Write one line, and with it everything the block changes: all of it is on the disk afterwards, or none."""
        with self._lock, _refusals(), transaction(self._db):
            row = (int(time.time() * 1000), step, bundle, detail)
            self._db.execute("INSERT INTO step (wall_ms, step, bundle, detail) VALUES (?, ?, ?, ?)", row)
            yield
        self._on_step(step)

    def slot(self, name: str) -> str:
        """Return the bundle id in the slot, empty when there is none."""
        row = self._one("SELECT bundle FROM slot WHERE name = ?", name)
        return row[0] if row else ""

    def slots(self) -> dict[str, str]:
        with self._lock:
            return dict(self._db.execute("SELECT name, bundle FROM slot").fetchall())

    def set_slot(self, name: str, bundle: str) -> None:
        """Put the bundle in the slot; an empty id empties it."""
        if bundle:
            self._run("INSERT OR REPLACE INTO slot VALUES (?, ?)", name, bundle)
        else:
            self._run("DELETE FROM slot WHERE name = ?", name)

    def known(self, bundle: str) -> Known:
        return next(self._all_known("WHERE bundle = ?", bundle), Known(bundle=bundle))

    def remember(self, known: Known) -> None:
        self._run(
            "INSERT OR REPLACE INTO generation (bundle, seq, min_seq, attempts, failed) VALUES (?, ?, ?, ?, ?)",
            *msgspec.structs.astuple(known),
        )

    def failed(self) -> list[Known]:
        """Return what failed here and will not be tried again, oldest release first."""
        return list(self._all_known("WHERE failed != '' ORDER BY seq"))

    def setting(self, name: str, default: str = "") -> str:
        row = self._one("SELECT value FROM setting WHERE name = ?", name)
        return row[0] if row else default

    def set(self, name: str, value: str) -> None:
        self._run("INSERT OR REPLACE INTO setting VALUES (?, ?)", name, value)

    def note(self, name: str, value: str) -> None:
        """Set what changes often, without a line of its own."""
        with self._lock, _refusals(), transaction(self._db):
            self.set(name, value)

    def forget_releases(self) -> None:
        """Forget every release number and failure; the generations stay in their slots."""
        self._run("DELETE FROM generation")
        self._run("DELETE FROM setting WHERE name = 'floor'")

    def tail(self, count: int) -> list[Step]:
        """Return the last `count` lines, oldest first."""
        with self._lock:
            sql = "SELECT wall_ms, step, bundle, detail FROM step ORDER BY id DESC LIMIT ?"
            rows = self._db.execute(sql, (count,)).fetchall()
        return [Step(wall_ms=w, step=s, bundle=b, detail=d) for w, s, b, d in reversed(rows)]

    def _all_known(self, where: str, *values: str) -> Iterator[Known]:
        with self._lock:
            sql = f"SELECT bundle, seq, min_seq, attempts, failed FROM generation {where}"
            rows = self._db.execute(sql, values).fetchall()
        for bundle, seq, min_seq, attempts, failed in rows:
            yield Known(bundle=bundle, seq=seq, min_seq=min_seq, attempts=attempts, failed=failed)

    def _one(self, sql: str, *values: str | int) -> tuple[str, ...] | None:
        with self._lock:
            return self._db.execute(sql, values).fetchone()

    def _run(self, sql: str, *values: str | int) -> None:
        assert self._db.in_transaction, "everything is changed within a step"
        self._db.execute(sql, values)


@contextmanager
def _refusals() -> Generator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        kind = FullError if "full" in str(error) else UnwritableError
        raise kind(f"the journal of the slots cannot be written: {error}; nothing was changed") from error


def _open(path: Path) -> sqlite3.Connection:
    with disk_errors(path):
        make_folder(path.parent)
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            with contextlib.suppress(sqlite3.DatabaseError):
                return _connect_full(path)
            raise InputError(f"{path} cannot be opened: {error}") from error
        spoilt = set_aside(path)
        log.warning(f"{path} is damaged ({error}); it is set aside as {spoilt.name} and a new one is begun")
        return _connect(path)


def _connect_full(path: Path) -> sqlite3.Connection:
    """Open a file beside which there is no space for SQLite's own; raises sqlite3.DatabaseError."""
    db = connect(path)
    try:
        # Alone it keeps in memory what it else shares in a file. The lock on the folder has made it alone already.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("SELECT bundle FROM slot").fetchall()
    except BaseException:
        db.close()
        raise
    return db


def _connect(path: Path) -> sqlite3.Connection:
    db = connect(path)
    try:
        make_durable(db)
        db.executescript(SCHEMA)
        check(db)
    except BaseException:
        db.close()
        raise
    return db


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that failed here, as it is told at home; `reason` is the word for programs."""

    bundle: str
    seq: int
    reason: str
    detail: str


class SlotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What lies where: bundle ids by slot, the floor below which nothing is taken, failures, the journal's tail."""

    current: str
    previous: str
    factory: str
    trial: str
    seq: int
    floor: int
    failed: tuple[Known, ...]
    journal: tuple[Step, ...]


def read_status(journal: Journal) -> SlotStatus:
    """Read the status out of a journal."""
    slots = journal.slots()
    return SlotStatus(
        **{name: slots.get(name, "") for name in ("current", "previous", "factory", "trial")},
        seq=journal.known(slots.get("current", "")).seq,
        floor=int(journal.setting("floor", "0")),
        failed=tuple(journal.failed()),
        journal=tuple(journal.tail(TAIL)),
    )
