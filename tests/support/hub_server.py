"""A server on 127.0.0.1 that speaks as the Hugging Face hub does: lists of files, and files by way of another host.

Written after the hub's own answers: `/api/models/ORG/NAME/tree/REVISION` lists with Git LFS's SHA-256 and size,
`/ORG/NAME/resolve/REVISION/FILE` redirects to where large files lie, which knows ranges and gets no key.
"""

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import unquote, urlsplit


class Hub:
    """What the server hands out, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """By path in the repository `org/model`."""
        self.sha256: dict[str, str] = {}
        """What it says of a file, where that is not its digest."""
        self.token = ""
        """Without which nothing is shown."""
        self.cut_after: int | None = None
        """Bytes of a file after which the connection breaks, each time."""
        self.hangs = False
        """Whether the connection hangs there, and does not break."""
        self.is_over = threading.Event()
        self.sent = 0
        self.ranges: list[str] = []
        self.keys_at_files: list[str] = []
        self.url = self.files_url = ""

    def tree(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "oid": "0" * 40,
                "size": len(data),
                "path": path,
                "lfs": {"oid": self.sha256.get(path) or hashlib.sha256(data).hexdigest(), "size": len(data)},
            }
            for path, data in self.files.items()
        ]


class _HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, served: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served = served


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def served(self) -> Hub:
        return cast(_HubServer, self.server).served

    def do_GET(self) -> None:
        path, served = unquote(urlsplit(self.path).path), self.served
        key = self.headers.get("authorization", "")
        if path.startswith("/files/"):
            served.keys_at_files.append(key)
            self._file(path.removeprefix("/files/"))
        elif served.token and key != f"Bearer {served.token}":
            self._answer(401, b"Invalid credentials")
        elif path == "/api/models/org/model/tree/main":
            self._answer(200, json.dumps(served.tree()).encode())
        elif path.startswith("/org/model/resolve/main/"):
            name = path.removeprefix("/org/model/resolve/main/")
            self._answer(302, b"", location=f"{served.files_url}/files/{name}")
        else:
            self._answer(404, b"Repository not found")

    def _file(self, name: str) -> None:
        served = self.served
        data, start = served.files[name], 0
        if asked := self.headers.get("range"):
            served.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if asked else 200)
        self.send_header("content-length", str(len(data) - start))
        if asked:
            self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        body = data[start:] if served.cut_after is None else data[start : start + served.cut_after]
        self.wfile.write(body)
        served.sent += len(body)
        if served.hangs:
            self.wfile.flush()
            served.is_over.wait()
        self.close_connection = len(body) < len(data) - start

    def _answer(self, status: int, body: bytes, *, location: str = "") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if location:
            self.send_header("location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def hub() -> Generator[Hub]:
    """Run a hub until the block ends."""
    served = Hub()
    server = _HubServer(served)
    served.url, served.files_url = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    thread = threading.Thread(target=server.serve_forever, name="hub")
    thread.start()
    try:
        yield served
    finally:
        served.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()
