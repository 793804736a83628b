"""The blob server: hand blobs, whole or as far as they have come, to other devices on the same network.

    GET /blobs/sha256/ab/abcd…   bytes of a blob, by Range; of one that is on its way, the chunks that have arrived
    GET /maps/abcd…              which chunks have arrived, one byte each; `*` for all

There is no list: who asks has to know a digest, and digests stand in signed releases. Nothing is taken from anybody.
"""

import contextlib
import math
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fieldlm.blobs.partial_blob import index_path, map_path, part_path
from fieldlm.core.tasks import Tasks
from fieldlm.formats.release import ENTRY_BYTES, MAX_CHUNK_BYTES, blob_path
from fieldlm.network.fair_pool import first_to_go, network_of

AT_A_TIME = 16  # answers; who comes then is told to come again
MOST, MOST_OF_ONE = 64, 16  # connections, of all and of one machine
IDLE_S = 30.0  # from one answer to the whole head of the next request
LOOK_S = 0.5  # between two looks whose time is over, where somebody has a connection
LEAST_BYTES_S = 16 << 10  # slower than this, a reader is cut off
WHOLE = b"*"
_BLOB = re.compile(r"/blobs/sha256/[0-9a-f]{2}/([0-9a-f]{64})")
_MAP = re.compile(r"/maps/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})")


class BlobServer:
    """Serves the blobs of a state folder from `start` to `stop`."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0, tasks: Tasks | None = None) -> None:
        self._tasks = Tasks(tasks)
        self._server = _Server((host, port), partial(_Handler, folder=folder), self._tasks)
        self.port: int = self._server.server_address[1]

    def start(self) -> None:
        """Begin to answer."""
        self._tasks.start("share", self._server.serve, restarts=True)

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.end()
        self._server.server_close()
        self._server.hang_up()
        self._tasks.close()
        self._server.forget()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    timeout = 0  # who is to be accepted has come already

    def __init__(self, address: tuple[str, int], handler: Any, tasks: Tasks) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)
        self.seats = threading.BoundedSemaphore(AT_A_TIME)
        self._tasks = tasks
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._woken, self._waker = socket.socketpair()
        self._open = dict[Any, tuple[str, float]]()
        """Of each connection whose it is, and when it is cut off."""

    def serve(self) -> None:
        """Answer until `end`. The thread sleeps while nobody is connected, where `serve_forever` would look around."""
        with selectors.DefaultSelector() as news:
            news.register(self, selectors.EVENT_READ)
            news.register(self._woken, selectors.EVENT_READ)
            while not self._is_over.is_set():
                here = news.select(LOOK_S if self._open else None)
                if any(key.fileobj is self for key, _ in here) and not self._is_over.is_set():
                    self.handle_request()
                self.service_actions()

    def end(self) -> None:
        """Have `serve` return. From any thread, before it began as well."""
        self._is_over.set()
        self._waker.send(b".")

    def forget(self) -> None:
        """Close what woke `serve`, which has returned."""
        self._woken.close()
        self._waker.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a task of its own; what ends there ends alone.

        Who holds too many gets no more. Where all together do, the one makes room whose time is over first.
        """
        peer = network_of(str(client_address[0]))
        with self._lock:
            is_greedy = sum(whose == peer for whose, _ in self._open.values()) >= MOST_OF_ONE
            if not is_greedy:
                held = [(one, whose, end_s) for one, (whose, end_s) in self._open.items()]
                if len(held) >= MOST and (gone := first_to_go(held)):
                    del self._open[gone]
                    _end(gone)
                self._open[request] = (peer, time.monotonic() + IDLE_S)
        if is_greedy:
            self.shutdown_request(request)
        else:
            self._tasks.start("share-answer", lambda: self.process_request_thread(request, client_address))

    def close_request(self, request: Any) -> None:
        """Close it, and have room for another one."""
        with self._lock:
            self._open.pop(request, None)
        super().close_request(request)

    def allow(self, request: Any, seconds: float) -> None:
        """Let a connection live for so long from now on."""
        with self._lock:
            if request in self._open:
                self._open[request] = (self._open[request][0], time.monotonic() + seconds)

    def service_actions(self) -> None:
        """Cut off whose time is over: a socket's own timeout begins anew with every byte."""
        self._cut_off(time.monotonic())

    def hang_up(self) -> None:
        """End the connections that wait for their next request, and those that are being answered."""
        self._cut_off(math.inf)

    def _cut_off(self, now_s: float) -> None:
        with self._lock:
            for request, (_, end_s) in self._open.items():
                if now_s > end_s:
                    _end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a neighbour that went away is no news."""


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "fieldlm"
    sys_version = ""
    timeout = IDLE_S

    def __init__(self, *args: Any, folder: Path) -> None:
        self._folder = folder
        super().__init__(*args)

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        if not self.server.seats.acquire(blocking=False):
            self._say(503)
            return
        try:
            self._answer()
        except OSError:
            self.close_connection = True
        finally:
            self.server.seats.release()
            self.server.allow(self.connection, IDLE_S)

    def _answer(self) -> None:
        if found := _MAP.fullmatch(self.path):
            self._map(found[1])
        elif found := _BLOB.fullmatch(self.path):
            self._blob(found[1])
        else:
            self._say(404)

    def _map(self, sha256: str) -> None:
        if (self._folder / blob_path(sha256)).is_file():
            self._say(200, WHOLE)
            return
        with contextlib.suppress(FileNotFoundError):
            self._say(200, map_path(self._folder / "fetch", sha256).read_bytes())
            return
        self._say(404)

    def _blob(self, sha256: str) -> None:
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None:
            self._say(416)
            return
        first, last = int(asked[1]), int(asked[2])
        path = self._folder / blob_path(sha256)
        if not path.is_file():
            path = part_path(self._folder / "fetch", sha256)
            if not path.is_file():
                self._say(404)
                return
            if not _has_arrived(self._folder / "fetch", sha256, first, last + 1):
                self._say(416)
                return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not first <= last < size:
                self._say(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            self.wfile.flush()
            assert isinstance(self.server, _Server)
            self.server.allow(self.connection, IDLE_S + (last + 1 - first) / LEAST_BYTES_S)
            self.connection.sendfile(file, first, last + 1 - first)

    def _say(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: fifty neighbours ask twice a second."""


def _has_arrived(folder: Path, sha256: str, first: int, stop: int) -> bool:
    """Say whether all chunks that these bytes touch have arrived."""
    try:
        here = map_path(folder, sha256).read_bytes()
        path = index_path(folder, sha256)
        index = path.read_bytes() if path.exists() else b""
    except FileNotFoundError:
        return False
    sizes: Sequence[int] = [
        int.from_bytes(index[at : at + 4], "little") for at in range(0, len(index), ENTRY_BYTES)
    ] or [MAX_CHUNK_BYTES]
    if len(here) != len(sizes):
        return False
    start = 0
    for is_here, size in zip(here, sizes, strict=True):
        if start < stop and start + size > first and is_here != 1:
            return False
        start += size
    return True
