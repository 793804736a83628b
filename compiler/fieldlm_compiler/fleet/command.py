"""`fieldlm fleet`: a table of all devices, the timeline of one, the same as pages on 127.0.0.1, or an export."""

import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import FieldlmError, InputError
from fieldlm.core.urls import host_name
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.sink import Sink
from fieldlm_compiler.fleet.page import clock, device_page, draw, fleet_page, share, size
from fieldlm_compiler.fleet.view import FINE, DeviceRow, Event, FleetReport, look, timeline

HOST = "127.0.0.1"
TIMELINE = 200
FRESH_S = 2.0
"""A page that several browsers reload is computed once in that time."""
HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_ANSWERS = """
SELECT queue_ms, greatest(ttft_ms - queue_ms, 0) AS prompt_ms, greatest(duration_ms - ttft_ms, 0) AS decode_ms, outcome
FROM records WHERE device = ? AND kind = 'generation' ORDER BY wall_ms DESC, seq DESC LIMIT 120
"""


class Pages(ThreadingHTTPServer):
    """The pages of a store, for browsers on this machine alone."""

    daemon_threads = True

    def __init__(self, where: str, port: int) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(f"port {port} of {HOST} cannot be had: {error}; choose another with --port") from error
        self.where = where
        self._lock = threading.Lock()
        self._fleet: tuple[float, FleetReport] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    def draw(self, path: str) -> str:
        """Return the page at `path`; raises InputError when there is none."""
        device = unquote(path.strip("/"))
        with self._lock, open_sink(self.where, read_only=True) as sink:
            if self._fleet is None or time.monotonic() - self._fleet[0] > FRESH_S:
                self._fleet = (time.monotonic(), look(sink))
            fleet = self._fleet[1]
            if not device:
                return fleet_page(fleet, self.where)
            events = timeline(sink, device, TIMELINE)
            one = next((each for each in fleet.devices if each.device == device), None)
            if one is None:
                raise InputError(f"{device} has just been heard of; try again")
            return device_page(one, events, _answers(sink, device))


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Pages)
        if host_name(self.headers.get("host") or "") not in (HOST, "localhost"):
            # A page from elsewhere that got its own name to point here must not read the fleet.
            self._answer(403, f"this is {self.server.url}\n")
            return
        try:
            self._answer(200, self.server.draw(urlsplit(self.path).path))
        except FieldlmError as error:
            self._answer(404, draw("message.html", str(error), ""))

    def _answer(self, status: int, page: str) -> None:
        body = page.encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page reloads every few seconds."""


def _answers(sink: Sink, device: str) -> list[tuple[float, float, float, bool]]:
    rows = reversed(sink.query(_ANSWERS, (device,)))
    return [(row["queue_ms"], row["prompt_ms"], row["decode_ms"], row["outcome"] in FINE) for row in rows]


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
    parser.add_argument("--otlp", metavar="URL", help="send answers as spans to an OTLP receiver, http://HOST:4318")
    parser.add_argument("--since-h", type=options.real(0), default=24.0, help="of --otlp: no answers older than this")
    args = parser.parse_args(argv)
    if args.last < 1:
        raise InputError(f"--last {args.last} shows nothing; write 1 or more")
    if args.serve:
        return _serve(args.store, args.port, as_json=args.json)
    if args.otlp:
        return _export(args.store, args.otlp, args.since_h, as_json=args.json)
    with open_sink(args.store, read_only=True) as sink:
        if args.device:
            events = timeline(sink, args.device, args.last)
            terminal.show(msgspec.to_builtins(events), describe_events(events), as_json=args.json)
            return 0
        fleet = look(sink)
    terminal.show(msgspec.to_builtins(fleet) | {"lost": fleet.lost}, describe(fleet), as_json=args.json)
    return 1 if fleet.lost else 0


def _export(where: str, url: str, since_h: float, *, as_json: bool) -> int:
    from fieldlm_compiler.fleet.otlp import export

    with open_sink(where, read_only=True) as sink:
        sent, rejected = export(sink, url, since_ms=round((time.time() - since_h * 3600) * 1000))
    text = f"{sent:,} spans sent to {url}, {rejected:,} rejected"
    terminal.show({"sent": sent, "rejected": rejected}, text, as_json=as_json)
    return 1 if rejected else 0


def _serve(where: str, port: int, *, as_json: bool) -> int:
    with open_sink(where, read_only=True):
        pass
    with Pages(where, port) as pages:
        terminal.show({"url": pages.url}, f"the fleet of {where} is at {pages.url}, stop with Ctrl-C", as_json=as_json)
        try:
            pages.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def describe(fleet: FleetReport) -> str:
    """Return the fleet as a table for a terminal, and its sums below."""
    head = ("device", "state", "generation", "answers", "no error", "corrected", "tok/s", "first token",
            "waiting", "reading", "writing", "lost", "bytes", "last heard")  # fmt: skip
    answers, fine = sum(d.answers for d in fleet.devices), sum(d.fine for d in fleet.devices)
    corrected = sum(device.corrected for device in fleet.devices)
    outcomes = ", ".join(f"{count:,} {name}" for name, count in fleet.outcomes.items())
    told = sum(device.told for device in fleet.devices)
    return (
        f"{terminal.table([_cells(device) for device in fleet.devices], head)}\n\n"
        f"{len(fleet.devices):,} devices, {answers:,} answers, {share(fine, answers)} without an error "
        f"({outcomes or 'none'}), {share(corrected, answers)} corrected by people or not liked\n"
        f"{fleet.lost:,} records lost, {told:,} dropped and told"
    )


def _cells(device: DeviceRow) -> tuple[str, ...]:
    spent = device.queue_ms + device.prompt_ms + device.decode_ms
    ttft, speed = device.ttft_p50_ms, device.tokens_per_s
    parts = (share(part, spent) for part in (device.queue_ms, device.prompt_ms, device.decode_ms))
    return (
        device.device, device.state, device.generation[:8] or "–", f"{device.answers:,}",
        share(device.fine, device.answers), share(device.corrected, device.answers),
        "–" if speed is None else f"{speed:.1f}", "–" if ttft is None else f"{ttft:.0f} ms",
        *parts, f"{device.lost:,}", size(device.bytes), clock(device.last_ms),
    )  # fmt: skip


def describe_events(events: Sequence[Event]) -> str:
    rows = [(clock(e.wall_ms) + ("" if e.clock_ok else " ?"), e.kind, f"{e.stream} {e.seq}", e.text) for e in events]
    return terminal.table(rows, ("when", "what", "number", ""))
