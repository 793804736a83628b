"""A disk that remembers every write, and what a power cut may leave of it.

SQLite calls it as a VFS (apsw; SQLite's own code above it, another build than the standard library's). `states` then
goes through every boundary between two calls. What was synced is there; of what was not, any part may be: nothing, all,
any writes in any order, any 512-byte sectors of them, with garbage where a sector was being written. Names of files
become durable when SQLite syncs a new journal or log, because its unix VFS then syncs the folder too.
"""

import contextlib
import itertools
import random
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import apsw
import msgspec

SECTOR = 512
Files = dict[str, bytes]
_CODES: dict[type[apsw.Error], int] = {
    apsw.FullError: sqlite3.SQLITE_FULL,
    apsw.ReadOnlyError: sqlite3.SQLITE_READONLY,
    apsw.IOError: sqlite3.SQLITE_IOERR,
    apsw.CorruptError: sqlite3.SQLITE_CORRUPT,
}


class Call(msgspec.Struct, frozen=True):
    """One call that changes `file`; `what` is create, write, truncate, sync or delete."""

    what: str
    file: str
    offset: int = 0
    data: bytes = b""


class Disk(apsw.VFS):
    """Passes every call on to the real disk and notes it; `refuse` may raise apsw errors instead."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Call] = []
        self.refuse: Callable[[Call], None] = lambda call: None
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.note(Call("delete", Path(filename).name))
        super().xDelete(filename, syncdir)

    def note(self, call: Call) -> None:
        self.refuse(call)
        self.calls.append(call)

    def connect(self, path: Path) -> sqlite3.Connection:
        """Open a database on this disk; it behaves as the standard library's as far as the spool can tell."""
        return cast(sqlite3.Connection, _Connection(str(path), self.name))


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self.disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self.file = Path(path).name
        is_new = not Path(path).exists()
        super().__init__("", name, flags)
        if is_new:
            disk.note(Call("create", self.file))

    def xWrite(self, data: Any, offset: int) -> None:
        self.disk.note(Call("write", self.file, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self.disk.note(Call("truncate", self.file, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self.disk.note(Call("sync", self.file))
        super().xSync(flags)


class _Rows(list[Any]):
    rowcount = -1

    def fetchone(self) -> Any:
        return self[0] if self else None

    def fetchall(self) -> Self:
        return self


class _Connection:
    """What the spool uses of sqlite3.Connection, over apsw."""

    def __init__(self, path: str, vfs: str) -> None:
        with _as_sqlite3():
            self._db = apsw.Connection(path, vfs=vfs)
            self._db.set_busy_timeout(30_000)

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, sql: str, values: Sequence[Any] = ()) -> _Rows:
        with _as_sqlite3():
            rows = _Rows(self._db.execute(sql, tuple(values) or None))
        rows.rowcount = self._db.changes()
        return rows

    def executemany(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        with _as_sqlite3():
            self._db.executemany(sql, values)

    def executescript(self, sql: str) -> None:
        self.execute(sql)

    def close(self) -> None:
        with _as_sqlite3():
            self._db.close()


@contextlib.contextmanager
def _as_sqlite3() -> Generator[None]:
    try:
        yield
    except apsw.Error as error:
        same = sqlite3.OperationalError(str(error))
        # What a VFS raises comes out as it went in, and then has no code.
        same.sqlite_errorcode = getattr(error, "extendedresult", 0) or _CODES.get(type(error), 0)
        raise same from error


def states(calls: Sequence[Call], rng: random.Random, variants: int) -> Iterator[tuple[int, Files]]:
    """Yield (calls made, files left) for a power cut at every boundary, each distinct one once, at most `variants`."""
    durable: Files = {}
    names: set[str] = set()
    pending: list[Call] = []
    for made in range(len(calls) + 1):
        seen: set[int] = set()
        for variant in range(variants):
            files = {name: data for name, data in _cut(durable, pending, rng, variant).items() if name in names}
            if (key := hash(frozenset(files.items()))) not in seen:
                seen.add(key)
                yield made, files
        if made < len(calls):
            durable, pending = _after(durable, names, [*pending, calls[made]])


def _after(durable: Files, names: set[str], pending: list[Call]) -> tuple[Files, list[Call]]:
    """Settle what the last call makes durable."""
    last = pending[-1]
    if last.what != "sync":
        return durable, pending
    if last.file not in names and not last.file.endswith(".db"):
        return _sync_folder(durable, names, pending)
    mine = [call for call in pending if call.file == last.file and call.what in ("write", "truncate")]
    settled = durable | {last.file: _apply(durable.get(last.file, b""), mine)}
    return settled, [call for call in pending if call not in mine and call.what != "sync"]


def _sync_folder(durable: Files, names: set[str], pending: list[Call]) -> tuple[Files, list[Call]]:
    for call in pending:
        if call.what == "create":
            names.add(call.file)
        elif call.what == "delete":
            names.discard(call.file)
            durable = {name: data for name, data in durable.items() if name != call.file}
    return _after(durable, names, [call for call in pending if call.what not in ("create", "delete")])


def _cut(durable: Files, pending: Sequence[Call], rng: random.Random, variant: int) -> Files:
    """Return what is left: variant 0 loses all that was not synced, 1 nothing, others any part of it."""
    keep = {0: 0.0, 1: 1.0}.get(variant, rng.choice((0.1, 0.5, 0.9)))
    files = dict(durable)
    for call in pending:
        is_whole = variant < 2 or (variant % 2 == 0 and call.what == "write") or call.what == "truncate"
        if call.what in ("write", "truncate"):
            parts = [call] if is_whole else _sectors(call, rng)
            files[call.file] = _apply(files.get(call.file, b""), [part for part in parts if rng.random() < keep])
        elif call.what == "delete" and rng.random() < keep:
            files.pop(call.file, None)
    return files


def _sectors(call: Call, rng: random.Random) -> list[Call]:
    start, stop = call.offset, call.offset + len(call.data)
    cuts = [start, *range(start - start % SECTOR + SECTOR, stop, SECTOR), stop]
    parts: list[Call] = []
    for a, b in itertools.pairwise(cuts):
        data = call.data[a - start : b - start]
        parts.append(Call("write", call.file, a, rng.randbytes(b - a) if rng.random() < 0.05 else data))
    return parts


def _apply(data: bytes, calls: Sequence[Call]) -> bytes:
    made = bytearray(data)
    for call in calls:
        if call.what == "truncate":
            del made[call.offset :]
            made.extend(bytes(call.offset - len(made)))
        else:
            made.extend(bytes(max(0, call.offset - len(made))))
            made[call.offset : call.offset + len(call.data)] = call.data
    return bytes(made)


def lay(files: Files, folder: Path) -> None:
    """Write `files` into `folder`, and nothing else that could be of a database."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
