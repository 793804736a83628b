"""The HTTP server: put an application on a TCP port, a unix socket or both, until it is told to stop."""

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from fieldlm.core.errors import InputError
from fieldlm.core.tasks import PROCESS
from fieldlm.network.http_connection import Connection, ConnectionLimits
from fieldlm.network.sockets import Peers, Tls, bind, bind_path, bracketed, check_tls

KEEP_ALIVE_S = 75  # longer than clients keep an idle connection (httpx: 5), so that none writes into a closing one
GRACE_S = 5  # running answers get this long to finish when the server stops
LAST_WORD_S = 1  # of it, to say why they did not
HANG_UP_TURNS = 4  # of the loop: a connection is accepted in one, made in the next, and lost in another


@dataclass(frozen=True)
class Heartbeat:
    """Something to do in the event loop every so often, as long as that runs."""

    every_s: float
    beat: Callable[[], None]


class HttpServer:
    """An application on sockets that are bound from the start: clients that come before `run` wait in the backlog.

    `host` None leaves TCP out. The unix socket is for its owner and root alone, or also for the members of the group
    with the id `group`.
    """

    def __init__(
        self,
        app: Any,
        *,
        host: str | None = "127.0.0.1",
        port: int = 8080,
        unix_socket: Path | None = None,
        tls: Tls | None = None,
        peers: Peers | None = None,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (frozen)
        heartbeat: Heartbeat | None = None,
    ) -> None:
        who = peers or Peers.own()
        if tls:
            check_tls(tls)
        self._path = unix_socket
        network = [bind(host, port)] if host else []
        try:
            self._sockets = [*network, *([bind_path(unix_socket, who.group)] if unix_socket else [])]
        except InputError:
            for each in network:
                each.close()
            raise
        self.port = int(network[0].getsockname()[1]) if network else 0
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://{bracketed(host)}:{self.port}" if host else f"unix:{unix_socket}"
        stopping = set[Callable[[], None]]()
        dated = _Dated()
        connection = functools.partial(Connection, limits=limits, peers=who, stopping=stopping, headers=dated.headers)
        self._server = _Server(_settings(app, tls, connection), stopping, heartbeat)

    def run(self) -> None:
        """Serve until `stop`, or in the main thread until SIGINT or SIGTERM; running answers may finish."""
        try:
            self._server.run(sockets=self._sockets)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the sockets, which were bound before `run`; more than once is fine."""
        for each in self._sockets:
            each.close()
        if self._path:
            self._path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Make `run` return soon. From any thread."""
        self._server.end()


class _Server(uvicorn.Server):
    """uvicorn's server, which sleeps while nothing happens, and lets answers end with a word when it stops.

    uvicorn itself wakes ten times a second: to ask whether it is to stop, which `end` says; to write down the time,
    which each request asks for; and for the heartbeat, which knows when it is due. `stopping` is what answers that are
    running want to have called at the end.
    """

    def __init__(self, config: uvicorn.Config, stopping: set[Callable[[], None]], heartbeat: Heartbeat | None) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._heartbeat = heartbeat
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def end(self) -> None:
        """Begin to stop. From any thread, and from a signal's handler."""
        self.should_exit = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has stopped meanwhile
                self._loop.call_soon_threadsafe(self._news.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.end()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        beats = self._heartbeat
        while not self.should_exit:
            if beats:
                beats.beat()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), beats.every_s if beats else None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        # Whoever is accepted already gets a connection before asyncio's own server closes: it would drop one that is
        # made afterwards, and leave its socket open.
        for each in sockets or []:
            loop.remove_reader(each)
        for _ in range(HANG_UP_TURNS):
            await asyncio.sleep(0)
        last = loop.call_later(GRACE_S - LAST_WORD_S, self._tell)
        await super().shutdown(sockets)
        last.cancel()
        # Who came while it closed, or outlived the grace, is not left open behind a loop that has ended.
        for _ in range(HANG_UP_TURNS):
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)

    def _tell(self) -> None:
        for end in list(self._stopping):
            end()


@contextmanager
def listening(app: Any, *, port: int = 0, unix_socket: Path | None = None, **more: Any) -> Generator[HttpServer]:
    """Serve `app` from a thread until the block ends: on a unix socket, or on a free port unless one is given."""
    server = HttpServer(app, host=None if unix_socket else "127.0.0.1", port=port, unix_socket=unix_socket, **more)
    thread = PROCESS.start("http", server.run)
    try:
        yield server
    finally:
        server.stop()
        thread.join(2 * GRACE_S)


class _Dated:
    """The headers of every answer: the time it began (RFC 9110 §6.6.1), spelt out once a second at most."""

    def __init__(self) -> None:
        self._second = 0
        self._headers = list[tuple[bytes, bytes]]()

    def headers(self) -> list[tuple[bytes, bytes]]:
        now = int(time.time())
        if now != self._second:
            self._second, self._headers = now, [(b"date", formatdate(now, usegmt=True).encode())]
        return self._headers


def _settings(app: Any, tls: Tls | None, connection: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection,
        loop="asyncio",  # uvloop, if somebody has it, does not let the kernel be asked who is on a socket
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
