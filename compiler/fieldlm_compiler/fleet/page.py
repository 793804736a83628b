"""Draw a fleet and one device as pages that a browser reloads: self-contained, no script, nothing from elsewhere."""

import time
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

from fieldlm_compiler.fleet.view import DeviceRow, Event, FleetReport

RELOAD_S = 30
SHOWN = 200
"""Devices on the page, those that need a look first; the rest is in `fieldlm fleet --json`."""
PARTS = (("queue_ms", "waiting", "wait"), ("prompt_ms", "first token", "read"), ("decode_ms", "the rest", "write"))
STYLE = """
:root { color-scheme: light dark; --ground: #f5f6f4; --card: #fff; --ink: #16201b; --soft: #55625b; --line: #dbe0dc;
  --accent: #0b6b4b; --bad: #a3261b; --wait: #b98a2f; --read: #3d6fa8; --write: #2f8f6b }
@media (prefers-color-scheme: dark) { :root { --ground: #0f1512; --card: #18201c; --ink: #e9efeb; --soft: #a0aea6;
  --line: #2b3630; --accent: #5fd3a4; --bad: #ff8f80; --wait: #f0c05a; --read: #7fb0ea; --write: #5fd3a4 } }
* { box-sizing: border-box } body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums }
main { max-width: 84rem; margin: 0 auto; padding: 1.4rem }
header { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; margin-bottom: 1rem }
h1 { font-size: 1.5rem; margin: 0; letter-spacing: -.02em; overflow-wrap: anywhere }
h2 { font-size: 1rem; margin: 0 0 .7rem } header span, .soft { color: var(--soft) } a { color: var(--accent) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem }
.tile, section { min-width: 0; background: var(--card); border: 1px solid var(--line); border-radius: 1rem;
  padding: .9rem 1.1rem }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; letter-spacing: -.02em }
.tile span { color: var(--soft) }
.good { color: var(--accent) } .bad { color: var(--bad) }
section.below { margin-top: .8rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .8rem;
  margin: .8rem 0 }
.bar { display: flex; height: .8rem; border-radius: .4rem; overflow: hidden; background: var(--line); min-width: 6rem }
.bar i { display: block; height: 100% } .wait { background: var(--wait) } .read { background: var(--read) }
.write { background: var(--write) } .fail { background: var(--bad) }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .7rem 0 0; color: var(--soft) }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .4rem }
table { border-collapse: collapse; width: 100% } th { text-align: left; color: var(--soft); font-weight: 500 }
th, td { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: middle;
  overflow-wrap: anywhere }
tr:last-child td { border-bottom: 0 } .number { text-align: right; white-space: nowrap }
.strip { display: flex; align-items: flex-end; gap: 1px; height: 9rem; overflow: hidden }
.strip div { flex: 1 1 2px; min-width: 2px; display: flex; flex-direction: column-reverse; justify-content: flex-start }
@media (max-width: 46rem) { main { padding: .9rem } thead { display: none }
  tr { display: grid; grid-template-columns: 1fr 1fr; gap: .1rem 1rem; padding: .7rem 0;
    border-bottom: 1px solid var(--line) }
  tr:last-child { border-bottom: 0 } td { border: 0; padding: 0; display: flex; justify-content: space-between;
    gap: .6rem; text-align: right; white-space: normal; min-width: 0 }
  td[data-is]::before { content: attr(data-is); color: var(--soft) }
  td.wide { grid-column: 1 / -1; text-align: left } td.wide .bar { flex: 1 } .tile b { font-size: 1.35rem }
  .tiles { grid-template-columns: 1fr 1fr } }
"""


def fleet_page(fleet: FleetReport, fleet_name: str) -> str:
    """Return the page of all devices."""
    shown = sorted(fleet.devices, key=_needs_a_look)[:SHOWN]
    rest = len(fleet.devices) - len(shown)
    more = f'<p class="soft">and {rest:,} more: fieldlm fleet --json</p>' if rest else ""
    generations = [
        (
            f"<td class=wide>{escape(g.generation[:12] or '–')} {escape(g.model)}</td>"
            f"{_cell('devices', f'{g.devices:,}')}{_cell('answers', f'{g.answers:,}')}"
            f"{_cell('as asked', share(g.fine, g.answers))}"
        )
        for g in fleet.generations
    ]
    known = _table(("generation", "#devices", "#answers", "#as asked"), generations)
    devices = _table(_HEAD, [_row(device) for device in shown])
    parts = (
        f"<div class=tiles>{''.join(_tiles(fleet))}</div>"
        f"<div class=pair><section><h2>Where the time goes</h2>{_fleet_bar(fleet)}</section>"
        f"<section><h2>How answers ended</h2>{_outcomes(fleet.outcomes)}</section></div>"
        f"<section><h2>Generations</h2>{known}</section>"
        f"<section class=below><h2>Devices</h2>{devices}{more}</section>"
    )
    return _page("fieldlm fleet", fleet_name, parts)


_HEAD = ("device", "state", "generation", "#answers", "#as asked", "#tok/s", "#first token", "where time goes", "#lost",
         "#bytes", "last heard")  # fmt: skip


def _row(device: DeviceRow) -> str:
    ttft = device.ttft_p50_ms
    return (
        f'<td class=wide><a href="/{quote(device.device)}">{escape(device.device)}</a></td>'
        f"<td data-is=state{'' if device.state == 'ready' else ' class=bad'}>{escape(device.state)}</td>"
        f"<td data-is=gen>{escape(device.generation[:8] or '–')}</td>"
        f"{_cell('answers', f'{device.answers:,}')}{_cell('as asked', share(device.fine, device.answers))}"
        f"{_cell('tok/s', '–' if device.tokens_per_s is None else f'{device.tokens_per_s:.1f}')}"
        f"{_cell('first token', '–' if ttft is None else f'{ttft:.0f} ms')}"
        f"<td class=wide>{_bar(_times(device))}</td>"
        f"{_cell('lost', f'{device.lost:,}', 'bad' if device.lost else 'good')}"
        f"{_cell('bytes', size(device.bytes))}{_cell('heard', clock(device.last_ms))}"
    )


def device_page(device: DeviceRow, events: Sequence[Event], answers: Sequence[tuple[float, float, float, bool]]) -> str:
    """Return the page of one device. `answers` are its newest ones: ms waiting, to the first token, after it, fine."""
    tiles = (
        _tile(device.state, "state", "good" if device.state == "ready" else "bad"),
        _tile(share(device.fine, device.answers), f"of {device.answers:,} answers as asked"),
        _tile("–" if device.tokens_per_s is None else f"{device.tokens_per_s:.1f}", "tokens a second"),
        _tile("–" if device.ttft_p95_ms is None else f"{device.ttft_p95_ms:.0f} ms", "first token, 95th percentile"),
        _tile(f"{device.lost:,}", f"lost, {device.told:,} dropped and told", "bad" if device.lost else "good"),
    )
    longest = max((sum(times[:3]) for times in answers), default=0.0) or 1.0
    strip = "".join(
        f'<div title="{sum(times):.0f} ms">'
        + "".join(
            f'<i class={kind if is_fine else "fail"} style="height:{part / longest * 9:.3f}rem"></i>'
            for part, (_, _, kind) in zip(times, PARTS, strict=True)
        )
        + "</div>"
        for *times, is_fine in answers
    )
    rows = [
        f"<td>{clock(e.wall_ms)}{'' if e.clock_ok else ' ?'}</td><td>{e.kind}</td>"
        f"<td class='wide{'' if e.is_fine else ' bad'}'>{escape(e.text)}</td>"
        f"{_cell('number', f'{e.stream} {e.seq}')}"
        for e in reversed(events)
    ]
    body = (
        f"<div class=tiles>{''.join(tiles)}</div><div class=pair><section><h2>The last {len(answers)} answers, "
        f"up to {longest:,.0f} ms</h2><div class=strip>{strip}</div>{_key()}</section></div>"
        f"<section><h2>Timeline</h2>{_table(('when', 'what', '', '#number'), rows)}"
        '<p class="soft">? marks a time of a clock that was not set.</p></section>'
    )
    about = f"{device.model} {device.generation[:12]}"
    return _page(device.device, about, f'<p><a href="/">all devices</a></p>{body}')


def _tiles(fleet: FleetReport) -> Iterable[str]:
    devices = fleet.devices
    ready = sum(device.state == "ready" for device in devices)
    answers, fine = sum(d.answers for d in devices), sum(d.fine for d in devices)
    speeds = sorted(device.tokens_per_s for device in devices if device.tokens_per_s is not None)
    sizes = [device for device in devices if device.bytes is not None]
    records = sum(device.records for device in sizes)
    told = sum(device.told for device in devices)
    yield _tile(f"{len(devices):,}", f"devices, {ready:,} ready", "good" if ready == len(devices) else "")
    yield _tile(f"{answers:,}", f"answers, {share(fine, answers)} as asked")
    yield _tile(f"{speeds[len(speeds) // 2]:.1f}" if speeds else "–", "tokens a second, median")
    yield _tile(f"{fleet.lost:,}", f"records lost, {told:,} dropped and told", "bad" if fleet.lost else "good")
    total = sum(device.bytes or 0 for device in sizes)
    each = f", {total / records:.1f} a record" if records else ""
    yield _tile(size(total if sizes else None), f"came in{each}")


def _tile(figure: str, words: str, kind: str = "") -> str:
    return f'<div class=tile><b class="{kind}">{escape(figure)}</b><span>{escape(words)}</span></div>'


def _fleet_bar(fleet: FleetReport) -> str:
    sums = [sum(getattr(device, name) for device in fleet.devices) for name, *_ in PARTS]
    return _bar(sums) + _key([share(part, sum(sums)) for part in sums])


def _key(figures: Sequence[str] = ("", "", "")) -> str:
    words = (f"<span><i class={kind}></i>{name} {figure}</span>" for (_, name, kind), figure in
             zip(PARTS, figures, strict=True))  # fmt: skip
    return f"<p class=key>{''.join(words)}</p>"


def _outcomes(outcomes: dict[str, int]) -> str:
    total = sum(outcomes.values())
    rows = [
        f"<td class=wide>{escape(name)}</td>{_cell('answers', f'{n:,}')}{_cell('share', share(n, total))}"
        for name, n in outcomes.items()
    ]
    return _table(("outcome", "#answers", "#share"), rows)


def _bar(parts: Sequence[float]) -> str:
    total = sum(parts)
    if not total:
        return "<div class=bar></div>"
    inner = (f'<i class={kind} style="width:{part / total * 100:.2f}%"></i>' for part, (*_, kind) in
             zip(parts, PARTS, strict=True))  # fmt: skip
    return f"<div class=bar>{''.join(inner)}</div>"


def _times(device: DeviceRow) -> list[float]:
    return [device.queue_ms, device.prompt_ms, device.decode_ms]


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    if not rows:
        return '<p class="soft">nothing yet</p>'
    cells = "".join(f"<th{' class=number' if name.startswith('#') else ''}>{name.lstrip('#')}</th>" for name in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


def _cell(name: str, text: str, kind: str = "") -> str:
    return f'<td class="number {kind}" data-is="{name}">{escape(text)}</td>'


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


def _page(title: str, about: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{RELOAD_S}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><main><header><h1>{escape(title)}</h1><span>{escape(about)}</span>"
        f"<span>{clock(time.time_ns() // 1_000_000)} UTC</span></header>{body}</main></html>\n"
    )
