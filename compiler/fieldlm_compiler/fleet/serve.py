"""The pages of a store on 127.0.0.1: filtered by their address, drawn anew by one script, nothing from elsewhere."""

import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from fieldlm.core.errors import FieldlmError, InputError
from fieldlm.core.urls import host_name
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.sink import Sink
from fieldlm_compiler.fleet.page import Asked, device_page, draw, fleet_page
from fieldlm_compiler.fleet.view import FINE, FleetReport, Selection, TellTask, look, timeline, without_answers

HOST = "127.0.0.1"
TIMELINE = 200
FRESH_S = 2.0
"""A page that several browsers reload is computed once in that time."""
MOST_VIEWS = 16
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_ANSWERS = f"""
SELECT queue_ms, greatest(ttft_ms - queue_ms, 0) AS prompt_ms, greatest(duration_ms - ttft_ms, 0) AS decode_ms,
    outcome IN {FINE} AS is_fine
FROM records WHERE device = $1 AND kind = 'generation' AND wall_ms >= $2 AND ($3 = '' OR generation = $3)
ORDER BY wall_ms DESC, seq DESC LIMIT 120
"""


class Pages(ThreadingHTTPServer):
    """The pages of a store, for browsers on this machine alone."""

    daemon_threads = True

    def __init__(self, where: str, port: int, tell: TellTask | None = None) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(f"port {port} of {HOST} cannot be had: {error}; choose another with --port") from error
        self.where = where
        self.tell = tell
        self._lock = threading.Lock()
        self._views: dict[Asked, tuple[float, FleetReport]] = {}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    def draw(self, path: str, query: Mapping[str, str]) -> tuple[int, str]:
        """Return the status and the page at `path`; raises FieldlmError when the store cannot be read."""
        device = unquote(path.strip("/"))
        try:
            asked = Asked.read(query)
        except InputError as error:
            return 400, _message("This filter cannot be read", str(error))
        with self._lock, open_sink(self.where, read_only=True) as sink:
            known = self._view(sink, Asked())
            if not device:
                tells = self.tell is not None
                return 200, fleet_page(self._view(sink, asked), self.where, asked, known.generations, tells_tasks=tells)
            one = next((each for each in known.devices if each.device == device), None)
            if one is None:
                return 404, _message("No such device", f"This store knows no device that is called {device}.")
            seen = self._view(sink, Asked(device=device, generation=asked.generation, hours=asked.hours))
            here = next((each for each in seen.devices if each.device == device), None)
            chosen = asked.selection()
            events = timeline(sink, device, TIMELINE, chosen)
            return 200, device_page(
                here or without_answers(one), events, _answers(sink, device, chosen), asked, known.generations
            )

    def _view(self, sink: Sink, asked: Asked) -> FleetReport:
        nows = time.monotonic()
        self._views = {key: kept for key, kept in self._views.items() if nows - kept[0] <= FRESH_S}
        if asked not in self._views:
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            self._views[asked] = (time.monotonic(), look(sink, asked.selection(), self.tell))
        return self._views[asked][1]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Pages)
        if host_name(self.headers.get("host") or "") not in (HOST, "localhost"):
            # A page from elsewhere that got its own name to point here must not read the fleet.
            self._answer(403, _message("Another name", f"This is {self.server.url}."))
            return
        asked = urlsplit(self.path)
        if asked.path == "/live.js":
            self._answer(200, _script("live.js"), "text/javascript")
            return
        try:
            status, page = self.server.draw(asked.path, dict(parse_qsl(asked.query)))
        except FieldlmError as error:
            status, page = 503, _message("The store cannot be read", str(error))
        self._answer(status, page)

    do_HEAD = do_GET

    def _answer(self, status: int, page: str, kind: str = "text/html") -> None:
        body = page.encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("content-type", f"{kind}; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page is drawn anew every few seconds."""


def _message(title: str, words: str) -> str:
    return draw("message.html", title, "", words=words)


def _script(name: str) -> str:
    return files("fieldlm_compiler.fleet").joinpath("templates", name).read_text()


def _answers(sink: Sink, device: str, chosen: Selection) -> list[tuple[float, float, float, bool]]:
    rows = reversed(sink.query(_ANSWERS, (device, chosen.since_ms, chosen.generation)))
    return [(row["queue_ms"], row["prompt_ms"], row["decode_ms"], row["is_fine"]) for row in rows]
