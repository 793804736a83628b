"""Draw what the demo measured: one self-contained page, no script, no font and no picture from elsewhere."""

from collections.abc import Sequence
from typing import Any

from fieldlm.core import charts
from fieldlm.core.charts import Dot, Scale, Svg
from fieldlm.core.pages import render

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
        accuracy=accuracy(report["before"], report["after"]),
        candidates=candidates(report["candidates"]),
        travelled=travelled(report["telemetry"]),
        timeline=timeline(update),
        steps=steps(update),
        moved=moved(update),
        tasks=[(row["name"], row["size"], row["example"]) for row in report["tasks"]],
        stages=[(row["title"], f"{row['seconds']:.1f}") for row in report["stages"]],
    )


def accuracy(before: Row, after: Row) -> Bars:
    """Two bars with their intervals, and one for strangers."""
    scores = (("before", before, "old"), ("after", after, "new"), ("strangers", after["strangers"], "new"))
    return [
        (
            name,
            charts.bar(name, [(kind, score["share"])], interval=(score["low"], score["high"])),
            f"{score['share']:.1%} ({score['right']}/{score['total']})",
        )
        for name, score, kind in scores
    ]


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
    words = f"{fetched / 1e6:.2f} MB, 1/{whole / max(1, fetched):.0f}"
    return [
        ("whole bundle", charts.bar("whole bundle", [("old", 1.0)]), f"{whole / 1e6:.1f} MB"),
        ("fetched", charts.bar("fetched", [("new", fetched)], whole=whole), words),
    ]
