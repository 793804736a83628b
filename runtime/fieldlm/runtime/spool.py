"""Records on their way home, kept on the disk until the collector has committed them.

`append` puts a record into a bounded ring in memory and returns; a writer thread commits the ring in groups to SQLite
(WAL, synchronous=FULL) and gives each record its seq in the same transaction. What `flush` or `pending` has shown
survives kill -9 and a power cut. A record that cannot be kept is counted, and the count itself becomes a `drop` record.
"""

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from fieldlm.formats.errors import InputError
from fieldlm.formats.files import disk_errors, sync_folder
from fieldlm.formats.record import CRITICAL, STREAMS, Record, WireError, pack, unpack
from fieldlm.runtime.terminal import log

RING_RECORDS = 4096
"""Records in memory while the disk is slow: two minutes of a busy device."""
GROUP_RECORDS = 128
GROUP_S = 0.25
RESPONSES = 4096
"""Answers that can still be rated after a restart."""
WAL_PAGES = 512
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS streams (stream TEXT PRIMARY KEY, last INTEGER NOT NULL, committed INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS records (stream TEXT NOT NULL, seq INTEGER NOT NULL, device TEXT NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (stream, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS responses (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, generation TEXT NOT NULL,
    session TEXT NOT NULL, consent TEXT NOT NULL) STRICT;
"""


class _DamageError(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class StreamCount(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one stream: seqs given out, committed by the collector, and still held here."""

    last: int
    committed: int
    held: int


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What feedback on a response needs to know about it."""

    generation: str
    session: str
    consent: str


class Spool:
    """A durable queue per stream. Safe from any thread; one process at a time."""

    def __init__(self, path: Path, *, max_mb: float = 64) -> None:
        """Open or make the spool at `path`; its database never takes more than `max_mb` (1e6 bytes).

        A damaged database is set aside as `….quarantine-<seconds>` and a new epoch begins.
        """
        self.path = path
        self.max_mb = max_mb
        self.dropped = 0
        """Records that never got a seq, since this object was made."""
        self._ring: list[Record] = []
        self._lost: dict[str, int] = {}
        self._appended = self._settled = self._awaited = 0
        self._closing = self._is_critical = False
        self._device = ""
        self._signal = threading.Condition()
        self._disk = threading.RLock()
        self.on_durable: Callable[[], None] = lambda: None
        """Called by the writer thread after each group; Sync sets it to wake up."""
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._open_or_quarantine()
        self._writer = threading.Thread(target=self._write, name="spool", daemon=True)
        self._writer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, record: Record) -> bool:
        """Take `record` (its epoch and seq are set here); never waits for the disk. False says it was dropped."""
        with self._signal:
            if self._closing or len(self._ring) >= RING_RECORDS:
                self._lose("ring-full", 1)
                return False
            self._ring.append(record)
            self._device = record.device
            self._appended += 1
            self._is_critical |= record.stream in CRITICAL
            if self._is_critical or len(self._ring) in (1, GROUP_RECORDS):
                self._signal.notify_all()
        return True

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until what was appended before is durable, or counted as dropped; False when time is up."""
        with self._signal:
            goal = self._awaited = self._appended
            self._signal.notify_all()
            return self._signal.wait_for(lambda: self._settled >= goal, timeout_s)

    def pending(self, stream: str, after: int, limit: int, *, max_bytes: int = 256 << 10) -> list[Record]:
        """Return up to `limit` durable records of `stream` with a seq above `after`, oldest first.

        At least one when there is one; no more than `max_bytes` of rows together otherwise.
        """
        found: list[Record] = []
        size = 0
        with self._disk:
            rows = self._db.execute(
                "SELECT seq, device, row FROM records WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?",
                (stream, after, limit),
            ).fetchall()
            for seq, device, row in rows:
                size += len(row)
                if found and size > max_bytes:
                    break
                try:
                    found.append(unpack(row, device=device, epoch=self.epoch, stream=stream, seq=seq))
                except WireError:
                    self._bury(stream, seq, device)
        return found

    def commit(self, epoch: int, stream: str, upto: int) -> int:
        """Delete what the collector has stored; returns how many. Another epoch's numbers mean nothing here."""
        with self._disk, self._transaction():
            if epoch != self.epoch:
                return 0
            deleted = self._db.execute("DELETE FROM records WHERE stream = ? AND seq <= ?", (stream, upto)).rowcount
            self._db.execute(
                "UPDATE streams SET committed = max(committed, min(last, ?)) WHERE stream = ?", (upto, stream)
            )
            return deleted

    def counts(self) -> dict[str, StreamCount]:
        """Return the durable state of every stream."""
        with self._disk:
            held: dict[str, int] = dict(self._db.execute("SELECT stream, count(*) FROM records GROUP BY stream"))
            ends = self.ends().items()
            return {s: StreamCount(last=last, committed=done, held=held.get(s, 0)) for s, (last, done) in ends}

    def ends(self) -> dict[str, tuple[int, int]]:
        """Return, per stream, the last seq given out and the last one committed; quicker than `counts`."""
        with self._disk:
            rows = self._db.execute("SELECT stream, last, committed FROM streams")
            return {stream: (last, committed) for stream, last, committed in rows}

    def response(self, response: str) -> Answered | None:
        """Return what is known of a response that was recorded here, also before a restart."""
        with self._disk:
            row = self._db.execute(
                "SELECT generation, session, consent FROM responses WHERE id = ?", (response,)
            ).fetchone()
        return Answered(generation=row[0], session=row[1], consent=row[2]) if row else None

    def used_mb(self) -> float:
        """Return the megabytes (1e6 bytes) in use inside the database."""
        with self._disk:
            return (self._pragma("page_count") - self._pragma("freelist_count")) * self._page_bytes / 1e6

    def close(self) -> None:
        """Write what is in the ring and close; more calls do nothing."""
        with self._signal:
            self._closing = True
            self._signal.notify_all()
        self._writer.join()
        with self._disk:
            self._db.close()

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _open_or_quarantine(self) -> None:
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise InputError(f"the spool {self.path} cannot be opened: {error}") from error
            self._quarantine(error)

    def _open(self) -> None:
        is_new = not self.path.exists()
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            self._db.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * 4096}")
            if self._db.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise _DamageError("quick_check found damage")
            self._page_bytes = self._pragma("page_size")
            self._max_pages = int(self.max_mb * 1e6) // self._page_bytes
            self._db.execute(f"PRAGMA max_page_count = {self._max_pages}")
            self._db.executescript(_SCHEMA)
            self._begin_epoch()
        except BaseException:
            self._db.close()
            raise
        if is_new:
            sync_folder(self.path.parent)

    def _begin_epoch(self) -> None:
        # 63 bits, because SQLite and Parquet know signed integers only.
        fresh = str(secrets.randbits(63))
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', ?)", (fresh,))
            self._db.executemany("INSERT OR IGNORE INTO streams VALUES (?, 0, 0)", [(stream,) for stream in STREAMS])
        self.epoch = int(self._db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0])

    def _quarantine(self, error: Exception) -> None:
        """Set the damaged database aside, whole, and begin anew."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        stamp = time.time_ns() // 1_000_000
        for suffix in ("", "-wal", "-shm"):
            file = Path(f"{self.path}{suffix}")
            if file.exists():
                os.replace(file, f"{self.path}.quarantine-{stamp}{suffix}")
        log(f"the spool was damaged ({error}); kept as {self.path}.quarantine-{stamp}, a new one begins")
        self._open()
        self._lose("quarantine", 0)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self) -> None:
        is_last = False
        while not is_last:
            group, lost, is_last = self._take()
            kept = self._keep(group, lost)
            with self._signal:
                self._settled += len(group)
                self._signal.notify_all()
                if not kept:
                    # A disk that refuses will refuse again in a millisecond.
                    self._signal.wait_for(lambda: self._closing, 1.0)
            self.on_durable()

    def _take(self) -> tuple[list[Record], dict[str, int], bool]:
        """Wait for records, then for company or something urgent, and empty the ring."""
        with self._signal:
            self._signal.wait_for(lambda: self._ring or self._closing or (self._lost and self._device))
            self._signal.wait_for(self._is_urgent, GROUP_S)
            group, self._ring = self._ring, []
            lost, self._lost = (self._lost, {}) if self._device else ({}, self._lost)
            self._is_critical = False
            return group, lost, self._closing

    def _is_urgent(self) -> bool:
        crowded = len(self._ring) >= GROUP_RECORDS
        return crowded or self._is_critical or self._closing or self._awaited > self._settled

    def _keep(self, group: Sequence[Record], lost: dict[str, int]) -> bool:
        """Commit `group`; False says that the disk refused, what it refused is counted, and the device goes on."""
        try:
            with self._disk, self._transaction():
                self._make_room()
                self._insert(group, lost)
            return True
        except sqlite3.DatabaseError as error:
            is_full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            if is_full and len(group) > 1:
                half = len(group) // 2
                return self._keep(group[:half], lost) & self._keep(group[half:], {})
            if _is_damage(error) and self._replace_damaged(error):
                return self._keep(group, lost)
        with self._signal:
            for reason, count in lost.items():
                self._lost[reason] = self._lost.get(reason, 0) + count
            self._lose("disk-full" if is_full else "disk-error", len(group))
        return False

    def _replace_damaged(self, error: Exception) -> bool:
        with self._disk, contextlib.suppress(sqlite3.Error, OSError):
            self._quarantine(error)
            return True
        return False

    def _insert(self, group: Sequence[Record], lost: dict[str, int]) -> None:
        drops = [_drop(self._device, reason=why, count=str(count)) for why, count in lost.items()]
        rows: dict[str, list[tuple[str, int, str, bytes]]] = {}
        last: dict[str, int] = dict(self._db.execute("SELECT stream, last FROM streams"))
        for record in (*group, *drops):
            last[record.stream] += 1
            rows.setdefault(record.stream, []).append((record.stream, last[record.stream], record.device, pack(record)))
        for stream, made in rows.items():
            self._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", made)
            self._db.execute("UPDATE streams SET last = ? WHERE stream = ?", (last[stream], stream))
        self._remember(group)

    def _remember(self, group: Sequence[Record]) -> None:
        answered = [(r.response, r.generation, r.session, r.consent) for r in group if r.kind == "generation"]
        self._db.executemany(
            "INSERT OR REPLACE INTO responses (id, generation, session, consent) VALUES (?, ?, ?, ?)", answered
        )
        self._db.execute("DELETE FROM responses WHERE number <= (SELECT max(number) FROM responses) - ?", (RESPONSES,))

    def _make_room(self) -> None:
        if self.used_mb() < 0.9 * self.max_mb:
            return
        while self.used_mb() > 0.75 * self.max_mb and (self._shed("gen", 2) or self._shed("fb", 1)):
            pass

    def _shed(self, stream: str, step: int) -> bool:
        """Delete every `step`th of the older half of a stream, and say so in a drop record; False: there is too little.

        Thinning keeps a picture of the whole time; updates, drops and system events stay whole.
        """
        rows = self._db.execute("SELECT seq, device FROM records WHERE stream = ? ORDER BY seq", (stream,)).fetchall()
        doomed = rows[: len(rows) // 2 : step]
        if len(doomed) < 16:
            return False
        self._db.executemany("DELETE FROM records WHERE stream = ? AND seq = ?", [(stream, seq) for seq, _ in doomed])
        (first, device), (last, _) = doomed[0], doomed[-1]
        told = {"stream": stream, "from": first, "to": last, "count": len(doomed), "reason": "spool-full"}
        self._tell(device, **told)
        return True

    def _bury(self, stream: str, seq: int, device: str) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM records WHERE stream = ? AND seq = ?", (stream, seq))
            self._tell(device, **{"stream": stream, "from": seq, "to": seq, "count": 1, "reason": "unreadable"})

    def _tell(self, device: str, **told: object) -> None:
        self._insert([_drop(device, **{name: str(value) for name, value in told.items()})], {})

    def _lose(self, reason: str, count: int) -> None:
        with self._signal:
            self._lost[reason] = self._lost.get(reason, 0) + count
            self.dropped += count

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _drop(device: str, **detail: str) -> Record:
    now_ms = time.time_ns() // 1_000_000
    return Record(
        device=device,
        stream="sys",
        kind="drop",
        wall_ms=now_ms,
        mono_ms=time.monotonic_ns() // 1_000_000,
        detail=detail,
    )
