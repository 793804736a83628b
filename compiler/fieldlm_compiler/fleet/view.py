"""The fleet view, out of a store: one line a device, and one device's own timeline.

Everything is read from rows, watermarks and presence messages; nothing is kept. A number that is missing and that no
device explained is `lost`, and there should never be one.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.formats.topics import check_name
from fieldlm_compiler.collect.sink import Sink, as_dict

FINE = ("stop", "length")
"""Outcomes of an answer that came without an error; whether it was right, only people say."""
# An answer was wrong that somebody corrected or did not like, however often they said so.
_ANSWERS = """
WITH wrong AS (
    SELECT DISTINCT device, response, true AS is_wrong FROM records
    WHERE kind = 'feedback' AND response <> '' AND (correction <> '' OR rating = 'down')
), answers AS (
    SELECT r.*, r.duration_ms - r.ttft_ms AS decode_ms, w.is_wrong
    FROM records r LEFT JOIN wrong w USING (device, response) WHERE r.kind = 'generation'
)
"""
_DEVICES = f"""
{_ANSWERS}
SELECT r.device, any_value(a.generation) AS generation, any_value(a.model) AS model, count(*) AS records,
    max(r.wall_ms) FILTER (r.clock_ok) AS last_ms, any_value(a.answers) AS answers, any_value(a.fine) AS fine,
    any_value(a.corrected) AS corrected, any_value(a.tokens_per_s) AS tokens_per_s,
    any_value(a.ttft_p50_ms) AS ttft_p50_ms, any_value(a.ttft_p95_ms) AS ttft_p95_ms, any_value(a.queue_ms) AS queue_ms,
    any_value(a.prompt_ms) AS prompt_ms, any_value(a.decode_ms) AS decode_ms
FROM records r LEFT JOIN (
    SELECT device, arg_max(generation, wall_ms) AS generation, arg_max(model, wall_ms) AS model, count(*) AS answers,
        count(*) FILTER (outcome IN {FINE}) AS fine, count(*) FILTER (is_wrong) AS corrected,
        -- The first token is there when the others begin.
        sum(greatest(completion_tokens - 1, 0)) FILTER (decode_ms > 0)
            / nullif(sum(decode_ms) FILTER (decode_ms > 0), 0) * 1000 AS tokens_per_s,
        quantile_cont(ttft_ms, 0.5) FILTER (ttft_ms > 0) AS ttft_p50_ms,
        quantile_cont(ttft_ms, 0.95) FILTER (ttft_ms > 0) AS ttft_p95_ms,
        sum(queue_ms) AS queue_ms, sum(greatest(ttft_ms - queue_ms, 0)) AS prompt_ms,
        sum(greatest(decode_ms, 0)) AS decode_ms
    FROM answers GROUP BY device) a USING (device)
GROUP BY r.device ORDER BY r.device
"""
_OUTCOMES = "SELECT outcome, count(*) AS n FROM records WHERE kind = 'generation' GROUP BY ALL ORDER BY n DESC, outcome"
_GENERATIONS = f"""
{_ANSWERS}
SELECT generation, any_value(model) AS model, count(DISTINCT device) AS devices, count(*) AS answers,
    count(*) FILTER (outcome IN {FINE}) AS fine, count(*) FILTER (is_wrong) AS corrected
FROM answers GROUP BY generation ORDER BY max(wall_ms) DESC
"""
_TIMELINE = """
SELECT * FROM (
    SELECT wall_ms, clock_ok, stream, seq, kind, boot, generation, outcome, completion_tokens, queue_ms, ttft_ms,
        duration_ms, rating, correction <> '' AS corrected, detail
    FROM records WHERE device = ? ORDER BY wall_ms DESC, mono_ms DESC, seq DESC LIMIT ?
) ORDER BY wall_ms, stream, seq
"""


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One device. Times are sums over its answers; what is None nobody measured."""

    device: str
    state: str
    generation: str
    model: str
    records: int
    last_ms: int | None
    answers: int
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


class GenerationStats(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of the model, and how it did wherever it ran."""

    generation: str
    model: str
    devices: int
    answers: int
    fine: int
    corrected: int


class FleetReport(msgspec.Struct, frozen=True, kw_only=True):
    """All devices of a store."""

    devices: tuple[DeviceRow, ...]
    generations: tuple[GenerationStats, ...]
    outcomes: dict[str, int]

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


def look(sink: Sink) -> FleetReport:
    """Return the state of every device that has a record or a presence message in `sink`."""
    rows = {row["device"]: row for row in sink.query(_DEVICES)}
    states = {device: _state(text) for device, text in sink.presence().items()}
    missing: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for gap in sink.gaps():
        missing[gap.device][0] += gap.lost
        missing[gap.device][1] += gap.told
    traffic = sink.traffic()
    names = sorted(rows.keys() | states.keys() | missing.keys())
    outcomes = {row["outcome"] or "–": row["n"] for row in sink.query(_OUTCOMES)}
    return FleetReport(
        devices=tuple(
            _device(name, rows.get(name, {}), states.get(name, "–"), missing[name], traffic.get(name)) for name in names
        ),
        generations=tuple(msgspec.convert(row, GenerationStats) for row in sink.query(_GENERATIONS)),
        outcomes=outcomes,
    )


def timeline(sink: Sink, device: str, last: int) -> list[Event]:
    """Return the newest `last` records of one device, the oldest first; raises InputError for one that has none."""
    rows = sink.query(_TIMELINE, (check_name(device, "device"), last))
    if not rows:
        raise InputError(f"the store has no record of {device}; fieldlm fleet lists the devices that it knows")
    return [_event(row) for row in rows]


def _device(name: str, row: dict[str, Any], state: str, missing: Sequence[int], size: int | None) -> DeviceRow:
    numbers = ("records", "answers", "fine", "corrected", "queue_ms", "prompt_ms", "decode_ms")
    known = {key: row.get(key) or 0 for key in numbers} | {key: row.get(key) or "" for key in ("generation", "model")}
    for key in ("last_ms", "tokens_per_s", "ttft_p50_ms", "ttft_p95_ms"):
        known[key] = row.get(key)
    known |= {"device": name, "state": state, "lost": missing[0], "told": missing[1], "bytes": size}
    return msgspec.convert(known, DeviceRow)


def _state(presence: str) -> str:
    """Return the word that a presence message says; it comes from the network and may be anything."""
    try:
        said = msgspec.json.decode(presence)
    except (msgspec.DecodeError, RecursionError):
        return "unreadable"
    word = cast(dict[str, Any], said).get("state") if isinstance(said, dict) else None
    return word[:32] if isinstance(word, str) else "unreadable"


def _event(row: dict[str, Any]) -> Event:
    detail = as_dict(row["detail"])
    words = " ".join(f"{key}={value}" for key, value in detail.items() if key != "event")
    is_fine = row["kind"] not in ("drop",)
    match row["kind"]:
        case "generation":
            is_fine = row["outcome"] in FINE
            text = (
                f"{row['outcome'] or '–'}: {row['completion_tokens']} tokens in {row['duration_ms']:.0f} ms "
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
