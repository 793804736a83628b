"""Ledger: who answered what, by day and task, with tokens, seconds and money, kept over restarts and power cuts.

    ledger.db    one row a day, task, model and reason

Money is counted at the price of the day. What an answer of the small model would have cost at the large one's price is
counted beside it, as saved. Joules are this machine's, where it measures them. What people thought of an answer is
counted on the day they said it.
"""

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core import sqlite
from fieldlm.core.files import disk_errors, make_private
from fieldlm.core.logs import logger

log = logger(__name__)

COLUMNS = (
    "calls", "failed", "prompt_tokens", "completion_tokens", "seconds", "cost", "saved", "joules", "liked", "disliked"
)  # fmt: skip
COUNTS = frozenset({"calls", "failed", "prompt_tokens", "completion_tokens", "liked", "disliked"})
KEPT_DAYS = 400
WRITE_S = 5.0
"""How long answers of the small model wait for company before the disk is woken; the large one's do not wait."""
MOST_TASKS = 500
"""A day has rows for so many tasks; what clients call otherwise is counted as OTHERS, or they would fill the disk."""
OTHERS = "(others)"
LARGE_TODAY = "large\0"
SMALL = frozenset({"", "replaced", "stood in"})
"""Reasons for which a small model is in the ledger; all others are the large one's."""
_TABLE = f"""
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL, why TEXT NOT NULL,
    {", ".join(f"{name} REAL NOT NULL DEFAULT 0" for name in COLUMNS)},
    PRIMARY KEY (day, task, model, why)) WITHOUT ROWID
"""
_ADD = f"""
INSERT INTO usage VALUES (?, ?, ?, ?, {", ".join("?" * len(COLUMNS))}) ON CONFLICT DO UPDATE SET
{", ".join(f"{name} = {name} + excluded.{name}" for name in COLUMNS)}
"""


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What the large model costs, in any currency, for a million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What one model did for one request. `why` is empty where a small model answered as it should."""

    model: str
    task: str = ""
    why: str = ""
    is_call: bool = True
    """False for what is added to a call that is there already."""
    failed: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    saved: float = 0.0
    joules: float = 0.0
    liked: int = 0
    disliked: int = 0


class Ledger:
    """The sums, in a file. Safe from any thread; what cannot be written is said once and counted on in memory.

    Only `rows` and `close` wait for the disk. Who adds may be an event loop, and who asks what was spent an engine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # of the counts; held for no longer than it takes to add
        self._file = threading.Lock()  # of the database, taken before the other one
        self._writer = ThreadPoolExecutor(1, "ledger")
        self._pending: Counter[tuple[tuple[str, ...], str]] = Counter()
        self._today: Counter[str] = Counter()
        self._all: dict[str, Counter[str]] = {"small": Counter(), "large": Counter()}
        self._tasks: set[str] = set()
        self._day = today()
        self._written_s = time.monotonic()
        self._has_complained = False
        with disk_errors(path):
            make_private(path)
        self._database = self._open()
        for row in self.rows(days=1):
            self._tasks.add(str(row["task"]))
            self._today[LARGE_TODAY] += is_large(row["why"]) * int(row["prompt_tokens"] + row["completion_tokens"])

    def add(self, entries: Iterable[Entry], *, session: str = "") -> None:
        """Count what one request took; `session` is whose it was, for what one customer may spend in a day."""
        with self._lock:
            self._turn_day()
            costs = False
            for entry in entries:
                costs |= bool(entry.cost) or is_large(entry.why)
                key = (self._day, self._task(entry.task), entry.model, entry.why)
                values = (entry.is_call, entry.failed, *(getattr(entry, name) for name in COLUMNS[2:]))
                for name, value in zip(COLUMNS, values, strict=True):
                    self._pending[key, name] += value  # pyright: ignore[reportArgumentType]
                tokens = entry.prompt_tokens + entry.completion_tokens
                every = self._all["large" if is_large(entry.why) else "small"]
                every.update(dict(zip(COLUMNS, values, strict=True)))  # pyright: ignore[reportArgumentType]
                every["tokens"] += tokens
                if is_large(entry.why):
                    self._today[LARGE_TODAY] += tokens
                    if session:
                        self._today[f"{LARGE_TODAY}{session}"] += tokens
            is_due = costs or time.monotonic() - self._written_s > WRITE_S
        if is_due:
            with suppress(RuntimeError):  # closed: the last answers of a server that stops
                self._writer.submit(self._write)

    def since_start(self) -> dict[str, Counter[str]]:
        """Return the sums of this process for "small" and for "large": every column, and the tokens of both kinds."""
        with self._lock:
            return {by: Counter(sums) for by, sums in self._all.items()}

    def tokens_today(self, session: str = "") -> int:
        """Return what the large model, whatever it is called, read and wrote today (UTC).

        For one session it is what it did since the start.
        """
        with self._lock:
            self._turn_day()
            return self._today[f"{LARGE_TODAY}{session}"]

    def rows(self, *, days: int) -> list[dict[str, Any]]:
        """Return the sums of the last `days`, today included, oldest first."""
        self._write()
        with self._file:
            since = day_before(self._day, days - 1)
            query = f"SELECT day, task, model, why, {', '.join(COLUMNS)} FROM usage WHERE day >= ? ORDER BY 1, 2, 3, 4"
            names = ("day", "task", "model", "why", *COLUMNS)
            try:
                found = self._database.execute(query, (since,)).fetchall()
            except sqlite3.Error as error:
                self._complain(error)
                return []
        return [_whole_counts(dict(zip(names, row, strict=True))) for row in found]

    def close(self) -> None:
        self._writer.shutdown()
        self._write()
        with self._file:
            self._database.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._prepared()
        except sqlite3.DatabaseError as error:
            if not sqlite.is_damage(error):
                raise
            log.warning(f"{self._path} is damaged; it is kept as {sqlite.set_aside(self._path).name}")
            return self._prepared()

    def _prepared(self) -> sqlite3.Connection:
        database = sqlite.connect(self._path)
        try:
            sqlite.make_durable(database)
            database.execute(_TABLE)
            there = {str(row[1]) for row in database.execute("PRAGMA table_info(usage)")}
            for name in COLUMNS:
                if name not in there:  # it was made before there was such a column; those are the last ones
                    database.execute(f"ALTER TABLE usage ADD COLUMN {name} REAL NOT NULL DEFAULT 0")
            database.execute("DELETE FROM usage WHERE day < ?", (day_before(self._day, KEPT_DAYS),))
        except BaseException:
            database.close()
            raise
        return database

    def _turn_day(self) -> None:
        if (day := today()) != self._day:
            self._day = day
            self._today.clear()
            self._tasks.clear()

    def _task(self, task: str) -> str:
        """Return what a task is counted as today. The caller holds the lock."""
        if task not in self._tasks:
            if len(self._tasks) >= MOST_TASKS:
                return OTHERS
            self._tasks.add(task)
        return task

    def _write(self) -> None:
        with self._file:
            with self._lock:
                self._written_s = time.monotonic()
                pending, self._pending = self._pending, Counter()
            if not pending:
                return
            keys = sorted({key for key, _ in pending})
            rows = [(*key, *(float(pending[key, name]) for name in COLUMNS)) for key in keys]
            try:
                self._database.execute("BEGIN")
                self._database.executemany(_ADD, rows)
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                with self._lock:
                    self._pending.update(pending)
                self._complain(error)
                return
            self._has_complained = False

    def _complain(self, error: sqlite3.Error) -> None:
        if not self._has_complained:
            log.warning(f"the ledger cannot be kept ({self._path}: {error}); it goes on in memory")
        self._has_complained = True


def is_large(why: str) -> bool:
    """Say whether a row with the reason `why` is the large model's: its name may not be known yet, or be another."""
    return why not in SMALL


def today() -> str:
    """Return the day by UTC, so that it has 24 hours everywhere."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def day_before(day: str, days: int) -> str:
    """Return the day that was so many days before `day`."""
    from datetime import date, timedelta

    return str(date.fromisoformat(day) - timedelta(days=days))


def _whole_counts(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: int(row[name]) for name in COUNTS}
