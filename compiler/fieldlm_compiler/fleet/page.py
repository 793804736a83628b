"""Draw a fleet and one device as pages: filtered by their address, kept fresh by one script, nothing from elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import Self
from urllib.parse import quote, urlencode

import msgspec

from fieldlm.core import charts
from fieldlm.core.charts import Svg
from fieldlm.core.errors import InputError
from fieldlm.core.pages import render
from fieldlm.core.wording import counted
from fieldlm_compiler.fleet.view import DeviceRow, Event, FleetReport, GenerationStats, Selection

LIVE_S = 10
RANGES = {
    "1": "the last hour",
    "24": "the last day",
    "168": "the last 7 days",
    "720": "the last 30 days",
    "": "all time",
}
"""Hours back from now."""
SHOWN = 200
"""Devices on the page, those that need a look first; the rest is in `fieldlm fleet --json`."""
PARTS = (("waiting", "wait"), ("first token", "read"), ("the rest", "write"))


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a page's address asks for; the names are those of the filter's fields."""

    device: str = ""
    generation: str = ""
    text: str = ""
    hours: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Self:
        """Return what `query` asks for; raises InputError for a field or a range that there is not."""
        try:
            asked = msgspec.convert({name: value.strip()[:200] for name, value in query.items()}, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"{error}; the fields are {', '.join(cls.__struct_fields__)}") from error
        if asked.hours not in RANGES:
            known = ", ".join(filter(None, RANGES))
            raise InputError(f"hours is {asked.hours!r}; it is one of {known}, or empty for all time")
        return asked

    def selection(self) -> Selection:
        since_ms = round(time.time() * 1000 - float(self.hours) * 3_600_000) if self.hours else 0
        return Selection(device=self.device, generation=self.generation, text=self.text, since_ms=since_ms)

    @property
    def address(self) -> str:
        """The query of a page that shows the same time and generation."""
        kept = {name: value for name, value in (("generation", self.generation), ("hours", self.hours)) if value}
        return f"?{urlencode(kept)}" if kept else ""


def fleet_page(
    fleet: FleetReport,
    fleet_name: str,
    asked: Asked | None = None,
    generations: Sequence[GenerationStats] = (),
    *,
    tells_tasks: bool = False,
) -> str:
    """Return the page of all devices that were asked for; `generations` are those to choose from."""
    asked = asked or Asked()
    devices = fleet.devices
    sums = [sum(column) for column in zip(*(_times(device) for device in devices), strict=True)] or [0.0] * len(PARTS)
    speeds = sorted(device.tokens_per_s for device in devices if device.tokens_per_s is not None)
    sized = [device for device in devices if device.bytes is not None]
    total, records = sum(device.bytes or 0 for device in sized), sum(device.records for device in sized)
    ended = sum(fleet.outcomes.values())
    large = sum(device.large for device in devices)
    return draw(
        "fleet.html",
        "fieldlm fleet",
        fleet_name,
        fleet=fleet,
        tells_tasks=tells_tasks,
        tasks=[
            (
                t.name,
                t.generation[:12] or "–",
                f"{t.answers:,}",
                share(t.fine, t.answers),
                share(t.corrected, t.answers),
            )
            for t in fleet.tasks
        ],
        trend=_trend(fleet),
        trend_key=[("write", "no error"), ("wait", "corrected, or not liked"), ("fail", "with an error")],
        **_filter(asked, [each.generation for each in generations or fleet.generations], "/"),
        shown=sorted(devices, key=_needs_a_look)[:SHOWN],
        ready=sum(device.state == "ready" for device in devices),
        answers=sum(device.answers for device in devices),
        large=large,
        fine=sum(device.fine for device in devices),
        corrected=sum(device.corrected for device in devices),
        told=sum(device.told for device in devices),
        speed=speeds[len(speeds) // 2] if speeds else None,
        bytes=total if sized else None,
        came_in=f"came in, {total / records:.1f} a record" if records else "came in",
        time_bar=_time_bar(sums),
        time_key=[(kind, f"{name} {share(part, sum(sums))}") for (name, kind), part in zip(PARTS, sums, strict=True)],
        time_bars={device.device: _time_bar(_times(device)) for device in devices},
        outcomes=[(name, f"{count:,}", share(count, ended)) for name, count in fleet.outcomes.items()],
        generations=[
            (
                f"{g.generation[:12] or '–'} {g.model}",
                *(f"{count:,}" for count in (g.devices, g.answers)),
                *(share(count, g.answers) for count in (g.fine, g.corrected)),
                *([share(g.large, g.answers + g.large)] if large else []),
            )
            for g in fleet.generations
        ],
    )


def device_page(
    device: DeviceRow,
    events: Sequence[Event],
    answers: Sequence[tuple[float, float, float, bool]],
    asked: Asked | None = None,
    generations: Sequence[GenerationStats] = (),
) -> str:
    """Return the page of one device. `answers` are its newest ones: ms waiting, to the first token, after it, fine."""
    asked = asked or Asked()
    strip = [
        (
            f"{sum(times):.0f} ms",
            [(kind if is_fine else "fail", part) for part, (_, kind) in zip(times, PARTS, strict=True)],
        )
        for *times, is_fine in answers
    ]
    return draw(
        "device.html",
        device.device,
        f"{device.model} {device.runs(12)}",
        device=device,
        **_filter(asked, [each.generation for each in generations], f"/{quote(device.device, safe='')}"),
        events=list(reversed(events)),
        answers=len(answers),
        longest=f"{max((sum(times[:3]) for times in answers), default=0.0):,.0f}",
        strip=charts.columns("How long the last answers took", strip),
        time_key=[*((kind, name) for name, kind in PARTS), ("fail", "with an error")],
    )


def draw(template: str, title: str, about: str, **values: object) -> str:
    """Return a page of this room, with its title, what it is about, and when it was drawn."""
    now = clock(time.time_ns() // 1_000_000)
    words = {"share": share, "size": size, "clock": clock, "now": now}
    return render("fieldlm_compiler.fleet", template, title=title, about=about, **words, **values)


def _filter(asked: Asked, generations: Sequence[str], here: str) -> dict[str, object]:
    known: dict[str, None] = dict.fromkeys([*generations, *([asked.generation] if asked.generation else [])])
    return {
        "live_s": LIVE_S,
        "asked": asked,
        "here": here,
        "is_filtered": asked != Asked(),
        "choices": [("", "all"), *((name, name[:12]) for name in known if name)],
        "ranges": list(RANGES.items()),
    }


def _trend(fleet: FleetReport) -> Svg | None:
    """Return the answers over time, the stretches from first to last; none where there are fewer than two."""
    if len(fleet.trend) < 2:
        return None
    rows = [
        (
            (
                f"{clock(each.wall_ms)}: {counted(each.answers, 'answer')}, "
                f"{share(each.corrected, each.answers)} corrected"
            ),
            [
                ("write", max(0, each.fine - each.corrected)),
                ("wait", min(each.corrected, each.fine)),
                ("fail", each.answers - each.fine),
            ],
        )
        for each in fleet.trend
    ]
    return charts.columns(f"Answers from {clock(fleet.trend[0].wall_ms)} UTC on", rows)


def _times(device: DeviceRow) -> list[float]:
    return [device.queue_ms, device.prompt_ms, device.decode_ms]


def _time_bar(parts: Sequence[float]) -> Svg:
    kinds = [(kind, part) for part, (_, kind) in zip(parts, PARTS, strict=True)]
    return charts.bar("Where the time goes", kinds, whole=sum(parts))


def _needs_a_look(device: DeviceRow) -> tuple[bool, bool, bool, float, str]:
    fine = device.fine / device.answers if device.answers else 1.0
    return device.lost == 0, device.state == "ready", not device.failed, fine, device.device


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def size(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def clock(wall_ms: int | None) -> str:
    """Return a time in UTC; a clock that a device had set beyond all calendars has none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime((wall_ms or 0) / 1000)) if wall_ms else "–"
    except (ValueError, OverflowError, OSError):
        return "–"
