"""Parquet, the sink of one machine: a folder with a journal in SQLite and Parquet files beside it, read with DuckDB.

    store/
      store.db                 watermarks, and the blocks that are not in Parquet yet, as they came
      records/<digest>.parquet

Blocks and the watermark that covers them are one SQLite transaction (WAL, synchronous=FULL), so a record is stored
once or not at all. `compact` unpacks blocks into a Parquet file, then lists the file and deletes the blocks in one
transaction: a file that is not listed does not exist. A reader sees files and journal as they were at one moment.
"""

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fieldlm.core.errors import InputError, NotFoundError
from fieldlm.core.files import disk_errors, held_lock, make_private, make_private_folder, sync_folder
from fieldlm.core.sqlite import BUSY_S, connect, make_durable, transaction
from fieldlm.formats.block import Block
from fieldlm.formats.record import SCHEMAS, Record, unpack
from fieldlm_compiler.collect.arrow import arrow_table, schema, sessions_table, without_forgotten
from fieldlm_compiler.collect.parquet_schema import SCHEMA, VERSION, as_block, as_row
from fieldlm_compiler.collect.rewrite import holding, old_text
from fieldlm_compiler.collect.sink import (
    MOST_EPOCHS,
    UNKNOWN,
    Key,
    Policy,
    Raw,
    Session,
    Sink,
    blanked,
    forgets,
    read,
    stripped,
    tell_lie,
)

if TYPE_CHECKING:
    import duckdb

COMPACT_ROWS = 50_000
MERGE_FILES, MERGE_ROWS = 32, 1_000_000
"""So many files of fewer rows become one."""
ERASE_EVERY_S = 30.0
"""What is forgotten cannot be seen from its commit on; the files that hold it are written anew so often at most."""
CHECKPOINT_MS = 200
_SPARE = """SELECT device, epoch, stream FROM steps WHERE device = ? AND before = 0
    ORDER BY rowid DESC LIMIT -1 OFFSET ?"""
_HEAD = "device, epoch, stream, first, last, records, schema, body"


class Store(Sink):
    """Parquet and DuckDB in a folder. Any number read with `read_only`; the one who writes holds `store.lock`.

    Raises InputError when there is another writer, NotFoundError when there is nothing to read.
    """

    def __init__(
        self, folder: Path, *, read_only: bool = False, forget: Policy = "text", erase_every_s: float = ERASE_EVERY_S
    ) -> None:
        self.folder = folder
        self.forget: Policy = forget
        self.records_folder = folder / "records"
        self._erase_every_s = erase_every_s
        self._erased_s = float("-inf")
        database = folder / "store.db"
        if read_only and not database.is_file():
            raise NotFoundError(f"{folder} is no store; fill one with: fieldlm collect --store {folder}")
        with disk_errors(folder):
            make_private(database)
            make_private_folder(self.records_folder)
        self._is_writer = not read_only
        self._lock = threading.RLock()
        with contextlib.ExitStack() as opened:
            if self._is_writer:
                opened.enter_context(self._hold())
            try:
                self._db = connect(database)
                opened.callback(self._db.close)
                make_durable(self._db)
                self._db.execute("PRAGMA secure_delete = ON")
                self._upgrade()
            except sqlite3.DatabaseError as error:
                raise InputError(f"{database} cannot be opened: {error}") from error
            if self._is_writer:
                self._sweep()
                self._reread()
            self._forgotten: set[Session] = set(self._db.execute("SELECT device, session FROM forgotten"))
            self._opened = opened.pop_all()

    def _hold(self) -> IO[bytes]:
        return held_lock(
            self.folder / "store.lock",
            f"another fieldlm writes to {self.folder}; a collector tidies up by itself: stop it or use another --store",
        )

    def close(self) -> None:
        self._opened.close()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, blocks: Iterable[Block]) -> dict[Key, int]:
        touched: dict[Key, int] = {}
        traffic: dict[str, int] = {}
        asked: set[Session] = set()
        with self._transaction():
            for block in blocks:
                key = (block.device, block.epoch, block.stream)
                upto = touched[key] = self._believed(key, touched.get(key, self.watermark(key)), block)
                traffic[block.device] = traffic.get(block.device, 0) + len(block.body)
                if block.first <= upto + 1 and block.last > upto:
                    self._insert("blocks", as_row(block), upto)
                    touched[key] = block.last
                    # Most of the traffic is on `gen`, where nobody asks; what is there is read when it is compacted.
                    found = read(block, upto) if block.stream != "gen" else []
                    asked |= set() if isinstance(found, str) else set(forgets(found))
            self._mark(touched)
            self._note_forgotten(asked)
            self._db.executemany(
                "INSERT INTO traffic VALUES (?, ?) ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes",
                traffic.items(),
            )
        self._forgotten |= asked
        return touched

    def greet(
        self, device: str, epoch: int, first: dict[str, int], last: dict[str, int] | None = None
    ) -> dict[str, int]:
        said = last or {}
        marks: dict[Key, int] = {}
        with self._transaction():
            for stream, begin in first.items():
                key = (device, epoch, stream)
                upto = self.watermark(key)
                if said.get(stream, upto) < upto:
                    upto = self._before_step(key, upto)
                marks[key] = max(upto, begin - 1)
                if marks[key] > upto:
                    self._db.execute("INSERT OR IGNORE INTO steps VALUES (?, ?, ?, ?)", (*key, upto))
            self._mark({key: upto for key, upto in marks.items() if upto})
            spare = self._db.execute(_SPARE, (device, MOST_EPOCHS)).fetchall()
            for table in ("steps", "watermarks"):
                self._db.executemany(f"DELETE FROM {table} WHERE device = ? AND epoch = ? AND stream = ?", spare)
        return {stream: upto for (_, _, stream), upto in marks.items()}

    def _believed(self, key: Key, upto: int, block: Block) -> int:
        """Return the watermark, from before the last step where `block` shows that the hello behind it was a lie."""
        if block.first <= upto:
            return self._before_step(key, upto, block.last)
        if block.first == upto + 1:
            # What is stored beyond the step makes it true: what lies there now would be stored twice.
            self._db.execute("DELETE FROM steps WHERE device = ? AND epoch = ? AND stream = ?", key)
        return upto

    def _before_step(self, key: Key, upto: int, last: int = 1 << 62) -> int:
        """Take the last step back unless it did not go over `last`; return the watermark."""
        where = "device = ? AND epoch = ? AND stream = ?"
        found = self._db.execute(f"SELECT before FROM steps WHERE {where} AND before < ?", (*key, last)).fetchone()
        if found is None:
            return upto
        tell_lie(key)
        self._db.execute(f"DELETE FROM steps WHERE {where}", key)
        self._db.execute(f"UPDATE watermarks SET upto = ? WHERE {where}", (found[0], *key))
        return found[0]

    def keep_presence(self, device: str, state: str) -> None:
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO presence VALUES (?, ?, ?)", (device, state, time.time_ns() // 1_000_000)
            )

    def tidy(self, *, finish: bool = False) -> None:
        pending = self._pending()
        is_due = bool(pending) and (finish or time.monotonic() - self._erased_s > self._erase_every_s)
        self.compact(at_least=1 if finish or is_due else COMPACT_ROWS)
        if is_due:
            self._erase(self._pending())
        self._merge()

    def compact(self, *, at_least: int = 1) -> Path | None:
        """Unpack the journal's blocks into a Parquet file when they hold `at_least` so many records."""
        with self._lock:
            (waiting,) = self._db.execute("SELECT coalesce(sum(records), 0) FROM blocks").fetchone()
            if waiting < at_least:
                return None
            (newest,) = self._db.execute("SELECT max(number) FROM blocks").fetchone()
            records, raws = self._journal(newest)
            asked = set(forgets(records))
            path = None
            if records:
                table = arrow_table(stripped(records, self._forgotten | asked, self.forget))
                path = self._write([table], f"{newest} {[(r.device, r.epoch, r.stream, r.seq) for r in records]}")
            with self._transaction():
                if path:
                    self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (path.name, len(records)))
                for raw in raws:
                    block = blanked(raw.block, self._forgotten | asked)
                    self._insert("raw", as_row(block), raw.after, problem=raw.problem)
                self._note_forgotten(asked)
                self._db.execute("DELETE FROM blocks WHERE number <= ?", (newest,))
            self._forgotten |= asked
            return path

    def _insert(self, table: str, head: tuple[Any, ...], after: int, **more: str) -> None:
        names = ", ".join([_HEAD, "after", *more])
        marks = ", ".join("?" * (len(head) + 1 + len(more)))
        self._db.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", (*head, after, *more.values()))

    def _mark(self, marks: dict[Key, int]) -> None:
        self._db.executemany(
            "INSERT INTO watermarks VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET upto = max(upto, excluded.upto)",
            [(*key, upto) for key, upto in marks.items()],
        )

    def _note_forgotten(self, sessions: set[Session]) -> None:
        # One that was asked for before is erased again: an old file may have come back from a backup.
        self._db.executemany("INSERT OR REPLACE INTO forgotten VALUES (?, ?, 0)", sorted(sessions))

    def _pending(self) -> set[Session]:
        return set(self._db.execute("SELECT device, session FROM forgotten WHERE NOT erased"))

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _erase(self, sessions: set[Session]) -> None:
        """Write every file anew that holds a row of these sessions, and let go of the old ones."""
        import duckdb

        with self._lock:
            files = self._files()
            with duckdb.connect() as duck:
                duck.register("forgotten", sessions_table(sessions))
                for path in holding(duck, files):
                    self._rewrite(duck, path, without_forgotten(self.forget))
            self._blank_raw(sessions)
            self._erased_s = time.monotonic()
            # The log still has the pages with the text, and keeps them as long as somebody reads: then not yet.
            if self._is_log_empty():
                with self._transaction():
                    self._db.executemany(
                        "UPDATE forgotten SET erased = 1 WHERE device = ? AND session = ?", sorted(sessions)
                    )

    def expire(self, before_ms: int) -> int:
        import duckdb

        self.compact()
        with self._lock, duckdb.connect() as duck:
            found = old_text(duck, self._files(), before_ms)
            for each in found:
                self._rewrite(duck, each.path, each.columns)
            self._is_log_empty()
        return sum(each.rows for each in found)

    def _rewrite(self, duck: "duckdb.DuckDBPyConnection", path: Path, columns: str) -> None:
        sql = f"SELECT {columns} FROM read_parquet($name)"
        clean: Any = duck.sql(sql, params={"name": str(path)}).to_arrow_table()
        self._replace([path], [clean.cast(schema())], clean.num_rows)

    def _blank_raw(self, sessions: set[Session]) -> None:
        with self._transaction():
            kept = [as_block(row) for row in self._db.execute(f"SELECT {_HEAD} FROM raw")]
            gone = [(b.device, b.epoch, b.stream, b.first) for b in kept if blanked(b, sessions) is not b]
            key = "device = ? AND epoch = ? AND stream = ? AND first = ?"
            self._db.executemany(f"UPDATE raw SET body = x'' WHERE {key}", gone)

    def _is_log_empty(self) -> bool:
        """Bring SQLite's log into the database and cut it off, without waiting for readers; say whether that was."""
        self._db.execute(f"PRAGMA busy_timeout = {CHECKPOINT_MS}")
        try:
            is_busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")
        return not is_busy

    def _merge(self) -> None:
        import pyarrow.parquet as pq

        with self._lock:
            small = self._db.execute("SELECT name, rows FROM files WHERE rows < ?", (MERGE_ROWS,)).fetchall()
            if len(small) >= MERGE_FILES:
                paths = [self.records_folder / name for name, _ in small]
                self._replace(paths, (pq.read_table(path) for path in paths), sum(rows for _, rows in small))

    def _replace(self, old: Sequence[Path], tables: Iterable[Any], rows: int) -> None:
        arrived_ns = min(each.stat().st_mtime_ns for each in old)
        path = self._write(tables, f"{time.time_ns()} {sorted(path.name for path in old)}")
        os.utime(path, ns=(arrived_ns, arrived_ns))  # for rows of devices without a clock
        with self._transaction():
            self._db.execute("INSERT INTO files VALUES (?, ?)", (path.name, rows))
            self._db.executemany("DELETE FROM files WHERE name = ?", [(each.name,) for each in old])
        for each in old:
            each.unlink()

    def _write(self, tables: Iterable[Any], identity: str) -> Path:
        import pyarrow.parquet as pq

        path = self.records_folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.parquet"
        part = path.with_name(f".{path.name}.part")
        with disk_errors(path):
            with pq.ParquetWriter(part, schema(), compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        return path

    def _sweep(self) -> None:
        """Delete Parquet files that are not listed: a killed compaction left them, and their rows are elsewhere."""
        listed = {path.name for path in self._files()}
        for path in self.records_folder.iterdir():
            if path.name not in listed:
                path.unlink()

    def _reread(self) -> None:
        """Take up blocks again that were kept raw until somebody knew their schema."""
        known = f"problem = '{UNKNOWN}' AND schema IN ({', '.join(map(str, SCHEMAS))})"
        with self._transaction():
            self._db.execute(f"INSERT INTO blocks ({_HEAD}, after) SELECT {_HEAD}, after FROM raw WHERE {known}")
            self._db.execute(f"DELETE FROM raw WHERE {known}")

    def _upgrade(self) -> None:
        if (version := self._version()) > VERSION:
            raise InputError(f"{self.folder} is a store of version {version}, known: {VERSION}; update fieldlm")
        self._db.executescript(SCHEMA)
        if version == VERSION:
            return
        with contextlib.nullcontext() if self._is_writer else self._hold_to_upgrade(), self._transaction():
            if self._version() == VERSION:  # by the writer, meanwhile
                return
            # Version 1 kept rows instead of blocks; a new store has the number 0.
            names = {name for (name,) in self._db.execute("SELECT name FROM pragma_table_info('raw')")}
            if "after" not in names:
                self._db.execute("ALTER TABLE raw ADD COLUMN after INTEGER NOT NULL DEFAULT 0")
            if self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'journal'").fetchone():
                sql = "SELECT device, epoch, stream, seq, row FROM journal ORDER BY number"
                old = [unpack(row, device=d, epoch=e, stream=s, seq=n) for d, e, s, n, row in self._db.execute(sql)]
                path = self._write([arrow_table(old)], f"journal {len(old)}")
                self._db.execute("INSERT INTO files VALUES (?, ?)", (path.name, len(old)))
                self._db.execute("DROP TABLE journal")
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _hold_to_upgrade(self) -> contextlib.AbstractContextManager[object]:
        """Where a writer makes or upgrades the store right now, a reader waits for it and has nothing left to do."""
        deadline = time.monotonic() + BUSY_S
        while self._version() != VERSION:
            try:
                return self._hold()
            except InputError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        with self._lock, disk_errors(self.folder), transaction(self._db):
            yield

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
        return dict(self._db.execute("SELECT device, state FROM presence ORDER BY device"))

    def traffic(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT device, bytes FROM traffic"))

    def raw(self) -> list[Raw]:
        kept = self._db.execute(f"SELECT {_HEAD}, after, problem FROM raw")
        return [Raw(block=as_block(row[:8]), after=row[8], problem=row[9]) for row in kept] + self._journal()[1]

    @contextlib.contextmanager
    def connect(self) -> "Generator[duckdb.DuckDBPyConnection]":
        import duckdb

        with self._lock:
            self._db.execute("BEGIN")
            try:
                files, (records, _) = self._files(), self._journal()
                forgotten = set(self._db.execute("SELECT device, session FROM forgotten"))
            finally:
                self._db.execute("ROLLBACK")
        with duckdb.connect() as duck:
            duck.register("journal", arrow_table(records))
            parts = ["SELECT * FROM journal"]
            if files:
                names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
                parts.append(f"SELECT * FROM read_parquet([{names}])")
            duck.register("forgotten", sessions_table(forgotten))
            columns = without_forgotten(self.forget) if forgotten else "*"
            duck.execute(f"CREATE VIEW records AS SELECT {columns} FROM ({' UNION ALL BY NAME '.join(parts)})")
            yield duck

    def _files(self) -> list[Path]:
        return [self.records_folder / name for (name,) in self._db.execute("SELECT name FROM files ORDER BY name")]

    def _journal(self, newest: int = 1 << 62) -> tuple[list[Record], list[Raw]]:
        """Return the records of the journal's blocks, and the blocks that cannot be read."""
        sql = f"SELECT {_HEAD}, after FROM blocks WHERE number <= ? ORDER BY number"
        records: list[Record] = []
        raws: list[Raw] = []
        for *head, after in self._db.execute(sql, (newest,)):
            block = as_block(head)
            found = read(block, after)
            if isinstance(found, str):
                raws.append(Raw(block=block, after=after, problem=found))
            else:
                records += found
        return records, raws
