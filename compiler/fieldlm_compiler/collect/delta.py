"""Delta Lake, the sink that several machines share: tables on a disk or an object store, read by any engine.

    <uri>/records      the rows
    <uri>/raw          blocks that cannot be read yet
    <uri>/presence     what devices said of themselves

A watermark is a transaction identifier of the table: `app_id` names device, epoch and stream, `version` is the seq up
to which everything is there. So rows and watermark are one commit, and two collectors that take the same device for
theirs collide on the identifier: one of them reads again, and finds that the rows are there. An identifier stays in the
log for ever, so what a hello alone says of a stream is kept in memory until a record comes; a device that finds it gone
says hello again.

The library does not force files to a local disk: a power cut there may take the last commits. Object stores keep them.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import duckdb
import pyarrow as pa

from fieldlm.core.errors import FieldlmError, InputError, MissingDependencyError, NotFoundError
from fieldlm.core.extras import install_advice
from fieldlm.core.files import held_lock, make_private_folder
from fieldlm.formats.block import MAGIC, Block
from fieldlm.formats.block import VERSION as BLOCK_VERSION
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.arrow import arrow_table, schema, sessions_table, without_forgotten
from fieldlm_compiler.collect.rewrite import HAS_TEXT
from fieldlm_compiler.collect.sealed_text import TEXT
from fieldlm_compiler.collect.sink import (
    KEY,
    Hearsay,
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

try:
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError
except ImportError as error:
    raise MissingDependencyError(
        f"Delta Lake is not installed; {install_advice('fieldlm-compiler', 'delta')}"
    ) from error

TRIES = 10
PRESENCE_EVERY_S = 5.0
ERASE_AFTER_H = 1
"""Files that no version needs any more go after so long: another collector may be about to commit one of them."""
VACUUM_EVERY_S = 300.0
"""Between two looks whether they are old enough."""
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
# deltalake writes files anew (`update`) with views where there were strings. pyarrow compares those with views only,
# and strings with either: under this schema a query's filters work whoever wrote a file.
_VIEWS = pa.schema([field.with_type(pa.string_view()) if field.type == pa.string() else field for field in schema()])
_PRESENCE = pa.schema([("device", pa.string()), ("state", pa.string()), ("at_ms", pa.int64())])


class DeltaStore(Sink):
    """Delta Lake under a path or a URI like s3://bucket/fleet, whose credentials come from the environment."""

    linger_s = 0.5  # a commit is a file, and so are its rows

    def __init__(
        self, uri: str, *, read_only: bool = False, forget: Policy = "text", erase_after_h: int = ERASE_AFTER_H
    ) -> None:
        self.uri = uri
        self.forget: Policy = forget
        self.erase_after_h = erase_after_h
        self._lock = threading.RLock()
        self._marks: dict[Key, int] = {}
        self._steps: dict[Key, int] = {}
        self._hearsay = Hearsay()
        self._states: dict[str, tuple[str, int]] = {}
        self._states_s = time.monotonic()
        try:
            if (folder := _local(uri)) and not read_only:
                make_private_folder(folder)
            self._records, self._raw, self._presence = (
                _open(f"{uri}/{name}", columns, read_only=read_only)
                for name, columns in (("records", schema()), ("raw", _RAW), ("presence", _PRESENCE))
            )
        except (DeltaError, OSError) as error:
            raise InputError(f"the Delta tables at {uri} cannot be opened: {error}") from error
        self._forgotten = self._find_forgotten()
        self._has_to_erase = not read_only and bool(self._forgotten)
        self._has_old_files = False
        self._vacuumed_s = float("-inf")

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
        steps: dict[Key, int] = {}
        for block in blocks:
            key = (block.device, block.epoch, block.stream)
            upto = touched[key] = self._believed(key, touched.get(key, self.watermark(key)), block, steps)
            if block.first <= upto + 1 and block.last > upto:
                found = read(block, upto)
                if isinstance(found, str):
                    raws.append(Raw(block=blanked(block, self._forgotten), after=upto, problem=found))
                else:
                    records += found
                touched[key] = block.last
        asked = set(forgets(records)) - self._forgotten
        self._hear({key: 0 for key, upto in touched.items() if not upto})
        # Raw blocks go first and say so for themselves: after a crash in between they come again, and are passed over.
        self._keep(raws)
        self._commit(stripped(records, self._forgotten | asked, self.forget), touched, steps)
        self._forgotten |= asked
        self._has_to_erase = self._has_to_erase or bool(asked)
        return touched

    def greet(
        self, device: str, epoch: int, first: dict[str, int], last: dict[str, int] | None = None
    ) -> dict[str, int]:
        said = last or {}

        def answer() -> dict[Key, int]:
            marks: dict[Key, int] = {}
            steps: dict[Key, int] = {}
            for stream, begin in first.items():
                key = (device, epoch, stream)
                upto = self.watermark(key)
                if said.get(stream, upto) < upto:
                    upto = self._before_step(key, upto, 1 << 62, steps)
                marks[key] = max(upto, begin - 1)
                if marks[key] > upto and not steps.get(key, self._step(key)):
                    steps[key] = upto + 1
            known = {key: upto for key, upto in marks.items() if self._committed(key)}
            self._commit([], known, {key: step for key, step in steps.items() if key in known})
            self._hear({key: upto for key, upto in marks.items() if key not in known})
            return marks

        with self._lock:
            return {stream: upto for (_, _, stream), upto in self._again(answer).items()}

    def _hear(self, marks: dict[Key, int]) -> None:
        """Keep in mind what a hello says of streams of which nothing is stored, 0 for nothing."""
        for key, upto in marks.items():
            for each in [*self._hearsay.note(key, upto), *([] if upto else [key])]:
                self._marks.pop(each, None)
                self._steps.pop(each, None)

    def _believed(self, key: Key, upto: int, block: Block, steps: dict[Key, int]) -> int:
        """Return the watermark, from before the last step where `block` shows that the hello behind it was a lie."""
        if block.first <= upto:
            return self._before_step(key, upto, block.last, steps)
        if block.first == upto + 1 and steps.get(key, self._step(key)):
            # What is stored beyond the step makes it true: what lies there now would be stored twice.
            steps[key] = 0
        return upto

    def _before_step(self, key: Key, upto: int, last: int, steps: dict[Key, int]) -> int:
        """Take the last step back unless it did not go over `last`; return the watermark."""
        step = steps.get(key, self._step(key))
        if not 0 < step <= last:
            return upto
        tell_lie(key)
        steps[key] = 0
        return step - 1

    def _step(self, key: Key) -> int:
        """Return the first number that the last hello stepped over; 0 where something beyond is stored."""
        return 1 if self._hearsay.upto(key) else self._committed_step(key)

    def _committed_step(self, key: Key) -> int:
        if key not in self._steps:
            self._steps[key] = self._records.transaction_version(f"step/{_app_id(key)}") or 0
        return self._steps[key]

    def keep_presence(self, device: str, state: str) -> None:
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
            if self._has_old_files and (finish or time.monotonic() - self._vacuumed_s > VACUUM_EVERY_S):
                self._vacuum()

    def expire(self, before_ms: int) -> int:
        # When a row came is not known here, so one without a clock to believe goes by none.
        where = f"clock_ok AND wall_ms > 0 AND wall_ms < {before_ms} AND {HAS_TEXT}"
        with self._lock, _errors(self.uri):
            self._records.update_incremental()
            told = self._records.update(predicate=where, updates=_blank("text"))
            if told["num_updated_rows"]:
                self._vacuum()
        return int(told["num_updated_rows"])

    def compact(self) -> None:
        """Make few large files of many small ones. Only one process may do that at a time.

        deltalake 1.6 lets two compactions of the same files both commit, which doubles every row; against appends and
        erasures it is safe. So collectors never do it by themselves: run `fieldlm collect --compact` by a timer.
        """
        with self._lock, _errors(self.uri), self._alone():
            for table in (self._records, self._presence):
                table.update_incremental()
                table.optimize.compact()
                table.vacuum(self.erase_after_h, dry_run=False, enforce_retention_duration=False)

    def _alone(self) -> contextlib.AbstractContextManager[object]:
        """Hold the tables against another compactor on this machine; an object store cannot be held."""
        if not (folder := _local(self.uri)):
            return contextlib.nullcontext()
        return held_lock(folder / "compact.lock", f"another fieldlm compacts {self.uri}; wait for it")

    def _commit(self, records: Sequence[Record], marks: dict[Key, int], steps: dict[Key, int]) -> None:
        """Commit rows and watermarks together; raises CommitFailedError when another collector was first."""
        moved = {key: upto for key, upto in marks.items() if upto != self._committed(key)}
        stepped = {key: step for key, step in steps.items() if step != self._committed_step(key)}
        if not moved and not stepped:
            return
        versions = {_app_id(key): upto for key, upto in moved.items()}
        versions |= {f"step/{_app_id(key)}": step for key, step in stepped.items()}
        properties = CommitProperties(
            max_commit_retries=TRIES,
            app_transactions=[Transaction(name, version) for name, version in versions.items()],
        )
        if records:
            write_deltalake(self._records, arrow_table(records), mode="append", commit_properties=properties)
        else:
            schema = self._records.schema()
            self._records.create_write_transaction([], "append", schema, commit_properties=properties)
        self._marks |= moved
        self._steps |= stepped
        for key in moved:
            self._hearsay.note(key, 0)  # a record is there

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
                    self._steps.clear()
                    self._hearsay.clear()
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
        self._blank_raw()
        self._has_to_erase = False
        self._vacuum()

    def _blank_raw(self) -> None:
        for block in [raw.block for raw in self.raw()]:
            if blanked(block, self._forgotten) is not block:
                where = f"device = {_quoted(block.device)} AND stream = {_quoted(block.stream)}"
                place = f"epoch = {block.epoch} AND first = {block.first}"
                self._raw.update(predicate=f"{where} AND {place}", updates={"body": "X''"})

    def _vacuum(self) -> None:
        """Delete files that no version needs any more, as far as they are old enough; the rest is for the next time."""
        self._vacuumed_s, self._has_old_files = time.monotonic(), False
        for table in (self._records, self._raw):
            table.vacuum(self.erase_after_h, dry_run=False, enforce_retention_duration=False)
            self._has_old_files |= bool(table.vacuum(0, dry_run=True, enforce_retention_duration=False))

    def _find_forgotten(self) -> set[Session]:
        with self._connect(("device", "session", "kind")) as duck:
            sql = "SELECT DISTINCT device, session FROM records WHERE kind = 'forget' AND session <> ''"
            return {(device, session) for device, session in duck.execute(sql).fetchall()}

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def watermark(self, key: Key) -> int:
        """Return the last seq of which the store can say that everything up to it has arrived or never will."""
        return self._hearsay.upto(key) or self._committed(key)

    def _committed(self, key: Key) -> int:
        if key not in self._marks:
            self._marks[key] = self._records.transaction_version(_app_id(key)) or 0
        return self._marks[key]

    def watermarks(self) -> dict[Key, int]:
        with self._connect(KEY) as duck:
            found = duck.execute("SELECT DISTINCT device, epoch, stream FROM records").fetchall()
        keys = {(d, e, s) for d, e, s in found} | self._marks.keys() | self._hearsay.keys()
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
        with self._connect(schema().names, self._forgotten) as duck:
            yield duck

    @contextlib.contextmanager
    def _connect(
        self, columns: Sequence[str], forgotten: set[Session] | None = None
    ) -> Generator[duckdb.DuckDBPyConnection]:
        shown = without_forgotten(self.forget) if forgotten else "*"
        with duckdb.connect() as duck:
            duck.register("stored", self._records.to_pyarrow_dataset(schema=_VIEWS))
            duck.register("forgotten", sessions_table(forgotten or set()))
            duck.execute(f"CREATE VIEW records AS SELECT {shown} FROM (SELECT {', '.join(columns)} FROM stored)")
            yield duck


def _open(uri: str, schema: Any, *, read_only: bool) -> DeltaTable:
    if read_only and not DeltaTable.is_deltatable(uri):
        raise NotFoundError(f"{uri} is no Delta table; fill one with: fieldlm collect --store delta:URI")
    if (folder := _local(uri)) and not read_only:
        make_private_folder(folder)
    return DeltaTable.create(uri, schema, mode="ignore", configuration=_CONFIGURATION)


def _local(uri: str) -> Path | None:
    """Return the folder on this machine that `uri` means; None for an object store."""
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    return None if "://" in uri else Path(uri)


def _app_id(key: Key) -> str:
    device, epoch, stream = key
    return f"{device}/{epoch}/{stream}"


def _blank(policy: Policy) -> dict[str, str]:
    if policy == "text":
        return dict.fromkeys(TEXT, "''")
    blank = {pa.int64(): "0", pa.float64(): "0.0", pa.bool_(): "true", pa.string(): "''"}
    values = {field.name: blank.get(field.type, "NULL") for field in schema() if field.name not in KEY}
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
