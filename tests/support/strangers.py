"""Neighbours on a network that share nothing of use, or unwillingly."""

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from fieldlm.blobs.partial_blob import CLAIMED
from fieldlm.core.files import CHUNK_BYTES


class Trickle(BaseHTTPRequestHandler):
    """Promises everything, and sends a byte now and then."""

    asked = 0

    def do_GET(self) -> None:
        is_map = self.path.startswith("/maps/")
        self.send_response(200 if is_map else 206)
        self.send_header("Content-Length", "1" if is_map else str(CHUNK_BYTES))
        self.end_headers()
        if is_map:
            self.wfile.write(b"*")
            return
        type(self).asked += 1
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.2)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


class Claimer(BaseHTTPRequestHandler):
    """Says that it fetches everything, and fetches nothing."""

    def do_GET(self) -> None:
        body = CLAIMED * 25
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


class Busy(BaseHTTPRequestHandler):
    """Has everything, and no time."""

    def do_GET(self) -> None:
        is_map = self.path.startswith("/maps/")
        self.send_response(200 if is_map else 503)
        self.send_header("Content-Length", "1" if is_map else "0")
        self.end_headers()
        if is_map:
            self.wfile.write(b"*")

    def log_message(self, format: str, *args: object) -> None: ...


class Fickle(BaseHTTPRequestHandler):
    """Fetches everything, to believe its map, which is another one each time."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        body = bytearray(CLAIMED * 25)
        body[self.asked % 25] = 0
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


class Babbler(BaseHTTPRequestHandler):
    """Answers every question with more than anybody can hold."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/maps/") else 206)
        self.send_header("Content-Length", str(1 << 50))
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"\1" * CHUNK_BYTES)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


class Mumbler(BaseHTTPRequestHandler):
    """Never comes to the end of its headers."""

    def do_GET(self) -> None:
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            while True:
                self.wfile.write(b"x")
                time.sleep(0.2)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


class Elsewhere(BaseHTTPRequestHandler):
    """Sends everybody to another address."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def dozing(folder: Path) -> type[BaseHTTPRequestHandler]:
    """Return a neighbour that has all and hands it out slowly, and that answers one look in three."""

    class Dozing(BaseHTTPRequestHandler):
        looks = 0

        def do_GET(self) -> None:
            if self.path.startswith("/maps/"):
                type(self).looks += 1
                if self.looks % 3 != 1:
                    self.close_connection = True
                    return
                status, body = 200, b"*"
            else:
                time.sleep(0.6)
                first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                status, body = 206, (folder / self.path.lstrip("/")).read_bytes()[first : last + 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    return Dozing
