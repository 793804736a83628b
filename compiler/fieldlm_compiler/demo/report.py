"""Draw what the demo measured: one self-contained page, no script, no font and no picture from elsewhere."""

from collections.abc import Sequence
from html import escape
from typing import Any

Row = dict[str, Any]

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #667085; --line: #d5dae2; --paper: #fbfbf9; --card: #fff;
        --old: #9aa4b2; --new: #0f766e; --warm: #c2570c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b3; --line: #344054; --paper: #12161c;
        --card: #1a2029; --old: #667085; --new: #2dd4bf; --warm: #fb923c; } }
* { box-sizing: border-box } body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif } main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem } h2 { font-size: 1.15rem; margin: 0 0 .25rem }
p { margin: 0 0 1rem; color: var(--soft) } section { background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; padding: 1.25rem 1.5rem; margin: 1.25rem 0 } svg { display: block; width: 100%; height: auto }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif } svg .soft { fill: var(--soft) }
svg .axis { stroke: var(--line) } svg .old { fill: var(--old) } svg .new { fill: var(--new) }
svg .bar-line { stroke: var(--ink); stroke-width: 1.5 } svg .mark { stroke: var(--warm); stroke-dasharray: 4 3 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500 } td.n, th.n { text-align: right; padding-right: 1.5rem }
code { font: .9em ui-monospace, monospace } .scroll { overflow-x: auto }
"""


def page(report: Row) -> str:
    """Return the whole page for `report`, the document that report.json holds."""
    before, after = report["before"], report["after"]
    parts = [
        f"<h1>{before['share']:.0%} of the orders right before, {after['share']:.0%} after</h1>",
        f"<p>{escape(report['model'])} on {escape(report['profile'])}: one turn of the circle, "
        f"{report['wall_s'] / 60:.1f} minutes on {report['cores']} cores.</p>",
        _section("Held-out customers, exact match", _ACCURACY, accuracy(before, after)),
        _section("Candidates", _CANDIDATES, candidates(report["candidates"])),
        _section("What travelled over MQTT", _TRAVELLED, travelled(report["telemetry"])),
        _section("The update under load", _update_words(report["update"]), timeline(report["update"])),
        _section("Bytes an update moves", "Only what the device does not have yet.", moved(report["update"])),
        _section("Tasks found in the traffic", "Found by clustering; nobody named them beforehand.",
                 tasks(report["tasks"])),
        _section("Stages", "Wall time of each stage of this run.", stages(report["stages"])),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>fieldlm: one turn of the circle</title>"
        f"<style>{STYLE}</style><main>{''.join(parts)}</main></html>\n"
    )


_CANDIDATES = "What each way of writing the weights costs, measured on this machine."
_ACCURACY = (
    "Sentences and items no training customer ever used; right means the whole JSON call is right. "
    "Strangers order, after the update, what has a word in its name that no training item has. "
    "Whiskers are 95 % intervals (Wilson)."
)
_TRAVELLED = "Records the device made, and records in the store; the broker was away for a part of the time."


def accuracy(before: Row, after: Row) -> str:
    """Two bars with their intervals, and one for strangers."""
    rows: list[str] = []
    scores = (("before", before, "old"), ("after", after, "new"), ("strangers", after["strangers"], "new"))
    for index, (name, score, kind) in enumerate(scores):
        y = 20 + 56 * index
        rows.append(f'<text x="0" y="{y + 24}">{name}</text><rect class="{kind}" x="80" y="{y}" '
                    f'width="{max(1.0, 640 * score["share"]):.1f}" height="36" rx="4"/>')  # fmt: skip
        low, high = 80 + 640 * score["low"], 80 + 640 * score["high"]
        rows.append(f'<path class="bar-line" fill="none" d="M{low:.1f} {y + 18}H{high:.1f}M{low:.1f} {y + 12}v12'
                    f'M{high:.1f} {y + 12}v12"/>')  # fmt: skip
        rows.append(f'<text x="{high + 12:.0f}" y="{y + 23}">{score["share"]:.1%} '
                    f'({score["right"]}/{score["total"]})</text>')  # fmt: skip
    return _svg(880, 186, "".join(rows))


def candidates(rows: Sequence[Row]) -> str:
    """A table with a size bar and a speed bar for each candidate."""
    largest = max((row["size_mb"] for row in rows), default=1.0)
    fastest = max((row["tokens_per_s"] for row in rows), default=1.0)
    shapes: list[str] = []
    for index, row in enumerate(rows):
        y = 34 + 40 * index
        name = escape(row["name"]) + (" ✓" if row.get("chosen") else "")
        shapes.append(f'<text x="0" y="{y + 17}">{name}</text>')
        shapes.append(_bar(150, y, 220 * row["size_mb"] / largest, "old", f"{row['size_mb']:.0f} MB"))
        shapes.append(_bar(490, y, 220 * row["tokens_per_s"] / fastest, "new", f"{row['tokens_per_s']:.0f} tokens/s"))
    head = '<text class="soft" x="150" y="16">size</text><text class="soft" x="490" y="16">decode speed</text>'
    return _svg(880, 40 + 40 * len(rows), head + "".join(shapes))


def travelled(telemetry: Row) -> str:
    """A table of counts on both sides, by stream."""
    rows = [
        (stream, sides["produced"], sides["stored"], sides["produced"] - sides["stored"])
        for stream, sides in sorted(telemetry["streams"].items())
    ]
    facts = (
        f"{telemetry['bytes_mqtt']:,} bytes on the wire, {telemetry['bytes_per_record']:.0f} a record; "
        f"broker away for {telemetry['outage_s']:.0f} s; gaps {telemetry['gaps']}; doubled {telemetry['doubled']}."
    )
    return _table(("stream", "made on the device", "in the store", "missing"), rows) + f"<p>{facts}</p>"


def _update_words(update: Row) -> str:
    return (
        f"Every dot is one answer while the device took the update: {update['requests']} requests, "
        f"{update['failed']} failed. Grey is the old generation, green the new one."
    )


def timeline(update: Row) -> str:
    """Latency of every answer over time, with the update's steps as vertical lines."""
    dots = update["answers"]
    if not dots:
        return ""
    first, last = min(d[0] for d in dots), max(d[0] + d[1] for d in dots)
    slowest = max(d[1] for d in dots)

    def x(at_s: float) -> float:
        return 50 + 800 * (at_s - first) / max(0.001, last - first)

    shapes = ['<path class="axis" fill="none" d="M50 250H850M50 250V20"/>']
    shapes.append(f'<text class="soft" x="46" y="30" text-anchor="end">{slowest:.1f} s</text>')
    shapes.append('<text class="soft" x="46" y="254" text-anchor="end">0</text>')
    for at_s, took_s, generation in dots:
        kind = "new" if generation == update["generation"] else "old"
        shapes.append(f'<circle class="{kind}" cx="{x(at_s):.1f}" cy="{250 - 220 * took_s / slowest:.1f}" r="3"/>')
    for index, step in enumerate(s for s in update["steps"] if first <= s["at_s"] <= last):
        at = x(step["at_s"])
        shapes.append(f'<path class="mark" d="M{at:.1f} 20V250"/>')
        shapes.append(f'<text x="{at + 4:.1f}" y="{268 + 16 * (index % 4)}">{escape(step["name"])}</text>')
    return _svg(900, 330, "".join(shapes))


def moved(update: Row) -> str:
    """The bytes fetched beside the bytes of the whole bundle."""
    whole, fetched = update["bundle_bytes"], update["fetched_bytes"]
    return _svg(880, 90,
        _bar(120, 8, 500, "old", f"{whole / 1e6:.1f} MB") + '<text x="0" y="25">whole bundle</text>'
        + _bar(120, 48, 500 * fetched / whole, "new", f"{fetched / 1e6:.2f} MB, 1/{whole / max(1, fetched):.0f}")
        + '<text x="0" y="65">fetched</text>')  # fmt: skip


def tasks(rows: Sequence[Row]) -> str:
    return _table(("task", "examples", "for instance"), [(r["name"], r["size"], r["example"]) for r in rows])


def stages(rows: Sequence[Row]) -> str:
    return _table(("stage", "seconds"), [(row["title"], f"{row['seconds']:.1f}") for row in rows])


def _section(title: str, words: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(words)}</p><div class=scroll>{body}</div></section>"


def _svg(width: int, height: int, body: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">{body}</svg>'


def _bar(x: float, y: float, width: float, kind: str, label: str) -> str:
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{max(2.0, width):.1f}" height="24" rx="3"/>'
        f'<text x="{x + max(2.0, width) + 8:.1f}" y="{y + 17}">{escape(label)}</text>'
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(tag: str, cells: Sequence[object]) -> str:
        marked = (
            f"<{tag}{' class=n' if n else ''}>{escape(str(c))}</{tag}>" for c, n in zip(cells, numeric, strict=True)
        )
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>"


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) or str(cell).replace(",", "").replace(".", "", 1).lstrip("-").isdigit()
