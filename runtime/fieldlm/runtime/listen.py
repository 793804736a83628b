"""Put an application on a TCP port or a unix socket, until it is told to stop."""

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from fieldlm.formats.errors import InputError

BACKLOG = 128
GRACE_S = 5  # running answers get this long to finish when the server stops


class HttpServer:
    """An application on a socket that is bound from the start: clients that come before `run` wait in its backlog."""

    def __init__(self, app: Any, *, host: str = "127.0.0.1", port: int = 8080, unix_socket: Path | None = None) -> None:
        self._path = unix_socket
        self._socket = _bind_path(unix_socket) if unix_socket else _bind(host, port)
        self.port = 0 if unix_socket else int(self._socket.getsockname()[1])
        self.url = f"unix:{unix_socket}" if unix_socket else f"http://{_bracketed(host)}:{self.port}"
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until `stop`, or in the main thread until SIGINT or SIGTERM; running answers may finish."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            if self._path:
                self._path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Make `run` return soon. From any thread."""
        self._server.should_exit = True


@contextmanager
def listening(app: Any, *, port: int = 0, unix_socket: Path | None = None) -> Generator[HttpServer]:
    """Serve `app` from a thread until the block ends, on a free port unless one is given."""
    server = HttpServer(app, port=port, unix_socket=unix_socket)
    thread = threading.Thread(target=server.run, name="http")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bind(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        made.close()
        raise InputError(f"cannot listen on {host}:{port}: {error}; choose another with --port") from error
    return made


def _bind_path(path: Path) -> socket.socket:
    """Bind the unix socket at `path`, which only its owner's programs may open; one that nobody serves is replaced."""
    made = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        made.bind(str(path))
        path.chmod(0o600)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise InputError(f"cannot listen on {path}: {error}") from error
    return made


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
