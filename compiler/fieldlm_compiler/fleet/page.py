"""Draw a fleet and one device as pages that a browser reloads: self-contained, no script, nothing from elsewhere."""

import time
from collections.abc import Sequence

from fieldlm.core import charts
from fieldlm.core.charts import Svg
from fieldlm.core.pages import render
from fieldlm_compiler.fleet.view import DeviceRow, Event, FleetReport

RELOAD_S = 30
SHOWN = 200
"""Devices on the page, those that need a look first; the rest is in `fieldlm fleet --json`."""
PARTS = (("waiting", "wait"), ("first token", "read"), ("the rest", "write"))


def fleet_page(fleet: FleetReport, fleet_name: str) -> str:
    """Return the page of all devices."""
    devices = fleet.devices
    sums = [sum(column) for column in zip(*(_times(device) for device in devices), strict=True)] or [0.0] * len(PARTS)
    speeds = sorted(device.tokens_per_s for device in devices if device.tokens_per_s is not None)
    sized = [device for device in devices if device.bytes is not None]
    total, records = sum(device.bytes or 0 for device in sized), sum(device.records for device in sized)
    ended = sum(fleet.outcomes.values())
    return draw(
        "fleet.html",
        "fieldlm fleet",
        fleet_name,
        reload_s=RELOAD_S,
        fleet=fleet,
        shown=sorted(devices, key=_needs_a_look)[:SHOWN],
        ready=sum(device.state == "ready" for device in devices),
        answers=sum(device.answers for device in devices),
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
            )
            for g in fleet.generations
        ],
    )


def device_page(device: DeviceRow, events: Sequence[Event], answers: Sequence[tuple[float, float, float, bool]]) -> str:
    """Return the page of one device. `answers` are its newest ones: ms waiting, to the first token, after it, fine."""
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
        f"{device.model} {device.generation[:12]}",
        reload_s=RELOAD_S,
        device=device,
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


def _times(device: DeviceRow) -> list[float]:
    return [device.queue_ms, device.prompt_ms, device.decode_ms]


def _time_bar(parts: Sequence[float]) -> Svg:
    kinds = [(kind, part) for part, (_, kind) in zip(parts, PARTS, strict=True)]
    return charts.bar("Where the time goes", kinds, whole=sum(parts))


def _needs_a_look(device: DeviceRow) -> tuple[bool, bool, float, str]:
    fine = device.fine / device.answers if device.answers else 1.0
    return device.lost == 0, device.state == "ready", fine, device.device


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
