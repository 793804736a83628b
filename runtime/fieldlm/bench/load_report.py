"""What a server under load did, and how a soak went: for people, as a document, as a page and as Markdown."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import msgspec

from fieldlm.bench.load import LevelResult, LoadSpec
from fieldlm.bench.report import ROOM, markdown_table, plain
from fieldlm.bench.soak import LEAST_WINDOWS, Soak
from fieldlm.core import charts, terminal
from fieldlm.core.charts import Scale, Svg
from fieldlm.core.pages import render
from fieldlm.core.wording import counted
from fieldlm.hardware.detect import detect
from fieldlm.network.http_client import is_here

HEAD = (
    "load", "answers", "failed", "first text, ms", "between two pieces, ms", "whole answer, s", "tokens/s", "in time",
    "in time/s",
)  # fmt: skip
KEY = "Times are the 50th / 90th / 95th / 99th percentile; – where there are too few answers to know."
MOST_POINTS = 400


def asked_from(is_server_here: bool, began_wall_s: float | None = None) -> str:
    """Return when it was, on which machine, and with which build of ours; the server's own is not known."""
    when = datetime.fromtimestamp(began_wall_s or time.time(), UTC).strftime("%Y-%m-%d %H:%M UTC")
    where = "the server is on it too" if is_server_here else "the server is on another machine"
    cpu = detect().facts["cpu_name"] or "a machine without a name"
    return f"{when}, asked from {cpu} by fieldlm {version('fieldlm')}; {where}"


def level_cells(found: LevelResult) -> tuple[str, ...]:
    """Return a row of the table of levels."""
    return (
        found.level.words, str(_answers(found)), str(sum(found.failed.values())),
        found.ttft_s.words(), found.gap_s.words(digits=1),
        found.whole_s.words(1.0, 2), f"{found.tokens_per_s:.1f}", f"{100 * found.good / max(1, found.requests):.0f} %",
        f"{found.good_per_s:.2f}",
    )  # fmt: skip


def load_notes(found: Sequence[LevelResult], spec: LoadSpec) -> list[str]:
    """Return what has to be known beside the table."""
    failed = [
        f"{level.level.words}: {counted(count, 'request')} failed: {why}"
        for level in found
        for why, count in level.failed.items()
    ]
    answered = [each for each in found if _answers(each)]
    if not answered:
        return [*failed, f"nothing was answered; prompts drawn by --seed {spec.seed}"]
    mean = answered[0]
    limits = [
        f"{words} {limit:g} s"
        for words, limit in (("the whole", spec.deadline_s), ("first text", spec.first_word_s))
        if limit
    ]
    return [
        *failed,
        f"prompts of {mean.prompt_tokens:.0f} tokens, {mean.cached_tokens:.0f} of them cached, and answers of "
        f"{mean.gen_tokens:.0f}, on average",
        f"in time: {' and '.join(limits)}" if limits else "in time: no deadline was said, so whatever was answered",
        KEY,
        f"prompts drawn by --seed {spec.seed}",
    ]


def _answers(found: LevelResult) -> int:
    return found.requests - sum(found.failed.values())


def describe_load(url: str, spec: LoadSpec, found: Sequence[LevelResult]) -> str:
    """Lay the levels out for people."""
    notes = load_notes(found, spec)
    if not any(_answers(each) for each in found):
        return "\n".join([f"{spec.model} at {url}", *notes])
    table = terminal.table([level_cells(each) for each in found], HEAD)
    return "\n".join([f"{spec.model} at {url}", table, *notes])


def load_document(url: str, spec: LoadSpec, found: Sequence[LevelResult]) -> dict[str, Any]:
    return {"url": url, "spec": msgspec.to_builtins(spec), "levels": msgspec.to_builtins(found)}


def load_pages(url: str, spec: LoadSpec, found: Sequence[LevelResult]) -> tuple[str, str]:
    """Return the same as a page and as Markdown."""
    title, rows = f"{spec.model} under load", [level_cells(each) for each in found]
    lines = [asked_from(is_here(url)), *load_notes(found, spec)]
    page = render(
        ROOM, "load.html", title=f"Bench of fieldlm: {title}", name=title, soft=url, plots=[], head=HEAD, rows=rows,
        notes=lines,
    )  # fmt: skip
    return page, _markdown(title, url, HEAD, rows, lines)


def soak_rows(found: Soak) -> list[tuple[str, str]]:
    """Return what came of a soak."""
    windows, speeds = found.windows, found.speeds
    heat = [each.temperature_c for each in windows if each.temperature_c is not None]
    clocks = [each.clock_mhz for each in windows if each.clock_mhz is not None]
    rows = [
        ("load", f"{found.head.level.words} for {len(windows) * found.head.window_s / 60:g} minutes"),
        ("answers", f"{sum(each.answers for each in windows):,}, {sum(each.failed for each in windows):,} failed"),
    ]
    if speeds:
        slow, fast = min(speeds, key=lambda each: each[1]), max(speeds, key=lambda each: each[1])
        rows.append(("speed of an answer", f"{slow[1]:.1f} (minute {slow[0]:g}) to {fast[1]:.1f} tokens/s"))
    if (drift := found.drift_percent_h) is not None:
        rows.append(("drift", f"{drift[0]:+.1f} [{drift[1]:+.1f}, {drift[2]:+.1f}] % an hour"))
    else:
        least_min = LEAST_WINDOWS * found.head.window_s / 60
        rows.append(("drift", f"too short to say: it takes {least_min:g} minutes in which answers ended"))
    if (droop := found.droop_percent) is not None:
        rows.append(("last fifth against the first", f"{-droop:+.1f} %"))
    if heat:
        rows.append(("temperature", f"{heat[0]:.0f} °C at first, {max(heat):.0f} °C at most"))
    if clocks:
        rows.append(("clock", f"{min(clocks):.0f} to {max(clocks):.0f} MHz"))
    if not found.head.is_here:
        rows.append(("heat and throttling", "not looked at: the server is on another machine"))
    elif found.throttled_min is not None:
        rows.append(("throttled", f"first in minute {found.throttled_min:g}"))
    return rows


def describe_soak(found: Soak) -> str:
    head = f"{found.head.spec.model} at {found.head.url}"
    return "\n".join([head, terminal.table(soak_rows(found), ("", ""))])


def soak_document(found: Soak) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(found),
        "drift_percent_h": found.drift_percent_h,
        "droop_percent": found.droop_percent,
        "throttled_min": found.throttled_min,
    }


def soak_pages(found: Soak) -> tuple[str, str]:
    """Return a soak as a page and as Markdown."""
    title, step_min = f"{found.head.spec.model} under lasting load", found.head.window_s / 60
    heat = [
        (step_min * (at + 1), each.temperature_c)
        for at, each in enumerate(found.windows)
        if each.temperature_c is not None
    ]
    curves = [("tokens/s of an answer", found.speeds), ("°C", heat)]
    plots = [(words, curve(words, points)) for words, points in curves if len(points) > 1]
    rows = soak_rows(found)
    ended_s = found.windows[0].ended_wall_s if found.windows else None
    lines = [asked_from(found.head.is_here, ended_s and ended_s - found.head.window_s)]
    page = render(
        ROOM, "load.html", title=f"Bench of fieldlm: {title}", name=title, soft=found.head.url, plots=plots,
        head=("", ""), rows=rows, notes=lines,
    )  # fmt: skip
    return page, _markdown(title, found.head.url, ("", ""), rows, lines)


def curve(words: str, points: Sequence[tuple[float, float]]) -> Svg:
    """Draw a figure over the minutes; of a long soak every so many points."""
    shown = points[:: -(-len(points) // MOST_POINTS)]
    top, last = max(value for _, value in points) * 1.05, points[-1][0]
    return charts.plot(
        f"{words} over the minutes",
        Scale(low=0.0, high=last, ticks=((0.0, "0"), (last, f"minute {last:g}"))),
        Scale(low=0.0, high=top, ticks=((0.0, "0"), (points[0][1], f"{points[0][1]:.1f}"))),
        line=shown,
    )


def _markdown(title: str, soft: str, head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    lines = [
        f"### {plain(title)}",
        "",
        plain(soft),
        "",
        *markdown_table(head, rows),
        "",
        *(f"- {plain(n)}" for n in notes),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"
