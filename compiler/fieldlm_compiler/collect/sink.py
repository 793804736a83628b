"""The sink contract of every store: the one interface, and everything that reading needs whatever lies below.

A sink commits rows and the watermark that covers them together, so a record is stored once or not at all. A record of
kind `forget` that names a session takes that session's text out of the sink, wherever it lies, and what comes later
goes in without text; with `forget="rows"` nothing but the record's number stays, so that it is no gap.
"""

import contextlib
import functools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.logs import logger
from fieldlm.formats.block import Block, UnknownSchemaError
from fieldlm.formats.record import Record, WireError
from fieldlm_compiler.collect.sealed_text import TextReader, show_text

if TYPE_CHECKING:
    import duckdb

log = logger(__name__)

Key = tuple[str, int, str]
"""Device, epoch, stream."""
Session = tuple[str, str]
"""Device and the session's hash, which only that device can make: nobody can have another's customers forgotten."""
Policy = Literal["text", "rows"]

KEY = ("device", "epoch", "stream", "seq")
UNKNOWN = "unknown schema"
CORRECTED = "(correction <> '' OR coalesce(detail['corrected'] = 'yes', false))"
"""SQL: whether feedback is a correction. Its words may not be there: no consent, mode `metrics`, too old, sealed."""
STEPS = "greatest(completion_tokens - 1 - greatest(coalesce(try_cast(detail['forced'] AS BIGINT), 0), 0), 0)"
"""SQL: how many tokens of an answer were generated one by one, behind the first; what a form forced was read."""
MOST_DEVICES = 1_000_000
MOST_EPOCHS = 256
"""Streams of one device of which a hello said something and no record ever came; older ones are forgotten."""


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


class StoredCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many records of one device and stream are stored, and how many are kept raw."""

    device: str
    stream: str
    records: int
    raw: int = 0


class Raw(msgspec.Struct, frozen=True, kw_only=True):
    """A block that could not be read, kept as it came. Rows up to `after` were stored before it."""

    after: int
    problem: str
    block: Block


class Hearsay:
    """What hellos alone say of streams: up to which number nothing will come. Of each device the newest MOST_EPOCHS.

    Epochs are numbers that whoever may publish can make up. A device whose own was forgotten says hello again.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[Key, int]] = {}

    def upto(self, key: Key) -> int:
        return self._of.get(key[0], {}).get(key, 0)

    def keys(self) -> set[Key]:
        return {key for of in self._of.values() for key in of}

    def note(self, key: Key, upto: int) -> list[Key]:
        """Take in what a hello says, 0 for nothing; return the streams that are forgotten for it."""
        of = self._of.setdefault(key[0], {})
        of.pop(key, None)
        if upto:
            of[key] = upto
        gone = list(of)[:-MOST_EPOCHS]
        for each in gone:
            del of[each]
        return gone

    def clear(self) -> None:
        self._of.clear()


class Sink(ABC):
    """One process writes to its part of a fleet; any number read."""

    name = ""
    """As who opened it named it."""
    text_reader: TextReader | None = None
    """What reads sealed text; without it that is empty."""
    linger_s = 0.0
    """How long a commit waits for company."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def append(self, blocks: Iterable[Block]) -> dict[Key, int]:
        """Commit the blocks' new rows and their watermarks in one transaction; returns the watermarks they touched.

        Rows up to the watermark are there already and are passed over. A block that starts beyond the watermark is
        refused: what lies between may still come. What cannot be read is kept raw.
        """

    @abstractmethod
    def greet(
        self, device: str, epoch: int, first: dict[str, int], last: dict[str, int] | None = None
    ) -> dict[str, int]:
        """Answer a hello: the watermarks of this epoch. What lies before `first` will never come, so step over it.

        Whoever may publish can say so in a device's name. So nothing that was stepped over counts as stored: when the
        device itself has given out less (`last`), or sends a block from there, the step is taken back.
        """

    def note_presence(self, device: str, state: str) -> None:
        """Remember the last presence message of a device; raises WireError for one name too many.

        Names come from the network, and nothing else says how many there are.
        """
        if device not in self._present and len(self._present) >= MOST_DEVICES:
            raise WireError(f"{device} would be device {MOST_DEVICES + 1} with a presence; the limit is {MOST_DEVICES}")
        self._present.add(device)
        self.keep_presence(device, state)

    @functools.cached_property
    def _present(self) -> set[str]:
        return set(self.presence())

    @abstractmethod
    def keep_presence(self, device: str, state: str) -> None:
        """Store the last presence message of a device."""

    @abstractmethod
    def tidy(self, *, finish: bool = False) -> None:
        """Do what is due: fewer and larger files, forgotten text erased. With `finish` all of it, now."""

    @abstractmethod
    def compact(self) -> object:
        """Make few large files of what is there."""

    @abstractmethod
    def expire(self, before_ms: int) -> int:
        """Blank the text of what was said before a time (Unix, UTC); return how many records lost theirs.

        Raises InputError where the store cannot. Blocks that nobody can read yet stay as they came.
        """

    @abstractmethod
    def close(self) -> None: ...

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def connect(self) -> contextlib.AbstractContextManager["duckdb.DuckDBPyConnection"]:
        """Yield a DuckDB connection with the view `records`: everything that is stored at one moment."""

    @abstractmethod
    def watermarks(self) -> dict[Key, int]:
        """Return, for each stream, the last seq up to which everything has arrived or never will."""

    @abstractmethod
    def presence(self) -> dict[str, str]:
        """Return the last presence message of every device, as JSON text."""

    @abstractmethod
    def raw(self) -> list[Raw]:
        """Return the blocks that are kept as they came."""

    def traffic(self) -> dict[str, int]:
        """Return the bytes of the blocks that were taken in of every device; nothing where nobody counts them."""
        return {}

    def query(self, sql: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Run SQL with the view `records` over everything that is stored; raises InputError when SQL is wrong."""
        import duckdb

        if self.text_reader is not None:
            self.text_reader.note(self.name, sql)
        for patience in (3, 2, 1, 0):
            try:
                with self.connect() as duck:
                    show_text(duck, self.text_reader)
                    found = duck.execute(sql, list(values))
                    names = [column[0] for column in found.description or []]
                    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
            except duckdb.IOException as error:
                # A file that was there a moment ago is part of a larger one now.
                if not patience:
                    raise InputError(f"the query failed: {error}") from error
            except duckdb.Error as error:
                raise InputError(f"the query failed: {error}") from error
        raise AssertionError("the last try returns or raises")

    def counts(self) -> list[StoredCount]:
        """Return how many records each device's streams have here."""
        raw: dict[tuple[str, str], int] = defaultdict(int)
        for kept in self.raw():
            raw[kept.block.device, kept.block.stream] += kept.block.count
        sql = "SELECT device, stream, count(*) AS records FROM records GROUP BY ALL"
        stored = {(row["device"], row["stream"]): row["records"] for row in self.query(sql)}
        keys = sorted(stored.keys() | raw.keys())
        return [StoredCount(device=d, stream=s, records=stored.get((d, s), 0), raw=raw.get((d, s), 0)) for d, s in keys]

    def gaps(self) -> list[Gap]:
        """Return, for every stream with missing numbers, which are told and which are lost."""
        marks = self.watermarks()
        sql = "SELECT device, epoch, stream, count(DISTINCT seq) AS seqs FROM records GROUP BY ALL"
        held = {(row["device"], row["epoch"], row["stream"]): row["seqs"] for row in self.query(sql)}
        doubtful = sorted(key for key, upto in marks.items() if held.get(key, 0) != upto)
        if not doubtful:
            return []
        kept: dict[Key, list[tuple[int, int]]] = defaultdict(list)
        for raw in self.raw():
            block = raw.block
            kept[block.device, block.epoch, block.stream].append((block.first, block.last))
        told = self._told()
        holes = self._holes({key: marks[key] for key in doubtful})
        missing = ((key, without(holes[key], kept[key])) for key in doubtful)
        return [_gap(key, ranges, told.get(key, [])) for key, ranges in missing if ranges]

    def _holes(self, marks: dict[Key, int]) -> dict[Key, list[tuple[int, int]]]:
        """Return the ranges of numbers up to these marks that no row has. A hello may claim a range of any length."""
        sql = """WITH marks AS (SELECT unnest($1) AS device, unnest($2) AS epoch, unnest($3) AS stream,
                unnest($4) AS seq), seqs AS (SELECT device, epoch, stream, seq FROM records
                WHERE (device, epoch, stream) IN (SELECT (device, epoch, stream) FROM marks) UNION FROM marks),
            steps AS (SELECT *, lag(seq, 1, 0) OVER (PARTITION BY device, epoch, stream ORDER BY seq) AS before
                FROM seqs)
            SELECT device, epoch, stream, before + 1 AS first, seq - 1 AS last FROM steps WHERE seq > before + 1
            ORDER BY ALL"""
        columns = [list(column) for column in zip(*((*key, upto + 1) for key, upto in marks.items()), strict=True)]
        found: dict[Key, list[tuple[int, int]]] = defaultdict(list)
        for row in self.query(sql, columns):
            found[row["device"], row["epoch"], row["stream"]].append((row["first"], row["last"]))
        return found

    def _told(self) -> dict[Key, list[tuple[int, int, int]]]:
        """Return the drop records' ranges: first, last and how many of them."""
        found: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)
        for row in self.query("SELECT device, epoch, detail FROM records WHERE kind = 'drop'"):
            detail = as_dict(row["detail"])
            # It comes from the network: whatever does not count explains nothing.
            with contextlib.suppress(KeyError, ValueError):
                span = (int(detail["from"]), int(detail["to"]), int(detail["count"]))
                found[row["device"], row["epoch"], detail["stream"]].append(span)
        return found


def _gap(key: Key, missing: Sequence[tuple[int, int]], told: Sequence[tuple[int, int, int]]) -> Gap:
    """A drop record explains as many missing numbers of its range as it counts, and no others."""
    outside = without(missing, [(first, last) for first, last, _ in told])
    inside = _total(missing) - _total(outside)
    explained = min(inside, sum(max(0, count) for *_, count in told))
    device, epoch, stream = key
    lost = _total(missing) - explained
    return Gap(device=device, epoch=epoch, stream=stream, told=explained, lost=lost, ranges=tuple(outside))


def without(ranges: Iterable[tuple[int, int]], covers: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what of the inclusive `ranges` no cover touches."""
    left = list(ranges)
    for first, last in covers:
        pieces = [piece for a, b in left for piece in ((a, min(b, first - 1)), (max(a, last + 1), b))]
        left = [(a, b) for a, b in pieces if a <= b]
    return left


def _total(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)


def as_dict(value: Any) -> dict[str, str]:
    """Return a map as DuckDB gives it, which depends on where the column came from, as a dict."""
    return cast(dict[str, str], value if isinstance(value, dict) else dict(value or []))


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tell_lie(key: Key) -> None:
    """Say that a hello was not its device's own."""
    log.warning(f"collect: {key[0]} has what a hello in its name said to be gone; who may publish as {key[0]}?")


def read(block: Block, after: int) -> list[Record] | str:
    """Return the records of `block` beyond `after`, or why it cannot be read."""
    try:
        return [record for record in block.records() if record.seq > after]
    except UnknownSchemaError:
        return UNKNOWN
    except WireError as error:
        return str(error)


def forgets(records: Iterable[Record]) -> Iterator[Session]:
    """Yield the sessions that their devices ask to forget."""
    return ((r.device, r.session) for r in records if r.kind == "forget" and r.session)


def stripped(records: Iterable[Record], sessions: set[Session], policy: Policy) -> list[Record]:
    """Return the records without what belonged to forgotten sessions."""
    if not sessions:
        return list(records)
    return [_strip(r, policy) if (r.device, r.session) in sessions and r.kind != "forget" else r for r in records]


def blanked(block: Block, sessions: set[Session]) -> Block:
    """Return a block that nobody can read yet, without its body where that speaks of a forgotten session.

    So does one that cannot be unpacked. What else it held is lost with it: the promise to forget is the older one.
    """
    gone = [session for device, session in sessions if device == block.device]
    if not gone or not block.body:
        return block
    try:
        body = block.plain()
    except WireError:
        return msgspec.structs.replace(block, body=b"")
    is_held = any(name in body for session in gone for name in _spellings(session))
    return msgspec.structs.replace(block, body=b"") if is_held else block


def _spellings(session: str) -> list[bytes]:
    """Return how a block may spell a session: as text, or its hex digits as bytes."""
    found = [session.encode()]
    with contextlib.suppress(ValueError):
        found.append(bytes.fromhex(session[max(session.rfind("-"), session.rfind("_")) + 1 :]))
    return [name for name in found if name]


def _strip(record: Record, policy: Policy) -> Record:
    if policy == "text":
        return msgspec.structs.replace(record, prompt="", answer="", correction="")
    key = {name: getattr(record, name) for name in KEY}
    return Record(kind="forget", **key)
