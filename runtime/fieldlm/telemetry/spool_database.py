"""The spool's tables in one SQLite file, and what happens when they are full.

Every change is one transaction (WAL, synchronous=FULL). Database and log together stay below a bound: when it comes
near, the stream that is furthest above its quota is thinned, and a `drop` record says what went. Knows no threads.
"""

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fieldlm.core.files import sync_folder
from fieldlm.core.sqlite import check, connect, make_durable, transaction
from fieldlm.formats.record import STREAMS, Record, WireError, pack, unpack

RESPONSES = 4096
"""Answers that can still be rated after a restart."""
WAL_PAGES = 512
SLICE_BYTES = 1 << 20
"""What one transaction writes at most, because the log has to hold it beside everything else."""
QUOTAS: Mapping[str, float] = {"ota": 0.15, "fb": 0.25, "sys": 0.15, "gen": 0.45}
"""What a class may keep when all want more; what one leaves free the others use."""
FULL, SPARE = 0.9, 0.75
_HARD = msgspec.msgpack.encode("hard")
"""The key in a row's detail; a text that says so by chance is kept a little longer."""
BATCHES = 16
LEAST_SHED = 16
"""A drop record for every record dropped would help nobody."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS streams (stream TEXT PRIMARY KEY, last INTEGER NOT NULL, committed INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS records (stream TEXT NOT NULL, seq INTEGER NOT NULL, device TEXT NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (stream, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS responses (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, generation TEXT NOT NULL,
    session TEXT NOT NULL, consent TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS dropped (reason TEXT PRIMARY KEY, records INTEGER NOT NULL) STRICT;
"""

Connect = Callable[[Path], sqlite3.Connection]
Packed = tuple[Record, bytes]
"""A record and its row."""


class StreamCount(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one stream: seqs given out, committed by the collector, and still held here."""

    last: int
    committed: int
    held: int


class AnsweredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What feedback on a response needs to know about it."""

    generation: str
    session: str
    consent: str


class Database:
    """An open spool file. Whoever shares it between threads holds a lock around every call."""

    def __init__(self, path: Path, *, max_mb: float, connect: Connect = connect, machine: str = "") -> None:
        """Open or make it; raises sqlite3.DatabaseError, and DamageError among them, when that cannot be."""
        is_new = not path.exists()
        self.max_bytes = int(max_mb * 1e6)
        self._bound = self.max_bytes * 7 // 8
        self._machine = machine
        self._db = connect(path)
        try:
            if is_new:
                # It holds what people said, and is empty yet; SQLite gives its log the same rights.
                path.chmod(0o600)
            self._prepare()
        except BaseException:
            self._db.close()
            raise
        if is_new:
            sync_folder(path.parent)

    def close(self) -> None:
        self._db.close()

    def _prepare(self) -> None:
        make_durable(self._db)
        # What is deleted is overwritten: a text that was forgotten must not lie on in a free page.
        self._db.execute("PRAGMA secure_delete = ON")
        with transaction(self._db):
            pass  # A disk that cannot be written says so here, before the whole file is read.
        check(self._db)
        self._page_bytes = self._pragma("page_size")
        pages = self.max_bytes // self._page_bytes
        # An eighth is for the log: what it holds before a checkpoint, and one transaction on top.
        self._db.execute(f"PRAGMA max_page_count = {pages - pages // 8}")
        log_pages = min(WAL_PAGES, max(1, pages // 32))
        self._db.execute(f"PRAGMA wal_autocheckpoint = {log_pages}")
        self._db.execute(f"PRAGMA journal_size_limit = {log_pages * self._page_bytes}")
        self._db.executescript(_SCHEMA)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        # 63 bits, because SQLite and Parquet know signed integers only.
        fresh = str(secrets.randbits(63))
        with transaction(self._db):
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', ?)", (fresh,))
            self._db.executemany("INSERT OR IGNORE INTO streams VALUES (?, 0, 0)", [(stream,) for stream in STREAMS])
            if self._machine and self._machine != self.note("machine"):
                self._settle()
        self.epoch = int(self.note("epoch"))

    def _settle(self) -> None:
        """Begin a new epoch on a machine that is not the one before; what waits goes home under the new one."""
        before, old = self.note("machine"), self.note("epoch")
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('machine', ?)", (self._machine,))
        if before:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(secrets.randbits(63)),))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('moved_from', ?)", (old,))

    def begin_anew(self) -> None:
        """Begin a new epoch: somebody has numbers of this one that were never given out here."""
        fresh = secrets.randbits(63)
        with transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (str(fresh),))
        self.epoch = fresh

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def pending(self, stream: str, after: int, limit: int, max_bytes: int) -> list[Record]:
        """Return durable records above `after`; a row that cannot be read is buried and told."""
        rows = self._db.execute(
            "SELECT seq, device, row FROM records WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?",
            (stream, after, limit),
        ).fetchall()
        found: list[Record] = []
        size = 0
        for seq, device, row in rows:
            size += len(row)
            if found and size > max_bytes:
                break
            try:
                found.append(unpack(row, device=device, epoch=self.epoch, stream=stream, seq=seq))
            except WireError:
                self._remove(stream, [seq], device, reason="unreadable")
        return found

    def counts(self) -> dict[str, StreamCount]:
        held: dict[str, int] = dict(self._db.execute("SELECT stream, count(*) FROM records GROUP BY stream").fetchall())
        ends = self.ends().items()
        return {s: StreamCount(last=last, committed=done, held=held.get(s, 0)) for s, (last, done) in ends}

    def ends(self) -> dict[str, tuple[int, int]]:
        rows = self._db.execute("SELECT stream, last, committed FROM streams").fetchall()
        return {stream: (last, committed) for stream, last, committed in rows}

    def response(self, response: str) -> AnsweredResponse | None:
        row = self._db.execute(
            "SELECT generation, session, consent FROM responses WHERE id = ?", (response,)
        ).fetchone()
        return AnsweredResponse(generation=row[0], session=row[1], consent=row[2]) if row else None

    def dropped(self) -> dict[str, int]:
        """Return how many records this spool has given up since it was made, by reason."""
        return dict(self._db.execute("SELECT reason, records FROM dropped ORDER BY reason").fetchall())

    def note(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def used_bytes(self) -> int:
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._page_bytes

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def write_note(self, name: str, value: str) -> None:
        with transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def commit(self, epoch: int, stream: str, upto: int) -> int:
        """Delete what the collector has stored; returns how many."""
        if epoch != self.epoch:
            return 0
        with transaction(self._db):
            deleted = self._db.execute("DELETE FROM records WHERE stream = ? AND seq <= ?", (stream, upto)).rowcount
            self._db.execute(
                "UPDATE streams SET committed = max(committed, min(last, ?)) WHERE stream = ?", (upto, stream)
            )
            return deleted

    def insert(self, part: Sequence[Packed], token: str, lost: Mapping[str, int], device: str) -> None:
        """Commit one of `slices`, and a drop record for each reason of `lost`; `has_slice` then knows the token."""
        with transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('slice', ?)", (token,))
            drops = [_drop(device, reason=reason, count=str(count)) for reason, count in lost.items()]
            self._insert([*part, *((record, pack(record)) for record in drops)])
            self._remember([record for record, _ in part])
            forgotten = [record for record, _ in part if record.kind == "forget" and record.session]
            for record in forgotten:
                self._forget(record.session, record.device)
            for reason, count in lost.items():
                self._count(reason, count)
        if forgotten:
            # The log still has what was deleted until it is folded in and cut.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def dead_letter(self, stream: str, seq: int, reason: str) -> None:
        """Give up one record, and tell it; nothing when it is gone already."""
        row = self._db.execute("SELECT device FROM records WHERE stream = ? AND seq = ?", (stream, seq)).fetchone()
        if row:
            self._remove(stream, [seq], row[0], reason=reason)

    def _forget(self, session: str, device: str) -> None:
        """Delete every row of a session but the record that asks for it, inside the caller's transaction."""
        sql = "SELECT stream, seq, row FROM records WHERE instr(row, ?) > 0 ORDER BY stream, seq"
        doomed: dict[str, list[int]] = {}
        for stream, seq, row in self._db.execute(sql, (session.encode(),)).fetchall():
            if _is_of_session(row, session):
                doomed.setdefault(stream, []).append(seq)
        for stream, seqs in doomed.items():
            self._delete(stream, seqs, device, reason="forgotten")
        self._db.execute("DELETE FROM responses WHERE session = ?", (session,))

    def slices(self, group: Sequence[Record]) -> Iterator[list[Packed]]:
        """Pack and split by size; at least one slice, because what was lost wants to be told."""
        room = left = min(SLICE_BYTES, self.max_bytes // 32)
        part: list[Packed] = []
        for record in group:
            row = pack(record)
            if len(row) > left and part:
                yield part
                part, left = [], room
            part.append((record, row))
            left -= len(row)
        yield part

    def has_slice(self, token: str) -> bool:
        """Say whether the slice with this token was the last to be committed."""
        return self.note("slice") == token

    def is_crowded(self) -> bool:
        """Say whether `make_room` could not do what it should."""
        return self.used_bytes() > SPARE * self._bound

    def is_too_large(self, part: Sequence[Packed]) -> bool:
        """Say whether this is one record that the log could not hold beside everything else."""
        return len(part) == 1 and len(part[0][1]) > self.max_bytes // 16

    def _count(self, reason: str, records: int) -> None:
        self._db.execute(
            "INSERT INTO dropped VALUES (?, ?) ON CONFLICT DO UPDATE SET records = records + excluded.records",
            (reason, records),
        )

    def _insert(self, rows: Sequence[Packed]) -> None:
        last: dict[str, int] = {stream: last for stream, (last, _) in self.ends().items()}
        made: list[tuple[str, int, str, bytes]] = []
        for record, row in rows:
            last[record.stream] += 1
            made.append((record.stream, last[record.stream], record.device, row))
        self._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", made)
        touched = {stream for stream, *_ in made}
        self._db.executemany("UPDATE streams SET last = ? WHERE stream = ?", [(last[s], s) for s in sorted(touched)])

    def _remember(self, group: Sequence[Record]) -> None:
        answered = [(r.response, r.generation, r.session, r.consent) for r in group if r.kind == "generation"]
        self._db.executemany(
            "INSERT OR REPLACE INTO responses (id, generation, session, consent) VALUES (?, ?, ?, ?)", answered
        )
        most = min(RESPONSES, self.max_bytes // 2048)
        self._db.execute("DELETE FROM responses WHERE number <= (SELECT max(number) FROM responses) - ?", (most,))

    # ── making room ──────────────────────────────────────────────────────────────────────────────────────────────

    def make_room(self) -> None:
        """Thin when the bound is near, the stream that is furthest above its quota first."""
        if self.used_bytes() < FULL * self._bound:
            return
        sizes: dict[str, int] = dict(
            self._db.execute("SELECT stream, sum(length(row)) FROM records GROUP BY stream").fetchall()
        )
        while self.used_bytes() > SPARE * self._bound and self._shed_from(sizes):
            pass

    def _shed_from(self, sizes: dict[str, int]) -> bool:
        for stream in sorted(sizes, key=lambda s: sizes[s] / QUOTAS[s], reverse=True):
            if freed := self._shed(stream):
                sizes[stream] -= freed
                return True
        return False

    def _shed(self, stream: str) -> int:
        """Thin a piece of the older half of `stream`; returns the bytes freed, 0 when there is too little.

        Each call goes on where the last one ended and begins again at the middle, so the whole half keeps an even
        picture of its time. Feedback is worth most while it is fresh: there the oldest go. Drop records stay.
        """
        for is_picky in (True, False) if stream == "gen" else (False,):
            for rows in self._batches(stream):
                # Three of four, because SQLite gives a page back only when it is two thirds empty.
                doomed = rows if stream == "fb" else [row for place, row in enumerate(rows) if place % 4]
                # What was hard is worth more to the next model; it goes when there is nothing else.
                doomed = [row for row in doomed if not (is_picky and row.is_hard)]
                if len(doomed) >= LEAST_SHED:
                    note = (f"thinned.{stream}", str(rows[-1].seq))
                    seqs = [row.seq for row in doomed]
                    self._remove(stream, seqs, doomed[-1].device, reason="spool-full", note=note)
                    return sum(row.size for row in doomed)
        return 0

    def _batches(self, stream: str) -> Iterator[list["_Old"]]:
        """Yield old rows from where the last thinning ended, once around, and not for ever."""
        middle, after = self._middle(stream), int(self.note(f"thinned.{stream}") or 0)
        is_wrapped = after == 0
        for _ in range(BATCHES):
            rows = self._old(stream, after, middle)
            if rows:
                yield rows
                after = rows[-1].seq
            elif is_wrapped:
                return
            else:
                after, is_wrapped = 0, True

    def _middle(self, stream: str) -> int:
        sql = (
            "SELECT seq FROM records WHERE stream = ?1 ORDER BY seq LIMIT 1 "
            "OFFSET (SELECT count(*) / 2 FROM records WHERE stream = ?1)"
        )
        row = self._db.execute(sql, (stream,)).fetchone()
        return row[0] if row else 0

    def _old(self, stream: str, after: int, before: int) -> list["_Old"]:
        """Return rows that may go, no more than one transaction bears."""
        sql = "SELECT seq, device, row FROM records WHERE stream = ? AND seq > ? AND seq < ? ORDER BY seq LIMIT 4096"
        found: list[_Old] = []
        size = 0
        for seq, device, row in self._db.execute(sql, (stream, after, before)).fetchall():
            size += len(row)
            if size > min(SLICE_BYTES, self.max_bytes // 32) and len(found) >= 2 * LEAST_SHED:
                break
            if stream != "sys" or not _is_drop(row):
                found.append(_Old(seq, device, len(row), _HARD in row))
        return found

    def _remove(
        self, stream: str, seqs: Sequence[int], device: str, *, reason: str, note: tuple[str, str] | None = None
    ) -> None:
        with transaction(self._db):
            self._delete(stream, seqs, device, reason=reason)
            if note:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", note)

    def _delete(self, stream: str, seqs: Sequence[int], device: str, *, reason: str) -> None:
        told = _drop(
            device, stream=stream, **{"from": str(seqs[0]), "to": str(seqs[-1])}, count=str(len(seqs)), reason=reason
        )
        self._db.executemany("DELETE FROM records WHERE stream = ? AND seq = ?", [(stream, seq) for seq in seqs])
        self._insert([(told, pack(told))])
        self._count(reason, len(seqs))


class _Old(NamedTuple):
    """A row that may be given up: its number, whose it is, its bytes, and whether it was a hard one."""

    seq: int
    device: str
    size: int
    is_hard: bool


def _is_drop(row: bytes) -> bool:
    try:
        fields: list[Any] = msgspec.msgpack.decode(row, type=list[Any])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return fields[1:2] == ["drop"]


def _is_of_session(row: bytes, session: str) -> bool:
    try:
        record = unpack(row, device="", epoch=0, stream="gen", seq=0)
    except WireError:
        return True  # Nobody can say what is in it, only that the session is.
    return record.session == session and record.kind != "forget"


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
