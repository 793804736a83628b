"""Where records come to rest: a folder with a journal in SQLite and Parquet files beside it.

    store/
      store.db                 watermarks, and the rows that are not in Parquet yet
      records/<digest>.parquet

Rows and the watermark that covers them are one SQLite transaction (WAL, synchronous=FULL), so a record is stored once
or not at all. `compact` writes rows to a Parquet file, then lists the file and deletes the rows in one transaction: a
file that is not listed does not exist. A reader sees the listed files and the journal as they were at one moment.
"""

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from fieldlm.formats.block import Block, UnknownSchemaError
from fieldlm.formats.errors import InputError
from fieldlm.formats.files import disk_errors, sync_folder
from fieldlm.formats.record import Record, WireError, pack, runs, unpack

COMPACT_ROWS = 50_000
_TYPES: dict[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
ARROW = pa.schema(
    [(f.name, _TYPES.get(f.type, pa.string())) for f in msgspec.structs.fields(Record) if f.name != "detail"]
    + [("detail", pa.map_(pa.string(), pa.string()))]
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS watermarks (device TEXT NOT NULL, epoch INTEGER NOT NULL, stream TEXT NOT NULL,
    upto INTEGER NOT NULL, PRIMARY KEY (device, epoch, stream)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (number INTEGER PRIMARY KEY, device TEXT NOT NULL, epoch INTEGER NOT NULL,
    stream TEXT NOT NULL, seq INTEGER NOT NULL, row BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, rows INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS raw (device TEXT NOT NULL, epoch INTEGER NOT NULL, stream TEXT NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, records INTEGER NOT NULL, schema INTEGER NOT NULL,
    problem TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (device, epoch, stream, first)) STRICT;
CREATE TABLE IF NOT EXISTS presence (device TEXT PRIMARY KEY, state TEXT NOT NULL, at_ms INTEGER NOT NULL) STRICT;
"""

Key = tuple[str, int, str]
"""Device, epoch, stream."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the numbers of one stream that are not in the store.

    `told` were dropped by the device, which said so; `lost` nobody explains, and there should never be any.
    """

    device: str
    epoch: int
    stream: str
    told: int
    lost: int
    ranges: tuple[tuple[int, int], ...]


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """How many records of one device and stream are stored, and how many are kept raw."""

    device: str
    stream: str
    records: int
    raw: int = 0


class Store:
    """The collector's memory. One process writes; any number read with `read_only`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        self.records_folder = folder / "records"
        database = folder / "store.db"
        if read_only and not database.is_file():
            raise InputError(f"{folder} is no store; fill one with: fieldlm collect --store {folder}")
        with disk_errors(folder):
            self.records_folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(database, isolation_level=None, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise InputError(f"{database} cannot be opened: {error}") from error
        if not read_only:
            self._sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, blocks: Iterable[Block]) -> dict[Key, int]:
        """Commit the blocks' new rows and their watermarks in one transaction; returns the watermarks they touched.

        Rows up to the watermark are there already and are passed over. A block that starts beyond the watermark is
        refused: what lies between may still come.
        """
        touched: dict[Key, int] = {}
        with self._transaction():
            for block in blocks:
                key = (block.device, block.epoch, block.stream)
                upto = touched.get(key, self.watermark(key))
                touched[key] = self._take(block, upto) if block.first <= upto + 1 and block.last > upto else upto
            self._mark(touched)
        return touched

    def greet(self, device: str, epoch: int, first: dict[str, int]) -> dict[str, int]:
        """Answer a hello: the watermarks of this epoch. What lies before `first` will never come, so step over it."""
        with self._transaction():
            marks = {(device, epoch, stream): self.watermark((device, epoch, stream)) for stream in first}
            marks = {key: max(upto, first[key[2]] - 1) for key, upto in marks.items()}
            self._mark(marks)
        return {stream: upto for (_, _, stream), upto in marks.items()}

    def note_presence(self, device: str, state: str) -> None:
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO presence VALUES (?, ?, ?)", (device, state, time.time_ns() // 1_000_000)
            )

    def compact(self, *, at_least: int = 1) -> Path | None:
        """Move the journal's rows into a Parquet file when there are `at_least` so many; returns the file."""
        with self._lock:
            rows = self._db.execute("SELECT number, device, epoch, stream, seq, row FROM journal ORDER BY number")
            taken: list[Any] = rows.fetchall()
            if len(taken) < at_least:
                return None
            table = _table(_records(row[1:] for row in taken))
            digest = hashlib.sha256(b"".join(f"{row[1:5]}".encode() + row[5] for row in taken)).hexdigest()[:16]
            path = self.records_folder / f"{digest}.parquet"
            _write_parquet(table, path)
            with self._transaction():
                self._db.execute("INSERT INTO files VALUES (?, ?)", (path.name, len(taken)))
                self._db.execute("DELETE FROM journal WHERE number <= ?", (taken[-1][0],))
            return path

    def _take(self, block: Block, upto: int) -> int:
        """Insert what is new in `block`; returns the new watermark. What cannot be read is kept as it came."""
        try:
            records = block.records()
        except WireError as error:
            problem = "unknown schema" if isinstance(error, UnknownSchemaError) else str(error)
            head = (block.device, block.epoch, block.stream, block.first, block.last, block.count, block.schema)
            self._db.execute(
                "INSERT OR IGNORE INTO raw VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*head, problem, block.body)
            )
            return block.last
        self._db.executemany(
            "INSERT INTO journal (device, epoch, stream, seq, row) VALUES (?, ?, ?, ?, ?)",
            [(r.device, r.epoch, r.stream, r.seq, pack(r)) for r in records if r.seq > upto],
        )
        return block.last

    def _mark(self, marks: dict[Key, int]) -> None:
        self._db.executemany(
            "INSERT INTO watermarks VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET upto = max(upto, excluded.upto)",
            [(*key, upto) for key, upto in marks.items()],
        )

    def _sweep(self) -> None:
        """Delete Parquet files that a killed compaction left unlisted; their rows are still in the journal."""
        listed = {name for (name,) in self._db.execute("SELECT name FROM files")}
        for path in self.records_folder.iterdir():
            if path.name not in listed:
                path.unlink()

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        with self._lock, disk_errors(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def watermark(self, key: Key) -> int:
        """Return the last seq of which the store can say that everything up to it has arrived or never will."""
        row = self._db.execute(
            "SELECT upto FROM watermarks WHERE device = ? AND epoch = ? AND stream = ?", key
        ).fetchone()
        return row[0] if row else 0

    def watermarks(self) -> dict[Key, int]:
        return {
            (d, e, s): upto for d, e, s, upto in self._db.execute("SELECT device, epoch, stream, upto FROM watermarks")
        }

    def presence(self) -> dict[str, str]:
        """Return the last presence message of every device, as JSON text."""
        return dict(self._db.execute("SELECT device, state FROM presence ORDER BY device"))

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Run SQL with the view `records` over everything that is stored; raises InputError when SQL is wrong."""
        with self.connect() as duck:
            try:
                found = duck.execute(sql)
                names = [column[0] for column in found.description or []]
                return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
            except duckdb.Error as error:
                raise InputError(f"the query failed: {error}") from error

    @contextlib.contextmanager
    def connect(self) -> Generator[duckdb.DuckDBPyConnection]:
        """Yield a DuckDB connection with the view `records`: listed Parquet files and journal of one moment."""
        files, rows = self._snapshot()
        with duckdb.connect() as duck:
            duck.register("journal", _table(_records(rows)))
            parts = ["SELECT * FROM journal"]
            if files:
                names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
                parts.append(f"SELECT * FROM read_parquet([{names}])")
            duck.execute("CREATE VIEW records AS " + " UNION ALL BY NAME ".join(parts))
            yield duck

    def counts(self) -> list[Count]:
        """Return how many records each device's streams have here."""
        raw: dict[tuple[str, str], int] = defaultdict(int)
        for device, stream, records in self._db.execute("SELECT device, stream, records FROM raw"):
            raw[device, stream] += records
        sql = "SELECT device, stream, count(*) AS records FROM records GROUP BY ALL"
        stored = {(row["device"], row["stream"]): row["records"] for row in self.query(sql)}
        keys = sorted(stored.keys() | raw.keys())
        return [Count(device=d, stream=s, records=stored.get((d, s), 0), raw=raw.get((d, s), 0)) for d, s in keys]

    def gaps(self) -> list[Gap]:
        """Return, for every stream with missing numbers, which are told and which are lost."""
        sql = "SELECT device, epoch, stream, list(seq ORDER BY seq) AS seqs FROM records GROUP BY ALL"
        seqs = {(row["device"], row["epoch"], row["stream"]): row["seqs"] for row in self.query(sql)}
        raw = self._db.execute("SELECT device, epoch, stream, first, last FROM raw").fetchall()
        told = self._told()
        found: list[Gap] = []
        for key, upto in sorted(self.watermarks().items()):
            missing = set(range(1, upto + 1)) - set(seqs.get(key, []))
            for *_, first, last in (r for r in raw if tuple(r[:3]) == key):
                missing -= set(range(first, last + 1))
            if missing:
                found.append(_gap(key, missing, told.get(key, [])))
        return found

    def _told(self) -> dict[Key, list[tuple[int, int, int]]]:
        """Return the drop records' ranges: first, last and how many of them."""
        found: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)
        for row in self.query("SELECT device, epoch, detail FROM records WHERE kind = 'drop'"):
            detail = _detail(row["detail"])
            if "from" in detail:
                span = (int(detail["from"]), int(detail["to"]), int(detail["count"]))
                found[row["device"], row["epoch"], detail["stream"]].append(span)
        return found

    def _snapshot(self) -> tuple[list[Path], list[Any]]:
        with self._lock:
            self._db.execute("BEGIN")
            try:
                files = [
                    self.records_folder / name for (name,) in self._db.execute("SELECT name FROM files ORDER BY name")
                ]
                rows = self._db.execute(
                    "SELECT device, epoch, stream, seq, row FROM journal ORDER BY number"
                ).fetchall()
            finally:
                self._db.execute("ROLLBACK")
        return files, rows


def _gap(key: Key, missing: set[int], told: Sequence[tuple[int, int, int]]) -> Gap:
    """A drop record explains as many missing numbers of its range as it counts, and no others."""
    inside = {n for n in missing if any(first <= n <= last for first, last, _ in told)}
    explained = min(len(inside), sum(count for *_, count in told))
    device, epoch, stream = key
    return Gap(
        device=device,
        epoch=epoch,
        stream=stream,
        told=explained,
        lost=len(missing) - explained,
        ranges=tuple(runs(sorted(missing - inside))),
    )


def _detail(value: Any) -> dict[str, str]:
    return cast(dict[str, str], value if isinstance(value, dict) else dict(value or []))


def _records(rows: Iterable[Any]) -> list[Record]:
    return [unpack(row, device=d, epoch=e, stream=s, seq=n) for d, e, s, n, row in rows]


def _table(records: Sequence[Record]) -> Any:
    columns = {name: [getattr(record, name) for record in records] for name in ARROW.names}
    columns["detail"] = [list(record.detail.items()) for record in records]
    return pa.table(columns, schema=ARROW)


def _write_parquet(table: Any, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    with disk_errors(path):
        pq.write_table(table, part, compression="zstd")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
