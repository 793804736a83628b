"""Draw what the demo measured: one self-contained page, no script, no font and no picture from elsewhere."""

from collections.abc import Sequence
from typing import Any

from fieldlm.core import charts
from fieldlm.core.charts import Dot, Scale, Svg
from fieldlm.core.pages import render
from fieldlm_compiler.demo.summary import UNSEEN, time_of

SMOOTHED = 11
LEAST = 1e-3
"""Nats: what lies below is drawn there."""
Row = dict[str, Any]
Bars = list[tuple[str, Svg, str]]
"""Rows of a label, a bar and words."""


def page(report: Row) -> str:
    """Return the whole page for `report`, the document that report.json holds."""
    update = report["update"]
    return render(
        "fieldlm_compiler.demo",
        "report.html",
        title="fieldlm: one turn of the circle",
        report=report,
        update=update,
        took=time_of(report),
        accuracy=accuracy(report["before"], report["after"]),
        functions=functions(report["after"]),
        axis=axis(report["stages"]),
        tune=report["tune"],
        losses=loss_curve(report["tune"]["losses"]),
        smoothed=SMOOTHED,
        dropped=sorted(report["curated"]["dropped"].items()),
        redacted=sorted(report["redacted"].items()),
        candidates=candidates(report["candidates"]),
        travelled=travelled(report["telemetry"]),
        timeline=timeline(update),
        steps=steps(update),
        moved=moved(update),
        tasks=[(row["name"], row["size"], row["example"]) for row in report["tasks"]],
    )


def accuracy(before: Row, after: Row) -> Bars:
    """Bars with their intervals, of held-out customers and of strangers, before and after."""
    scores = (
        ("held-out, before", before, "old"),
        ("held-out, after", after, "new"),
        ("strangers, before", before["strangers"], "old"),
        ("strangers, after", after["strangers"], "new"),
    )
    return [
        (
            name,
            charts.bar(name, [(kind, score["share"])], interval=(score["low"], score["high"])),
            f"{score['share']:.1%} ({score['right']}/{score['total']}), {score['low']:.0%} to {score['high']:.0%}",
        )
        for name, score, kind in scores
    ]


def functions(after: Row) -> Bars:
    """A bar for each function: the share of right calls of all who were asked after the update."""
    counts: dict[str, tuple[int, int]] = {}
    for score in (after, after["strangers"]):
        for name, (right, total) in score["functions"].items():
            counts[name] = (counts.get(name, (0, 0))[0] + right, counts.get(name, (0, 0))[1] + total)
    return [
        (name, charts.bar(name, [("new", right / total)]), f"{right / total:.0%} ({right}/{total})")
        for name, (right, total) in sorted(counts.items())
    ]


def axis(stages: Sequence[Row]) -> Bars:
    """The stages one under the other, each where it lies in the time of all."""
    whole = sum(row["seconds"] for row in stages)
    drawn: Bars = []
    start = 0.0
    for row in stages:
        words = f"{_clock(start)} to {_clock(start + row['seconds'])}, {row['seconds']:.0f} s"
        words += ", went on after an interruption" if row["resumed"] else ""
        bar = charts.bar(row["title"], [("none", start), ("new", row["seconds"])], whole=whole)
        drawn.append((row["title"], bar, words))
        start += row["seconds"]
    return drawn


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def loss_curve(losses: Sequence[float]) -> Svg | None:
    """Each step's loss as a dot, on a logarithmic axis, and the running mean as a line."""
    if not losses:
        return None
    floor = max(min(losses), LEAST)
    high = max(*losses, 2 * floor)
    half = SMOOTHED // 2
    parts = [losses[max(0, at - half) : at + half + 1] for at in range(len(losses))]
    powers = [10.0**power for power in range(-3, 2) if floor < 10.0**power < high]
    return charts.plot(
        f"Loss over {len(losses)} steps",
        Scale(low=1, high=max(2, len(losses)), ticks=((1, "step 1"), (len(losses), str(len(losses))))),
        Scale(low=floor, high=high, ticks=[(each, f"{each:g}") for each in powers], is_log=True),
        line=[(at, max(sum(part) / len(part), floor)) for at, part in enumerate(parts, 1)],
        dots=[Dot(x=at, y=loss, kind="old") for at, loss in enumerate(losses, 1)],
    )


def candidates(rows: Sequence[Row]) -> Bars:
    """A size bar and a speed bar for each candidate."""
    largest = max((row["size_mb"] for row in rows), default=1.0)
    fastest = max((row["tokens_per_s"] for row in rows), default=1.0)
    drawn: Bars = []
    for row in rows:
        size, speed = row["size_mb"], row["tokens_per_s"]
        name = row["name"] + (" ✓" if row.get("chosen") else "")
        drawn.append((name, charts.bar("size", [("old", size)], whole=largest), f"{size:.0f} MB"))
        drawn.append(("", charts.bar("decode speed", [("new", speed)], whole=fastest), f"{speed:.0f} tokens/s"))
    return drawn


def travelled(telemetry: Row) -> list[tuple[str, int, int, int]]:
    """Count records on both sides, and what is missing, by stream."""
    return [
        (stream, sides["produced"], sides["stored"], sides["produced"] - sides["stored"])
        for stream, sides in sorted(telemetry["streams"].items())
    ]


def timeline(update: Row) -> Svg | None:
    """Latency of every answer over time, with the update's steps as upright lines."""
    dots = update["answers"]
    if not dots:
        return None
    first, last = _span(update)
    slowest = max(took_s for _, took_s, _ in dots)
    return charts.plot(
        "Latency of every answer while the device took the update",
        Scale(low=first, high=last, ticks=((first, "0 s"), (last, f"{last - first:.0f} s"))),
        Scale(low=0.0, high=slowest, ticks=((0.0, "0"), (slowest, f"{slowest:.1f} s"))),
        dots=[Dot(x=at, y=took, kind="new" if name == update["generation"] else "old") for at, took, name in dots],
        marks=[(step["at_s"], str(number)) for number, step in enumerate(steps(update), 1)],
    )


def steps(update: Row) -> list[Row]:
    """Return the update's steps while customers asked, in the order of the marks on the timeline."""
    first, last = _span(update)
    return [step for step in update["steps"] if first <= step["at_s"] <= last]


def _span(update: Row) -> tuple[float, float]:
    """Return when the first answer was asked for and the last one ended, in seconds since the epoch."""
    asked = [at_s for at_s, _, _ in update["answers"]]
    return min(asked, default=0.0), max((at_s + took_s for at_s, took_s, _ in update["answers"]), default=0.0)


def moved(update: Row) -> Bars:
    """The bytes fetched beside the bytes of the whole bundle."""
    whole, fetched = update["bundle_bytes"], update["fetched_bytes"]
    if fetched is None:
        return [("whole bundle", charts.bar("whole bundle", [("old", 1.0)]), f"{whole / 1e6:.1f} MB"),
                ("fetched", charts.bar("fetched", []), UNSEEN)]  # fmt: skip
    words = f"{fetched / 1e6:.2f} MB, 1/{whole / max(1, fetched):.0f}"
    return [
        ("whole bundle", charts.bar("whole bundle", [("old", 1.0)]), f"{whole / 1e6:.1f} MB"),
        ("fetched", charts.bar("fetched", [("new", fetched)], whole=whole), words),
    ]
