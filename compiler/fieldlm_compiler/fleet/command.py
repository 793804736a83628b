"""`fieldlm fleet`: a table of all devices, the timeline of one, the same as pages on 127.0.0.1, or an export."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError, NotFoundError
from fieldlm.core.logs import logger
from fieldlm.core.urls import shown
from fieldlm.core.wording import counted
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.fleet.page import clock, share, size
from fieldlm_compiler.fleet.request_tasks import tell_by
from fieldlm_compiler.fleet.serve import HOST, Pages
from fieldlm_compiler.fleet.view import DeviceRow, Event, FleetReport, TellTask, look, timeline

log = logger(__name__)

LOOK_S = 1.0
"""How often it is looked for a store that is not there yet."""
_sleep = time.sleep


def main(argv: Sequence[str]) -> int:
    """Show what a fleet is doing."""
    parser = terminal.parser(
        "fleet",
        "Show what a fleet is doing, out of the store of `fieldlm collect`.",
        "fieldlm fleet --store store",
        "fieldlm fleet --store store --serve",
    )
    parser.add_argument("device", nargs="?", help="show this device's own timeline")
    parser.add_argument("--store", required=True, metavar="FOLDER|delta:URI", help="where records are kept")
    parser.add_argument("--last", type=options.whole(1), default=50, help="records of a timeline")
    parser.add_argument("--serve", action="store_true", help=f"show it as a page on {HOST} until Ctrl-C")
    parser.add_argument(
        "--port", type=options.whole(*options.PORT), default=8095, help="of --serve; 0 takes a free one"
    )
    parser.add_argument(
        "--router", type=Path, metavar="FILE", help="router.npz of `cluster` or `round`: quality by task as well"
    )
    parser.add_argument("--otlp", metavar="URL", help="send answers as spans to an OTLP receiver, http://HOST:4318")
    parser.add_argument("--since-h", type=options.real(0), default=24.0, help="of --otlp: no answers older than this")
    args = parser.parse_args(argv)
    if args.last < 1:
        raise InputError(f"--last {args.last} shows nothing; write 1 or more")
    tell = tell_by(args.router) if args.router else None
    if args.serve:
        return _serve(args.store, args.port, tell, as_json=args.json)
    if args.otlp:
        return _export(args.store, args.otlp, args.since_h, as_json=args.json)
    with open_sink(args.store, read_only=True) as sink:
        if args.device:
            events = timeline(sink, args.device, args.last)
            terminal.show(msgspec.to_builtins(events), describe_events(events), as_json=args.json)
            return 0
        fleet = look(sink, tell=tell)
    terminal.show(msgspec.to_builtins(fleet) | {"lost": fleet.lost}, describe(fleet), as_json=args.json)
    return 1 if fleet.lost else 0


def _export(where: str, url: str, since_h: float, *, as_json: bool) -> int:
    from fieldlm_compiler.fleet.otlp import export

    with open_sink(where, read_only=True) as sink:
        sent, rejected = export(sink, url, since_ms=round((time.time() - since_h * 3600) * 1000))
    text = f"{sent:,} spans sent to {shown(url)}, {rejected:,} rejected"
    terminal.show({"sent": sent, "rejected": rejected}, text, as_json=as_json)
    return 1 if rejected else 0


def _serve(where: str, port: int, tell: TellTask | None, *, as_json: bool) -> int:
    try:
        _wait_for(where)
        with Pages(where, port, tell) as pages:
            said = f"the fleet of {where} is at {pages.url}, stop with Ctrl-C"
            terminal.show({"url": pages.url}, said, as_json=as_json)
            pages.serve_forever()
    except KeyboardInterrupt:
        return 0
    return 0


def _wait_for(where: str) -> None:
    """Return as soon as there is a store: who collects may have been started at the same time."""
    is_told = False
    while not _is_there(where):
        if not is_told:
            log.info(f"  {where} is no store yet, stop with Ctrl-C; waiting for: fieldlm collect --store {where}")
        is_told = True
        _sleep(LOOK_S)


def _is_there(where: str) -> bool:
    database = Path(where) / "store.db"
    if database.is_file() and not database.stat().st_size:
        return False  # in a writer's first moment, who must have it alone
    try:
        with open_sink(where, read_only=True):
            return True
    except NotFoundError:
        if Path(where).is_file():
            raise
        return False


def describe(fleet: FleetReport) -> str:
    """Return the fleet as a table for a terminal, and its sums below."""
    head = ("device", "state", "generation", "answers", "no error", "corrected", "tok/s", "first token",
            "waiting", "reading", "writing", "lost", "bytes", "last heard")  # fmt: skip
    answers, fine = sum(d.answers for d in fleet.devices), sum(d.fine for d in fleet.devices)
    corrected = sum(device.corrected for device in fleet.devices)
    outcomes = ", ".join(f"{count:,} {name}" for name, count in fleet.outcomes.items())
    told = sum(device.told for device in fleet.devices)
    large = sum(device.large for device in fleet.devices)
    handed = f"; a large model answered {large:,} more" if large else ""
    rows = [(t.name, t.generation[:8], f"{t.answers:,}", share(t.fine, t.answers), share(t.corrected, t.answers))
            for t in fleet.tasks]  # fmt: skip
    tasks = f"{terminal.table(rows, ('task', 'generation', 'answers', 'no error', 'corrected'))}\n\n" if rows else ""
    return (
        f"{terminal.table([_cells(device) for device in fleet.devices], head)}\n\n{tasks}"
        f"{counted(len(fleet.devices), 'device')}, {counted(answers, 'answer')}, "
        f"{share(fine, answers)} without an error "
        f"({outcomes or 'none'}), {share(corrected, answers)} corrected by people or not liked{handed}\n"
        f"{counted(fleet.lost, 'record')} lost, {told:,} dropped and told"
    )


def _cells(device: DeviceRow) -> tuple[str, ...]:
    spent = device.queue_ms + device.prompt_ms + device.decode_ms
    ttft, speed = device.ttft_p50_ms, device.tokens_per_s
    parts = (share(part, spent) for part in (device.queue_ms, device.prompt_ms, device.decode_ms))
    return (
        device.device, device.condition, device.runs(8), f"{device.answers:,}",
        share(device.fine, device.answers), share(device.corrected, device.answers),
        "–" if speed is None else f"{speed:.1f}", "–" if ttft is None else f"{ttft:.0f} ms",
        *parts, f"{device.lost:,}", size(device.bytes), clock(device.last_ms),
    )  # fmt: skip


def describe_events(events: Sequence[Event]) -> str:
    rows = [(clock(e.wall_ms) + ("" if e.clock_ok else " ?"), e.kind, f"{e.stream} {e.seq}", e.text) for e in events]
    return terminal.table(rows, ("when", "what", "number", ""))
