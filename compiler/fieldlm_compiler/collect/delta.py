"""Delta Lake, the sink that several machines share: tables on a disk or an object store, read by any engine.

    <uri>/records      the rows
    <uri>/raw          blocks that cannot be read yet
    <uri>/presence     what devices said of themselves

A watermark is a transaction identifier of the table: `app_id` names device, epoch and stream, `version` is the seq up
to which everything is there. So rows and watermark are one commit, and two collectors that take the same device for
theirs collide on the identifier: one of them reads again, and finds that the rows are there.

The library does not force files to a local disk: a power cut there may take the last commits. Object stores keep them.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from fieldlm.core.errors import FieldlmError, InputError, MissingDependencyError
from fieldlm.formats.block import MAGIC, Block
from fieldlm.formats.block import VERSION as BLOCK_VERSION
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.sink import (
    ARROW,
    KEY,
    TEXT,
    Key,
    Policy,
    Raw,
    Session,
    Sink,
    arrow_table,
    forgets,
    read,
    sessions_table,
    stripped,
    without_forgotten,
)

try:
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError
except ImportError as error:
    raise MissingDependencyError("Delta Lake is not installed; run: pip install 'fieldlm-compiler[delta]'") from error

TRIES = 10
PRESENCE_EVERY_S = 5.0
ERASE_AFTER_H = 1
"""Files that no version needs any more go after so long: another collector may be about to commit one of them."""
# The log has the smallest and the largest value of each column it knows about: never what somebody said.
_CONFIGURATION: dict[str, str | None] = {"delta.dataSkippingStatsColumns": "device,epoch,stream"}
_RAW = pa.schema(
    {
        "device": pa.string(),
        "epoch": pa.int64(),
        "stream": pa.string(),
        "first": pa.int64(),
        "last": pa.int64(),
        "records": pa.int64(),
        "schema": pa.int64(),
        "body": pa.binary(),
        "after": pa.int64(),
        "problem": pa.string(),
    }
)
_PRESENCE = pa.schema([("device", pa.string()), ("state", pa.string()), ("at_ms", pa.int64())])


class DeltaStore(Sink):
    """Delta Lake under a path or a URI like s3://bucket/fleet, whose credentials come from the environment."""

    linger_s = 0.5  # a commit is a file, and so are its rows

    def __init__(
        self, uri: str, *, read_only: bool = False, forget: Policy = "text", erase_after_h: int = ERASE_AFTER_H
    ) -> None:
        self.uri = uri
        self.forget: Policy = forget
        self._erase_after_h = erase_after_h
        self._lock = threading.RLock()
        self._marks: dict[Key, int] = {}
        self._states: dict[str, tuple[str, int]] = {}
        self._states_s = time.monotonic()
        try:
            self._records, self._raw, self._presence = (
                _open(f"{uri}/{name}", schema, read_only=read_only)
                for name, schema in (("records", ARROW), ("raw", _RAW), ("presence", _PRESENCE))
            )
        except (DeltaError, OSError) as error:
            raise InputError(f"the Delta tables at {uri} cannot be opened: {error}") from error
        self._forgotten = self._find_forgotten()
        self._has_to_erase = not read_only and bool(self._forgotten)

    def close(self) -> None:
        """Nothing is held open between commits."""

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, blocks: Iterable[Block]) -> dict[Key, int]:
        kept = list(blocks)
        with self._lock:
            return self._again(lambda: self._append(kept))

    def _append(self, blocks: Sequence[Block]) -> dict[Key, int]:
        records: list[Record] = []
        raws: list[Raw] = []
        touched: dict[Key, int] = {}
        for block in blocks:
            key = (block.device, block.epoch, block.stream)
            upto = touched[key] = touched.get(key, self.watermark(key))
            if block.first <= upto + 1 and block.last > upto:
                found = read(block, upto)
                if isinstance(found, str):
                    raws.append(Raw(block=block, after=upto, problem=found))
                else:
                    records += found
                touched[key] = block.last
        asked = set(forgets(records)) - self._forgotten
        # Raw blocks go first and say so for themselves: after a crash in between they come again, and are passed over.
        self._keep(raws)
        self._commit(stripped(records, self._forgotten | asked, self.forget), touched)
        self._forgotten |= asked
        self._has_to_erase = self._has_to_erase or bool(asked)
        return touched

    def greet(self, device: str, epoch: int, first: dict[str, int]) -> dict[str, int]:
        def answer() -> dict[Key, int]:
            marks = {(device, epoch, stream): self.watermark((device, epoch, stream)) for stream in first}
            marks = {key: max(upto, first[key[2]] - 1) for key, upto in marks.items()}
            self._commit([], marks)
            return marks

        with self._lock:
            return {stream: upto for (_, _, stream), upto in self._again(answer).items()}

    def note_presence(self, device: str, state: str) -> None:
        with self._lock:
            self._states[device] = (state, time.time_ns() // 1_000_000)

    def tidy(self, *, finish: bool = False) -> None:
        with self._lock, _errors(self.uri):
            if self._states and (finish or time.monotonic() - self._states_s > PRESENCE_EVERY_S):
                rows = [{"device": d, "state": s, "at_ms": at} for d, (s, at) in self._states.items()]
                write_deltalake(self._presence, pa.Table.from_pylist(rows, _PRESENCE), mode="append")
                self._states, self._states_s = {}, time.monotonic()
            # Whoever loses the race against another collector's commit does it the next time.
            with contextlib.suppress(CommitFailedError):
                self._erase()

    def compact(self) -> None:
        """Make few large files of many small ones. Only one process may do that at a time.

        deltalake 1.6 lets two compactions of the same files both commit, which doubles every row; against appends and
        erasures it is safe. So collectors never do it by themselves: run `fieldlm collect --compact` by a timer.
        """
        with self._lock, _errors(self.uri):
            for table in (self._records, self._presence):
                table.update_incremental()
                table.optimize.compact()
                table.vacuum(self._erase_after_h, dry_run=False, enforce_retention_duration=False)

    def _commit(self, records: Sequence[Record], marks: dict[Key, int]) -> None:
        """Commit rows and watermarks together; raises CommitFailedError when another collector was first."""
        moved = [(key, upto) for key, upto in marks.items() if upto > self.watermark(key)]
        if not moved:
            return
        properties = CommitProperties(
            max_commit_retries=TRIES, app_transactions=[Transaction(_app_id(key), upto) for key, upto in moved]
        )
        if records:
            write_deltalake(self._records, arrow_table(records), mode="append", commit_properties=properties)
        else:
            schema = self._records.schema()
            self._records.create_write_transaction([], "append", schema, commit_properties=properties)
        self._marks |= dict(moved)

    def _keep(self, raws: Sequence[Raw]) -> None:
        for raw in raws:
            block = raw.block
            app_id = _app_id((block.device, block.epoch, block.stream))
            if (self._raw.transaction_version(app_id) or 0) >= block.last:
                continue
            properties = CommitProperties(app_transactions=[Transaction(app_id, block.last)])
            row = [block.device, block.epoch, block.stream, block.first, block.last, block.count, block.schema]
            values = [*row, block.body, raw.after, raw.problem]
            table = pa.table({name: [value] for name, value in zip(_RAW.names, values, strict=True)}, _RAW)
            write_deltalake(self._raw, table, mode="append", commit_properties=properties)
            self._raw.update_incremental()

    def _again(self, attempt: Callable[[], dict[Key, int]]) -> dict[Key, int]:
        """Try until no other collector is in the way; what it committed is then ours to pass over."""
        with _errors(self.uri):
            for patience in reversed(range(TRIES)):
                try:
                    return attempt()
                except CommitFailedError:
                    if not patience:
                        raise
                    self._marks.clear()
                    self._records.update_incremental()
                    self._raw.update_incremental()
        raise AssertionError("the last try returns or raises")

    def _erase(self) -> None:
        """Write the files anew that hold something of a forgotten session."""
        if not self._has_to_erase:
            return
        self._records.update_incremental()
        found = f"SELECT DISTINCT device, session FROM records WHERE {_has_text(self.forget)}"
        with self._connect(("device", "session", "kind", *TEXT)) as duck:
            held = {(d, s) for d, s in duck.execute(found).fetchall()} & self._forgotten
        for device, session in sorted(held):
            where = f"device = {_quoted(device)} AND session = {_quoted(session)} AND kind <> 'forget'"
            self._records.update(predicate=where, updates=_blank(self.forget))
        self._records.vacuum(self._erase_after_h, dry_run=False, enforce_retention_duration=False)
        self._has_to_erase = False

    def _find_forgotten(self) -> set[Session]:
        with self._connect(("device", "session", "kind")) as duck:
            sql = "SELECT DISTINCT device, session FROM records WHERE kind = 'forget' AND session <> ''"
            return {(device, session) for device, session in duck.execute(sql).fetchall()}

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def watermark(self, key: Key) -> int:
        """Return the last seq of which the store can say that everything up to it has arrived or never will."""
        if key not in self._marks:
            self._marks[key] = self._records.transaction_version(_app_id(key)) or 0
        return self._marks[key]

    def watermarks(self) -> dict[Key, int]:
        with self._connect(KEY) as duck:
            found = duck.execute("SELECT DISTINCT device, epoch, stream FROM records").fetchall()
        keys = {(d, e, s) for d, e, s in found} | set(self._marks)
        keys |= {(raw.block.device, raw.block.epoch, raw.block.stream) for raw in self.raw()}
        return {key: self.watermark(key) for key in sorted(keys)}

    def presence(self) -> dict[str, str]:
        sql = "SELECT device, arg_max(state, at_ms) FROM said GROUP BY device ORDER BY device"
        with duckdb.connect() as duck:
            self._presence.update_incremental()
            duck.register("said", self._presence.to_pyarrow_dataset())
            said = dict(duck.execute(sql).fetchall())
        return said | {device: state for device, (state, _) in self._states.items()}

    def raw(self) -> list[Raw]:
        self._raw.update_incremental()
        rows = self._raw.to_pyarrow_table().to_pylist()
        return [
            Raw(
                block=Block(
                    *(MAGIC, BLOCK_VERSION, row["schema"], row["device"], row["stream"], row["epoch"]),
                    *(row["first"], row["last"], row["records"], row["body"]),
                ),
                after=row["after"],
                problem=row["problem"],
            )
            for row in rows
        ]

    @contextlib.contextmanager
    def connect(self) -> Generator[duckdb.DuckDBPyConnection]:
        with self._lock:
            self._records.update_incremental()
            self._forgotten |= self._find_forgotten()
        with self._connect(ARROW.names, self._forgotten) as duck:
            yield duck

    @contextlib.contextmanager
    def _connect(
        self, columns: Sequence[str], forgotten: set[Session] | None = None
    ) -> Generator[duckdb.DuckDBPyConnection]:
        shown = without_forgotten(self.forget) if forgotten else "*"
        with duckdb.connect() as duck:
            duck.register("stored", self._records.to_pyarrow_dataset())
            duck.register("forgotten", sessions_table(forgotten or set()))
            duck.execute(f"CREATE VIEW records AS SELECT {shown} FROM (SELECT {', '.join(columns)} FROM stored)")
            yield duck


def _open(uri: str, schema: Any, *, read_only: bool) -> DeltaTable:
    if read_only and not DeltaTable.is_deltatable(uri):
        raise InputError(f"{uri} is no Delta table; fill one with: fieldlm collect --store delta:URI")
    if "://" not in uri:
        Path(uri).mkdir(parents=True, exist_ok=True)
    return DeltaTable.create(uri, schema, mode="ignore", configuration=_CONFIGURATION)


def _app_id(key: Key) -> str:
    device, epoch, stream = key
    return f"{device}/{epoch}/{stream}"


def _blank(policy: Policy) -> dict[str, str]:
    if policy == "text":
        return dict.fromkeys(TEXT, "''")
    blank = {pa.int64(): "0", pa.float64(): "0.0", pa.bool_(): "true", pa.string(): "''"}
    values = {field.name: blank.get(field.type, "NULL") for field in ARROW if field.name not in KEY}
    return values | {"kind": "'forget'"}


def _has_text(policy: Policy) -> str:
    text = " OR ".join(f"{name} <> ''" for name in TEXT)
    return "kind <> 'forget'" if policy == "rows" else f"kind <> 'forget' AND ({text})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextlib.contextmanager
def _errors(uri: str) -> Generator[None]:
    try:
        yield
    except CommitFailedError as error:
        raise FieldlmError(f"{uri} takes no commit: {error}; is another collector on the same shards?") from error
    except (DeltaError, OSError) as error:
        raise FieldlmError(f"the Delta tables at {uri} cannot be written: {error}") from error
