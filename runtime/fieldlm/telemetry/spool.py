"""The spool (store and forward): records on their way home, kept on the disk until the collector has committed them.

`append` puts a record into a bounded ring in memory and returns; a writer thread commits the ring in groups to SQLite
and gives each record its seq in the same transaction (`spool_database`). What `flush` or `pending` has shown survives
kill -9 and a power cut. A record that cannot be kept is counted, and the count itself becomes a `drop` record. A disk
that is full, read-only or broken stops nothing: records wait in the ring, `health` names the trouble, and the writer
tries again until the disk is back.
"""

import contextlib
import errno
import os
import secrets
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.logs import logger
from fieldlm.core.sqlite import connect, is_damage, set_aside
from fieldlm.core.tasks import Tasks
from fieldlm.core.wording import counted
from fieldlm.formats.record import CRITICAL, Record
from fieldlm.hardware.board_id import fingerprint
from fieldlm.telemetry.spool_database import (
    RESPONSES,
    AnsweredResponse,
    Connect,
    Database,
    Packed,
    StreamCount,
)

log = logger(__name__)

RING_RECORDS = 4096
"""Records in memory while the disk is slow: two minutes of a busy device."""
GROUP_RECORDS = 128
GROUP_S = 0.25
HANG_S = 1.0
"""A disk that has not done what it was asked for so long is said to hang."""
CLOSE_S = 20.0  # for the last group; systemd ends a service that takes 30 s
_NOTHING_TO_THIN = "no stream has enough records to thin"
RETRY_S = 1.0
"""A disk that refuses will refuse again in a millisecond."""
_DISK_ERRORS = {errno.ENOSPC: "disk-full", errno.EDQUOT: "disk-full", errno.EROFS: "read-only"}
_SQLITE_ERRORS = {
    sqlite3.SQLITE_FULL: "disk-full", sqlite3.SQLITE_READONLY: "read-only", sqlite3.SQLITE_BUSY: "locked",
}  # fmt: skip


Finish = Callable[[Record], Record]
"""Does to a record, in the writer's thread and before the disk, what takes too long where it was made."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How the spool is; `detail` says more about `problem`.

    problem: empty, or disk-full, read-only, disk-error, disk-hangs, locked (by another process), spool-full (nothing
    left to thin).
    """

    problem: str
    detail: str
    used_mb: float
    max_mb: float
    waiting: int
    """Records that are only in memory yet."""
    dropped: dict[str, int]
    """Records given up since the spool was made, by reason."""
    quarantined: tuple[str, ...]
    """Damaged databases that were set aside, and still lie there."""
    moved_from: str = ""
    """The epoch before this spool woke up in another board; its card may have been copied."""


class Spool:
    """A durable queue per stream. Safe from any thread; one process at a time."""

    def __init__(
        self,
        path: Path,
        *,
        max_mb: float = 64,
        connect: Connect = connect,
        machine: str | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        """Open or make the spool at `path`; database and log never take more than `max_mb` (1e6 bytes).

        A damaged database is set aside as `….quarantine-<milliseconds>` and a new epoch begins; so it does on another
        `machine` (by default the board's serial number), because the card may have been copied. A disk that cannot be
        written is no error; a path that can never be a database is.
        """
        self.path = path
        self.max_mb = max_mb
        self.dropped = 0
        """Records that never got a seq, since this object was made."""
        self._connect = connect
        self._machine = fingerprint() if machine is None else machine
        self._disputed: OrderedDict[str, None] = OrderedDict()
        self._ring: list[tuple[Record, Finish | None]] = []
        self._lost: dict[str, int] = {}
        self._appended = self._settled = self._awaited = 0
        self._closing = self._is_critical = False
        self._device = ""
        self._signal = threading.Condition()
        self._disk = threading.RLock()
        self._database: Database | None = None
        self._problem = self._detail = ""
        self._doubt: _Doubt | None = None
        self.on_durable: Callable[[], None] = lambda: None
        """Called by the writer thread after each group; Sync sets it to wake up."""
        self._open_first()
        # Again after a crash: what is appended later has to be kept. What it had in its hands counts as lost.
        self._writer = Tasks(tasks).start("spool", self._write, restarts=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def epoch(self) -> int:
        """The number that all keys of this database share; 0 while none is open."""
        database = self._database
        return database.epoch if database else 0

    def append(self, record: Record, finish: Finish | None = None) -> bool:
        """Take `record` (its epoch and seq are set here); never waits for the disk. False says it was dropped.

        When `finish` fails the record is kept as it is: without the text that it was to bring.
        """
        with self._signal:
            self._device = record.device
            if record.kind == "feedback" and (record.rating == "down" or record.detail):
                self._disputed[record.response] = None
                if len(self._disputed) > RESPONSES:
                    self._disputed.popitem(last=False)
            if self._closing or len(self._ring) >= RING_RECORDS:
                self._lose("ring-full", 1)
                return False
            self._ring.append((record, finish))
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
        with self._disk:
            return self._database.pending(stream, after, limit, max_bytes) if self._database else []

    def dead_letter(self, epoch: int, stream: str, seq: int, reason: str) -> None:
        """Give up one record that the collector will not have; a drop record tells it."""
        with self._disk:
            if self._database and self._database.epoch == epoch:
                self._database.dead_letter(stream, seq, reason)

    def commit(self, epoch: int, stream: str, upto: int) -> int:
        """Delete what the collector has stored; returns how many. Another epoch's numbers mean nothing here."""
        with self._disk:
            return self._database.commit(epoch, stream, upto) if self._database else 0

    def begin_anew(self) -> None:
        """Begin a new epoch, under which everything that waits goes home."""
        with self._disk:
            if self._database:
                self._database.begin_anew()

    def counts(self) -> dict[str, StreamCount]:
        """Return the durable state of every stream; nothing while the disk cannot be read."""
        with self._disk, contextlib.suppress(sqlite3.Error):
            return self._database.counts() if self._database else {}
        return {}

    def ends(self) -> dict[str, tuple[int, int]]:
        """Return, per stream, the last seq given out and the last one committed; quicker than `counts`."""
        with self._disk:
            return self._database.ends() if self._database else {}

    def response(self, response: str) -> AnsweredResponse | None:
        """Return what is known of a response that was recorded here, also before a restart; waits for the disk."""
        with self._disk, contextlib.suppress(sqlite3.Error):
            return self._database.response(response) if self._database else None
        return None

    def note(self, name: str) -> str:
        """Return what `write_note` kept; an empty string for nothing."""
        with self._disk:
            return self._database.note(name) if self._database else ""

    def write_note(self, name: str, value: str) -> None:
        """Keep a short text under a name of the caller's own."""
        with self._disk:
            if self._database:
                self._database.write_note(name, value)

    def is_disputed(self, response: str) -> bool:
        """Say whether somebody was not content with a response, as far as this process has heard."""
        return response in self._disputed

    def used_mb(self) -> float:
        """Return the megabytes (1e6 bytes) in use inside the database."""
        with self._disk:
            return self._database.used_bytes() / 1e6 if self._database else 0.0

    def health(self) -> Health:
        """Say how the spool is; waits for a disk that hangs, but no longer than HANG_S."""
        if not self._disk.acquire(timeout=HANG_S):
            health = self._health(0.0, {}, "")
            return msgspec.structs.replace(health, problem="disk-hangs", detail=f"for longer than {HANG_S:g} s")
        try:
            with contextlib.suppress(sqlite3.Error):
                dropped = self._database.dropped() if self._database else {}
                return self._health(self.used_mb(), dropped, self.note("moved_from"))
            return self._health(0.0, {}, "")
        finally:
            self._disk.release()

    def _health(self, used_mb: float, dropped: dict[str, int], moved_from: str) -> Health:
        return Health(
            problem=self._problem,
            detail=self._detail,
            used_mb=used_mb,
            max_mb=self.max_mb,
            waiting=len(self._ring),
            dropped=dropped,
            quarantined=tuple(quarantined(self.path)),
            moved_from=moved_from,
        )

    def close(self) -> None:
        """Write what is in the ring and close; more calls do nothing."""
        with self._signal:
            self._closing = True
            self._signal.notify_all()
        # Of a disk that hangs one cannot even let go.
        if self._writer.join(CLOSE_S):
            self._shut()
        if self._ring:
            left = counted(len(self._ring), "record")
            log.warning(f"the spool ends with {left} that the disk did not take ({self._problem})")

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _open_first(self) -> None:
        """Open; what waiting cannot mend is an InputError, any other trouble is tried again later."""
        try:
            self._opened()
        except (sqlite3.DatabaseError, OSError) as error:
            if self.path.is_dir() or isinstance(error, NotADirectoryError | FileExistsError | PermissionError):
                raise InputError(f"the spool {self.path} cannot be opened: {error}") from error
            self._refused(error)

    def _opened(self) -> Database:
        """Return the open database, opened now if it has to be, whatever damage there was set aside."""
        if self._database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._database = self._database_here()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._quarantine(error)
                self._database = self._database_here()
        return self._database

    def _database_here(self) -> Database:
        return Database(self.path, max_mb=self.max_mb, connect=self._connect, machine=self._machine)

    def _quarantine(self, error: Exception) -> None:
        """Set the damaged database aside, whole; the log goes first, so that it is never taken for a new one's."""
        aside = set_aside(self.path)
        log.warning(f"the spool was damaged ({error}); kept as {aside}, a new one begins")
        self._lose("quarantine", 0)

    def _shut(self) -> None:
        with self._disk, contextlib.suppress(sqlite3.Error):
            database, self._database = self._database, None
            if database:
                database.close()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self) -> None:
        is_last = False
        while not is_last:
            taken, lost, is_last = self._take()
            group = [_finished(record, finish) for record, finish in taken]
            try:
                left = self._keep(group, lost)
            except BaseException:
                with self._signal:
                    self._lost = _sum(self._lost, lost)
                    self._lose("crash", len(group))
                    self._settled += len(group)
                raise
            with self._signal:
                self._ring[:0] = [(record, None) for record in left]
                self._settled += len(group) - len(left)
                self._signal.notify_all()
                if self._problem:
                    self._signal.wait_for(lambda: self._closing, RETRY_S)
            self.on_durable()
        if self._lost and self._device and not self._problem:
            lost, self._lost = self._lost, {}
            self._keep([], lost)

    def _take(self) -> tuple[list[tuple[Record, Finish | None]], dict[str, int], bool]:
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

    def _keep(self, group: Sequence[Record], lost: dict[str, int]) -> Sequence[Record]:
        """Commit `group` slice by slice, and have nothing wrong only then; returns what the disk would not take now."""
        done = 0
        try:
            with self._disk:
                database = self._opened()
                done, untold = self._resolve(database)
                lost, is_full = _sum(lost, untold), False
                for part in database.slices(group[done:]):
                    database.make_room()
                    self._doubt = _Doubt(secrets.token_hex(8), len(part), lost)
                    is_full |= not self._keep_slice(database, part, self._doubt)
                    self._doubt = None
                    done, lost = done + len(part), {}
                self._problem, self._detail = ("spool-full", _NOTHING_TO_THIN) if is_full else ("", "")
        except (sqlite3.DatabaseError, OSError) as error:
            with self._signal:
                self._lost = _sum(self._lost, {} if self._doubt else lost)
            self._refused(error)
        return group[done:]

    def _keep_slice(self, database: Database, part: Sequence[Packed], doubt: "_Doubt") -> bool:
        """Commit `part`, or give it up for what no later try would mend; False where the spool has no room for it."""
        if database.is_too_large(part):
            self._give_up("too-large", doubt)
            return True
        try:
            database.insert(part, doubt.token, doubt.lost, self._device)
        except sqlite3.DatabaseError as error:
            if _code(error) != sqlite3.SQLITE_FULL or not database.is_crowded():
                raise
            self._give_up("spool-full", doubt)
            return False
        return True

    def _give_up(self, reason: str, doubt: "_Doubt") -> None:
        with self._signal:
            self._lost = _sum(self._lost, doubt.lost)
            self._lose(reason, doubt.records)

    def _resolve(self, database: Database) -> tuple[int, dict[str, int]]:
        """A commit that failed may have reached the disk all the same: return how many records it took with it.

        If it did not, return the losses that it should have told.
        """
        doubt, self._doubt = self._doubt, None
        if doubt is None:
            return 0, {}
        return (doubt.records, {}) if database.has_slice(doubt.token) else (0, doubt.lost)

    def _refused(self, error: sqlite3.DatabaseError | OSError) -> None:
        """Name what is wrong. A new try opens the file again, because a disk that was away comes back as another."""
        problem, self._detail = _trouble(error, self.path.parent), str(error)
        if problem != self._problem:
            log.warning(f"the spool waits, {problem}: {error}")
        self._problem = problem
        if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL):
            return
        self._shut()
        if is_damage(error):
            with contextlib.suppress(OSError):
                self._quarantine(error)

    def _lose(self, reason: str, count: int) -> None:
        with self._signal:
            self._lost = _sum(self._lost, {reason: count})
            self.dropped += count


class _Doubt(NamedTuple):
    """A slice that is on its way to the disk: how many records, and which losses it tells."""

    token: str
    records: int
    lost: dict[str, int]


def _finished(record: Record, finish: Finish | None) -> Record:
    if finish is None:
        return record
    try:
        return finish(record)
    except Exception as error:  # whatever a text does to redaction, the writer lives, and the text does not travel
        log.warning(f"the text of {record.response} is left out: {type(error).__name__}")
        return msgspec.structs.replace(record, detail=record.detail | {"text": "failed"})


def quarantined(path: Path) -> list[str]:
    """Return the damaged databases that lie beside the spool at `path`, oldest first."""
    found = path.parent.glob(f"{path.name}.quarantine-*") if path.parent.is_dir() else ()
    return sorted(str(file) for file in found if not file.name.endswith(("-wal", "-shm")))


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {reason: one.get(reason, 0) + other.get(reason, 0) for reason in {**one, **other}}


def _code(error: BaseException) -> int:
    """Return SQLite's primary code; errors of the module itself, such as a closed database, have none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _trouble(error: sqlite3.DatabaseError | OSError, folder: Path) -> str:
    known = _DISK_ERRORS.get(error.errno or 0) if isinstance(error, OSError) else _SQLITE_ERRORS.get(_code(error))
    with contextlib.suppress(OSError):
        disk = os.statvfs(folder)
        # SQLite only says that it cannot open its log where it may not make one, or has no room to.
        known = known or ("read-only" if disk.f_flag & os.ST_RDONLY else "" if disk.f_bavail else "disk-full")
    return known or "disk-error"
