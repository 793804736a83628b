"""The fleet view, out of a store: one line a device, and one device's own timeline.

Everything is read from rows, watermarks and presence messages; nothing is kept. A number that is missing and that no
device explained is `lost`, and there should never be one.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.wording import counted
from fieldlm.formats.topics import check_name
from fieldlm_compiler.collect.sink import CORRECTED, STEPS, Sink, as_dict

FINE = ("stop", "length")
"""Outcomes of an answer that came without an error; whether it was right, only people say."""
STRETCHES = 48
TOLD = 5_000
"""Of how many of the newest requests the task is told."""
# What a selection leaves: $1 the earliest time in ms, $2 part of a device's name, $3 a generation or "".
_CHOSEN = """
chosen AS (
    SELECT * FROM records WHERE wall_ms >= $1 AND contains(device, $2)
        AND ($3 = '' OR generation = $3 OR kind <> 'generation')
)
"""
# An answer was wrong that somebody corrected or did not like, however often they said so.
_ANSWERS = f"""
WITH {_CHOSEN}, wrong AS (
    SELECT DISTINCT device, response, true AS is_wrong FROM records
    WHERE kind = 'feedback' AND response <> '' AND ({CORRECTED} OR rating = 'down')
), answers AS (
    SELECT r.*, r.duration_ms - r.ttft_ms AS decode_ms, {STEPS} AS steps, w.is_wrong
    FROM chosen r LEFT JOIN wrong w USING (device, response) WHERE r.kind = 'generation' AND r.route <> 'large'
), handed AS (
    SELECT device, generation, count(*) AS large FROM chosen WHERE kind = 'generation' AND route = 'large' GROUP BY ALL
)
"""
# What a large model answered is counted, and says nothing of the generation that it answered for.
_DEVICES = f"""
{_ANSWERS}
SELECT r.device, any_value(a.generation) AS generation, any_value(a.answered_ms) AS answered_ms,
    any_value(a.model) AS model, count(*) AS records,
    max(r.wall_ms) FILTER (r.clock_ok) AS last_ms, any_value(a.answers) AS answers,
    any_value(h.large) AS large, any_value(a.fine) AS fine,
    any_value(a.corrected) AS corrected, any_value(a.tokens_per_s) AS tokens_per_s,
    any_value(a.ttft_p50_ms) AS ttft_p50_ms, any_value(a.ttft_p95_ms) AS ttft_p95_ms, any_value(a.queue_ms) AS queue_ms,
    any_value(a.prompt_ms) AS prompt_ms, any_value(a.decode_ms) AS decode_ms
FROM chosen r LEFT JOIN (
    SELECT device, arg_max(generation, wall_ms) AS generation, arg_max(model, wall_ms) AS model,
        max(wall_ms) AS answered_ms, count(*) AS answers,
        count(*) FILTER (outcome IN {FINE}) AS fine, count(*) FILTER (is_wrong) AS corrected,
        -- The first token is there when the others begin; what a form forced took a prompt's time, not theirs.
        sum(steps) FILTER (decode_ms > 0)
            / nullif(sum(decode_ms) FILTER (decode_ms > 0 AND steps > 0), 0) * 1000 AS tokens_per_s,
        quantile_cont(ttft_ms, 0.5) FILTER (ttft_ms > 0) AS ttft_p50_ms,
        quantile_cont(ttft_ms, 0.95) FILTER (ttft_ms > 0) AS ttft_p95_ms,
        sum(queue_ms) AS queue_ms, sum(greatest(ttft_ms - queue_ms, 0)) AS prompt_ms,
        sum(greatest(decode_ms, 0)) AS decode_ms
    FROM answers GROUP BY device) a USING (device)
LEFT JOIN (SELECT device, sum(large) AS large FROM handed GROUP BY device) h USING (device)
GROUP BY r.device ORDER BY r.device
"""
_OUTCOMES = f"""
WITH {_CHOSEN} SELECT outcome, count(*) AS n FROM chosen WHERE kind = 'generation' GROUP BY ALL ORDER BY n DESC, outcome
"""
_GENERATIONS = f"""
{_ANSWERS}
SELECT generation, any_value(model) AS model, count(DISTINCT device) AS devices, count(*) AS answers,
    count(*) FILTER (outcome IN {FINE}) AS fine, count(*) FILTER (is_wrong) AS corrected,
    coalesce((SELECT sum(large) FROM handed WHERE handed.generation = answers.generation), 0) AS large
FROM answers GROUP BY generation ORDER BY max(wall_ms) DESC
"""
# $4 is how many stretches the time between the first and the last answer is cut into.
_TREND = f"""
{_ANSWERS}, ends AS (SELECT min(wall_ms) AS first, max(wall_ms) + 1 AS last FROM answers WHERE clock_ok)
SELECT stretch, first, last, count(*) AS answers, count(*) FILTER (outcome IN {FINE}) AS fine,
    count(*) FILTER (is_wrong) AS corrected
FROM (SELECT *, (wall_ms - first) * $4 // (last - first) AS stretch FROM answers, ends WHERE clock_ok)
GROUP BY stretch, first, last
"""
_SAID = f"""
{_ANSWERS}
SELECT device, response, generation, prompt, outcome IN {FINE} AS is_fine, coalesce(is_wrong, false) AS is_wrong
FROM answers ORDER BY wall_ms DESC, device, seq DESC LIMIT $4
"""
_UPDATES = """
SELECT device, arg_max(detail['event'], wall_ms) AS event, arg_max(detail['reason'], wall_ms) AS reason,
    arg_max(runs, wall_ms) FILTER (runs <> '') AS runs, max(wall_ms) FILTER (runs <> '') AS runs_ms
FROM (
    SELECT *, CASE detail['event'] WHEN 'update.committed' THEN detail['bundle']
        WHEN 'update.rolled-back' THEN detail['generation'] END AS runs FROM records
) WHERE stream = 'ota' AND contains(device, $1)
    AND detail['event'] IN ('update.committed', 'update.rolled-back', 'update.failed', 'update.refused')
GROUP BY device
"""
_TIMELINE = f"""
SELECT * FROM (
    SELECT wall_ms, clock_ok, stream, seq, kind, boot, generation, outcome, completion_tokens, queue_ms, ttft_ms,
        duration_ms, rating, {CORRECTED} AS corrected, detail
    FROM records WHERE device = $1 AND wall_ms >= $3 AND ($4 = '' OR generation = $4)
    ORDER BY wall_ms DESC, mono_ms DESC, seq DESC LIMIT $2
) ORDER BY wall_ms, stream, seq
"""


class PresenceWords(msgspec.Struct, frozen=True, kw_only=True):
    """What a presence message says, as far as it can be read. Only a device that is ready says what it runs."""

    state: str
    generation: str = ""
    model: str = ""


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One device. Times are sums over its own model's answers; what is None nobody measured.

    `generation` is what it runs, as its presence says, else as the end of its last update does; `is_last_answer` where
    neither does: then it is what its last answer came from.
    Of those requests that it answered not itself, `large` were answered by a large model beside it.
    `failed` is why its last update failed; "" where it did not.
    """

    device: str
    state: str
    failed: str = ""
    generation: str
    is_last_answer: bool = False
    model: str
    records: int
    last_ms: int | None
    answers: int
    large: int
    fine: int
    corrected: int
    tokens_per_s: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    queue_ms: float
    prompt_ms: float
    decode_ms: float
    lost: int
    told: int
    bytes: int | None

    @property
    def condition(self) -> str:
        """Its state, and what is wrong with it, in words."""
        return f"{self.state}, last update failed: {self.failed}" if self.failed else self.state

    def runs(self, digits: int) -> str:
        """Which generation it runs, in words."""
        return f"{self.generation[:digits] or '–'}{' (last answer)' if self.is_last_answer else ''}"


class GenerationStats(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of the model, and how it did wherever it ran."""

    generation: str
    model: str
    devices: int
    answers: int
    fine: int
    corrected: int
    large: int


class TaskStats(msgspec.Struct, frozen=True, kw_only=True):
    """One task under one generation. `task` is "" for requests of no known task."""

    task: str
    name: str
    generation: str
    answers: int
    fine: int
    corrected: int


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of a stretch of time that begins at `wall_ms`."""

    wall_ms: int
    answers: int
    fine: int
    corrected: int


class FleetReport(msgspec.Struct, frozen=True, kw_only=True):
    """All devices of a store. Of the newest requests `unread` came without words, so that no task can be told."""

    devices: tuple[DeviceRow, ...]
    generations: tuple[GenerationStats, ...]
    outcomes: dict[str, int]
    trend: tuple[Stretch, ...] = ()
    tasks: tuple[TaskStats, ...] = ()
    unread: int = 0

    @property
    def lost(self) -> int:
        return sum(device.lost for device in self.devices)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One record on a device's timeline, in words."""

    wall_ms: int
    clock_ok: bool
    stream: str
    seq: int
    kind: str
    boot: str
    generation: str
    is_fine: bool
    text: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What a view is about. `text` is found in a device's name, state, generation or model, whatever its case."""

    device: str = ""
    generation: str = ""
    text: str = ""
    since_ms: int = 0

    def has(self, device: DeviceRow) -> bool:
        if self.generation and not device.answers + device.large:
            return False
        words = (device.device, device.condition, device.generation, device.model)
        return self.text.casefold() in " ".join(words).casefold()


TellTask = Callable[[dict[str, Any]], tuple[str, str] | None]
"""Returns id and name of the task that a request is; the id is "" where it is none that is known. None: no words."""


def look(sink: Sink, chosen: Selection | None = None, tell: TellTask | None = None) -> FleetReport:
    """Return the state of every device that has a record or a presence message in `sink`, and what it did.

    Gaps and traffic are of all time, whatever is chosen: nobody knows when a record was made that never came.
    """
    chosen = chosen or Selection()
    values = (chosen.since_ms, chosen.device, chosen.generation)
    rows = {row["device"]: row for row in sink.query(_DEVICES, values)}
    states = {device: _presence(text) for device, text in sink.presence().items()}
    missing: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for gap in sink.gaps():
        missing[gap.device][0] += gap.lost
        missing[gap.device][1] += gap.told
    traffic = sink.traffic()
    names = [name for name in sorted(rows.keys() | states.keys() | missing.keys()) if chosen.device in name]
    ends = {row["device"]: row for row in sink.query(_UPDATES, (chosen.device,))}
    known = (
        _device(
            n,
            rows.get(n, {}),
            states.get(n, PresenceWords(state="–")),
            missing[n],
            size=traffic.get(n),
            end=ends.get(n),
        )
        for n in names
    )
    tasks, unread = _tasks(sink.query(_SAID, (*values, TOLD)), tell) if tell else ((), 0)
    return FleetReport(
        devices=tuple(device for device in known if chosen.has(device)),
        generations=tuple(msgspec.convert(row, GenerationStats) for row in sink.query(_GENERATIONS, values)),
        outcomes={row["outcome"] or "–": row["n"] for row in sink.query(_OUTCOMES, values)},
        trend=_trend(sink.query(_TREND, (*values, STRETCHES))),
        tasks=tasks,
        unread=unread,
    )


def _trend(rows: Sequence[dict[str, Any]]) -> tuple[Stretch, ...]:
    """Return every stretch from the first answer to the last, also those in which nothing was answered."""
    if not rows:
        return ()
    counted = {row["stretch"]: row for row in rows}
    first, length = rows[0]["first"], (rows[0]["last"] - rows[0]["first"]) / STRETCHES
    return tuple(
        Stretch(
            wall_ms=round(first + at * length),
            **{name: counted[at][name] if at in counted else 0 for name in ("answers", "fine", "corrected")},
        )
        for at in range(STRETCHES)
    )


def _tasks(rows: Sequence[dict[str, Any]], tell: TellTask) -> tuple[tuple[TaskStats, ...], int]:
    """Return how each task fared under each generation, and how many requests came without words."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    unread = 0
    for row in rows:
        told = tell(row)
        if told is None:
            unread += 1
            continue
        for at, told_times in enumerate((1, row["is_fine"], row["is_wrong"])):
            counts[(*told, row["generation"])][at] += told_times
    found = [
        TaskStats(task=task, name=name, generation=generation, answers=answers, fine=fine, corrected=corrected)
        for (task, name, generation), (answers, fine, corrected) in counts.items()
    ]
    return tuple(sorted(found, key=lambda each: (not each.task, each.name, -each.answers, each.generation))), unread


def timeline(sink: Sink, device: str, last: int, chosen: Selection | None = None) -> list[Event]:
    """Return the newest `last` records of one device, the oldest first; raises InputError for one that has none.

    Where something is chosen there may be none of it: its `text` is looked for in what the newest records say.
    """
    values = (chosen.since_ms, chosen.generation) if chosen else (0, "")
    rows = sink.query(_TIMELINE, (check_name(device, "device"), last, *values))
    if not rows and not chosen:
        raise InputError(f"the store has no record of {device}; fieldlm fleet lists the devices that it knows")
    events = [_event(row) for row in rows]
    words = chosen.text.casefold() if chosen else ""
    return [each for each in events if words in f"{each.kind} {each.stream} {each.text}".casefold()]


def _device(
    name: str,
    row: dict[str, Any],
    said: PresenceWords,
    missing: Sequence[int],
    *,
    size: int | None,
    end: dict[str, Any] | None,
) -> DeviceRow:
    """Return a device out of its answers, its presence and the `end` of its last update."""
    numbers = ("records", "answers", "large", "fine", "corrected", "queue_ms", "prompt_ms", "decode_ms")
    known = {key: row.get(key) or 0 for key in numbers}
    for key in ("last_ms", "tokens_per_s", "ttft_p50_ms", "ttft_p95_ms"):
        known[key] = row.get(key)
    answered = row.get("generation") or ""
    updated = end["runs"] or "" if end and (end["runs_ms"] or 0) >= (row.get("answered_ms") or 0) else ""
    known |= {
        "generation": said.generation or updated or answered,
        "is_last_answer": bool(answered) and not (said.generation or updated),
        "model": said.model or row.get("model") or "",
        "failed": (end["reason"] or "-")[:32] if end and end["event"] != "update.committed" else "",
    }
    known |= {"device": name, "state": said.state, "lost": missing[0], "told": missing[1], "bytes": size}
    return msgspec.convert(known, DeviceRow)


def without_answers(device: DeviceRow) -> DeviceRow:
    """Return a device of which nothing that was chosen is known."""
    return msgspec.structs.replace(
        device, answers=0, large=0, fine=0, corrected=0, queue_ms=0.0, prompt_ms=0.0, decode_ms=0.0,
        tokens_per_s=None, ttft_p50_ms=None, ttft_p95_ms=None,
    )  # fmt: skip


def _presence(message: str) -> PresenceWords:
    """Return what a presence message says; it comes from the network and may be anything."""
    try:
        said = msgspec.json.decode(message)
    except (msgspec.DecodeError, RecursionError):
        return PresenceWords(state="unreadable")
    fields = cast(dict[str, Any], said) if isinstance(said, dict) else {}
    lengths = (("state", 32), ("generation", 64), ("model", 128))
    words = {key: word[:most] for key, most in lengths if isinstance(word := fields.get(key), str)}
    return PresenceWords(**{"state": "unreadable"} | words)


def _event(row: dict[str, Any]) -> Event:
    detail = as_dict(row["detail"])
    words = " ".join(f"{key}={value}" for key, value in detail.items() if key != "event")
    is_fine = row["kind"] not in ("drop",)
    match row["kind"]:
        case "generation":
            is_fine = row["outcome"] in FINE
            text = (
                f"{row['outcome'] or '–'}: {counted(row['completion_tokens'], 'token')} in {row['duration_ms']:.0f} ms "
                f"(waited {row['queue_ms']:.0f}, first token after {row['ttft_ms']:.0f})"
            )
        case "feedback":
            text = " ".join(filter(None, (row["rating"], "corrected" if row["corrected"] else words)))
        case "drop":
            text = f"dropped {detail.get('count', '?')} of {detail.get('stream', '?')}: {detail.get('reason', '?')}"
        case "forget":
            text = "a session was forgotten"
        case _:
            text = f"{detail.get('event', '')} {words}".strip()
    shown = {key: row[key] for key in ("wall_ms", "clock_ok", "stream", "seq", "kind", "boot", "generation")}
    return Event(**shown, is_fine=is_fine, text=text)
