"""HTTP connection limits, an end to patience: uvicorn's own, plus bounds on what a client may hold.

A client that takes too long to send its request is answered 408 and closed; one that stops reading is cut off; beyond
a number of connections the next is answered 503. On a unix socket the kernel says who is on the other end.

Of uvicorn's two protocols this is the one that parses in C: the events of a stream cost a seventh of what they cost
over h11, a request a third, and on a small board all of it is taken from the threads that compute.
"""

import asyncio
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fieldlm.network.auth import TRUSTED
from fieldlm.network.json_api import WRITE

SO_PEERGROUPS = 59  # Linux; Python has no name for it
MOST_GROUPS = 65_536
MOST_HEAD = 64 << 10  # bytes of a request before its body; the parser itself has no bound


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What a client may hold, and for how long.

    connections: open at a time.   receive_s: from the first byte of a request to its last; a connection that sends
    nothing is closed then, too.   stall_s: how long a client may leave unread what was sent.
    """

    connections: int = 256
    receive_s: float = 60.0
    stall_s: float = 60.0


@dataclass(frozen=True)
class Peers:
    """Who may use a unix socket: some users, and the members of a group."""

    users: frozenset[int]
    group: int | None = None

    @classmethod
    def own(cls, group: int | None = None) -> "Peers":
        return cls(frozenset({0, os.geteuid()}), group)

    def allow(self, connection: socket.socket) -> bool:
        """Whether the kernel says that one of them connected; elsewhere than on Linux the file's mode has to do."""
        if sys.platform != "linux":
            return True
        _, user, group = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user in self.users or self.group is None:
            return user in self.users
        listed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MOST_GROUPS)
        return self.group in (group, *struct.unpack(f"{len(listed) // 4}I", listed))


class Connection(HttpToolsProtocol):
    """uvicorn's connection over httptools, bounded."""

    def __init__(self, *args: Any, limits: ConnectionLimits, peers: Peers, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._peers = peers
        self._receiving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._head = 0
        """Bytes received of a head that is not complete."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if len(self.connections) > self._limits.connections:
            self._turn_away(503, "too many connections")
        elif connection.family == socket.AF_UNIX and not self._peers.allow(connection):
            self._turn_away(403, "this user may not use the socket")
        else:
            trusted = {TRUSTED: True} if connection.family == socket.AF_UNIX else {}
            self.app_state = {**self.app_state, **trusted, WRITE: self._write}
            self._bound_receiving()

    def data_received(self, data: bytes) -> None:
        if not self._is_answering:
            self._bound_receiving()
        self._head += len(data)
        super().data_received(data)
        if self._head > MOST_HEAD:
            self._turn_away(431, "the head of this request is too long")

    def on_headers_complete(self) -> None:
        self._head = -sys.maxsize
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the clock: the request is complete. Between two requests uvicorn has a clock of its own."""
        self._head = 0
        self._receiving = _cancel(self._receiving)
        super().on_message_complete()

    @property
    def _is_answering(self) -> bool:
        """Whether a whole request is here whose answer is not out yet."""
        return not (getattr(self.cycle, "more_body", True) or self.cycle.response_complete)

    def pause_writing(self) -> None:
        super().pause_writing()
        # A stream that nobody reads would hold its answer, its place and this buffer for ever.
        self._stalled = self.loop.call_later(self._limits.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiving, self._stalled = _cancel(self._receiving), _cancel(self._stalled)
        super().connection_lost(exc)

    def _write(self, piece: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def _bound_receiving(self) -> None:
        if self._receiving is None:
            self._receiving = self.loop.call_later(self._limits.receive_s, self._too_slow)

    def _too_slow(self) -> None:
        self._receiving = None
        self._turn_away(408, "the request took too long to arrive")

    def _turn_away(self, status: int, why: str) -> None:
        """Close, with a word where no answer has begun."""
        if not getattr(self.cycle, "response_started", False):
            head = f"HTTP/1.1 {status} \r\ncontent-type: text/plain\r\ncontent-length: {len(why)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n{why}".encode())
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
