"""Charts as inline SVG: bars, columns, and plots with axes. Their colours are classes of the pages' stylesheet."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 330
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 28, 40
EDGE = 0.15
"""Share of an axis at whose ends words stand on the inner side of their mark."""
ROOM = 0.25
"""Share of an axis from which on there is room for words at the left of a dot."""
Part = tuple[str, float]
"""A stretch of a bar or a column: the class that colours it, and how much it is."""


class Svg:
    """A picture, which a template takes as markup: whatever is put into it is escaped here."""

    def __init__(self, width: float, height: float, label: str, kind: str) -> None:
        self.root = ET.Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "class": kind})
        self.root.set("aria-label", label)

    def add(self, tag: str, text: str = "", *, within: ET.Element | None = None, **attributes: object) -> ET.Element:
        """Add a shape; a name's underscores are hyphens, `class_` is the class."""
        words = {name.strip("_").replace("_", "-"): _spell(value) for name, value in attributes.items()}
        made = ET.SubElement(self.root if within is None else within, tag, words)
        made.text = text or None
        return made

    def __html__(self) -> str:
        return ET.tostring(self.root, encoding="unicode")


def bar(
    label: str,
    parts: Sequence[Part],
    *,
    whole: float = 1.0,
    interval: tuple[float, float] | None = None,
    limit: float | None = None,
) -> Svg:
    """Return a bar of parts of `whole`, as wide as its place; with whiskers at an interval, or a line at a limit."""
    drawn = Svg(100, 10, label, "bar")
    drawn.root.set("preserveAspectRatio", "none")
    scale, start = 100 / whole if whole else 0.0, 0.0
    for kind, part in parts:
        drawn.add("rect", class_=kind, x=start, y=0, width=part * scale, height=10)
        start += part * scale
    if interval:
        low, high = (each * scale for each in interval)
        drawn.add("path", class_="whisker", d=f"M{low:.2f} 5H{high:.2f}M{low:.2f} 2v6M{high:.2f} 2v6")
    if limit is not None:
        drawn.add("path", class_="limit", d=f"M{limit * scale:.2f} 0V10")
    return drawn


def columns(label: str, rows: Sequence[tuple[str, Sequence[Part]]]) -> Svg:
    """Return one column for each row of words, which a browser shows, and parts, the first at the bottom."""
    highest = max((sum(part for _, part in parts) for _, parts in rows), default=0.0) or 1.0
    drawn = Svg(max(len(rows), 1), 100, label, "columns")
    drawn.root.set("preserveAspectRatio", "none")
    for at, (words, parts) in enumerate(rows):
        column = drawn.add("g")
        drawn.add("title", words, within=column)
        top = 100.0
        for kind, part in parts:
            high = 100 * part / highest
            top -= high
            drawn.add("rect", within=column, class_=kind, x=at + 0.1, y=top, width=0.8, height=high)
    return drawn


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One axis from `low` to `high`, with words at some values; logarithmic where factors are what counts."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def at(self, value: float) -> float:
        """Return where `value` lies, from 0 to 1; what lies outside is moved to the edge."""
        ends = (self.low, self.high, min(max(value, self.low), self.high))
        low, high, here = map(math.log10, ends) if self.is_log else ends
        return (here - low) / (high - low) if high > low else 0.0


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One point of a plot; `kind` is the class that colours it. Its words stand above it, or below at its left.

    Below is where a falling line leaves room, so that the words of two dots beside each other are apart.
    """

    x: float
    y: float
    kind: str
    words: str = ""
    is_below: bool = False


def plot(
    label: str,
    x: Scale,
    y: Scale,
    *,
    line: Sequence[tuple[float, float]] = (),
    dots: Sequence[Dot] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> Svg:
    """Return dots, a line and upright marks at some x, on two axes."""
    drawn = Svg(WIDTH, HEIGHT, label, "plot")
    floor = HEIGHT - BOTTOM

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x.at(value)

    def up(value: float) -> float:
        return floor - (floor - TOP) * y.at(value)

    for value, words in y.ticks:
        drawn.add("path", class_="grid", d=f"M{LEFT} {up(value):.1f}H{WIDTH - RIGHT}")
        drawn.add("text", words, x=LEFT - 8, y=up(value) + 5, text_anchor="end")
    for value, words in x.ticks:
        anchor = "end" if x.at(value) > 0.5 else "start"
        drawn.add("text", words, x=across(value), y=HEIGHT - 10, text_anchor=anchor)
    if line:
        points = " ".join(f"{across(one):.1f},{up(other):.1f}" for one, other in line)
        drawn.add("polyline", class_="line", points=points)
    for value, words in marks:
        drawn.add("path", class_="limit", d=f"M{across(value):.1f} {TOP}V{floor}")
        at = x.at(value)
        anchor = "start" if at < EDGE else "end" if at > 1 - EDGE else "middle"
        drawn.add("text", words, x=across(value), y=TOP - 8, text_anchor=anchor)
    for dot in dots:
        drawn.add("circle", class_=dot.kind, cx=across(dot.x), cy=up(dot.y), r=4)
        if dot.words:
            is_right = x.at(dot.x) < (ROOM if dot.is_below else 0.5)
            side, anchor = (9, "start") if is_right else (-9, "end")
            high = up(dot.y) + (20 if dot.is_below else -7)
            drawn.add("text", dot.words, x=across(dot.x) + side, y=high, text_anchor=anchor)
    return drawn


@dataclass(frozen=True, kw_only=True)
class Span:
    """A value and the interval around it, None where there is none; `kind` is the class that colours it."""

    words: str
    value: float
    low: float | None
    high: float | None
    kind: str


ROW, NAMES = 30, 220


def spans(label: str, x: Scale, rows: Sequence[Span], *, mark: float) -> Svg:
    """Return one row for each span, its words at the left, above one axis; an upright line stands at `mark`."""
    floor = TOP + ROW * len(rows)
    drawn = Svg(WIDTH, floor + BOTTOM, label, "plot")

    def across(value: float) -> float:
        return NAMES + (WIDTH - NAMES - RIGHT) * x.at(value)

    for value, words in x.ticks:
        drawn.add("path", class_="grid", d=f"M{across(value):.1f} {TOP}V{floor}")
        drawn.add("text", words, x=across(value), y=floor + 20, text_anchor="middle")
    drawn.add("path", class_="limit", d=f"M{across(mark):.1f} {TOP - 8}V{floor}")
    for at, row in enumerate(rows):
        middle = TOP + ROW * (at + 0.5)
        drawn.add("text", row.words, x=NAMES - 12, y=middle + 5, text_anchor="end")
        if row.low is not None and row.high is not None:
            low, high = across(row.low), across(row.high)
            ends = f"M{low:.1f} {middle - 5:.1f}v10M{high:.1f} {middle - 5:.1f}v10"
            drawn.add("path", class_="whisker", d=f"M{low:.1f} {middle:.1f}H{high:.1f}{ends}")
        drawn.add("circle", class_=row.kind, cx=across(row.value), cy=middle, r=5)
    return drawn


def _spell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
