"""HTTP connection limits, an end to patience: uvicorn's own, plus bounds on what a client may hold.

A client that takes too long to send its request is answered 408 and closed; one that stops reading is cut off. Where
there are too many connections, of all or of one address, the one that has waited longest without a whole request makes
room; where all are being answered, the next gets 503, unless it asks for the server's health. Those of the unix socket
count apart. There the kernel says who is on the other end.

Of uvicorn's two protocols this is the one that parses in C: the events of a stream cost a seventh of what they cost
over h11, a request a third, and on a small board all of it is taken from the threads that compute.
"""

import asyncio
import os
import re
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from fieldlm.network.auth import TRUSTED
from fieldlm.network.fair_pool import first_to_go, network_of
from fieldlm.network.json_api import STOPPING, WRITE

SO_PEERGROUPS = 59  # Linux; Python has no name for it
MOST_GROUPS = 65_536
MOST_HEAD = 64 << 10  # bytes of a request before its body; the parser itself has no bound
END = b"\r\n\r\n"
TOO_LONG = "the head of this request is too long"
VERSIONS = ("1.0", "1.1")
HEALTH = (b"/health", b"/ready")
UPGRADE = re.compile(rb"\nupgrade(?=[ \t]*:)", re.IGNORECASE)
UNTIL_THE_PARSER_SAYS = sys.maxsize


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What a client may hold, and for how long.

    connections: open at a time, of the network and of the unix socket each.   of_one_peer: those of one address, or of
    one IPv6 /64.   reserve: as many more may ask for the server's health.   receive_s: from the first byte of a request
    to its last; a connection that sends nothing is closed then, too.   stall_s: how long a client may leave unread what
    was sent.
    """

    connections: int = 256
    of_one_peer: int = 128
    reserve: int = 8
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

    def __init__(
        self, *args: Any, limits: ConnectionLimits, peers: Peers, stopping: set[Callable[[], None]], **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._stopping = stopping
        self._limits = limits
        self._peers = peers
        self._receiving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._head = 0
        """Bytes received of a head that is not complete, or of what stands between the bytes of a body."""
        self._since = 0.0
        """When it was made, or had its last whole request, by the loop's clock."""
        self._peer = ""
        """Whose it is; empty on the unix socket."""
        self._is_reserve = False
        self._held = b""
        """What may turn out to be the name `Upgrade` once more of the head is here."""
        self._tail = b""
        """The last bytes of an unfinished head that the parser has: its end may lie across two segments."""
        self._body_left = 0
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        self._since = self.loop.time()
        self._peer = "" if connection.family == socket.AF_UNIX else network_of(str((self.client or ("",))[0]))
        if not self._finds_room():
            self._turn_away(503, "too many connections")
        elif connection.family == socket.AF_UNIX and not self._peers.allow(connection):
            self._turn_away(403, "this user may not use the socket")
        else:
            trusted = {TRUSTED: True} if connection.family == socket.AF_UNIX else {}
            self.app_state = {**self.app_state, **trusted, WRITE: self._write, STOPPING: self._stopping}
            self._bound_receiving()

    def _finds_room(self) -> bool:
        """Whether this connection may stay, where need be in the place of another one."""
        kept = [each for each in self.connections if isinstance(each, Connection) and not each.transport.is_closing()]
        pool = [each for each in kept if bool(each._peer) == bool(self._peer)]
        of_one = [each for each in pool if each._peer == self._peer]
        is_greedy = bool(self._peer) and len(of_one) > self._limits.of_one_peer
        if not is_greedy and len(pool) <= self._limits.connections:
            return True
        crowd = of_one if is_greedy else pool
        idle = [(each, each._peer, each._since) for each in crowd if each is not self and not each._is_answering]
        if (gone := first_to_go(idle)) is not None:
            gone._turn_away(503, "too many connections, and this one waited longest")
            return True
        self._is_reserve = True
        return len(pool) <= self._limits.connections + self._limits.reserve

    def data_received(self, data: bytes) -> None:
        if not self._is_answering:
            self._bound_receiving()
        self._head += len(data)
        data, self._held = self._held + data, b""
        while data and not self.transport.is_closing():
            if self._body_left:
                piece, data = data[: self._body_left], data[self._body_left :]
                if self._body_left != UNTIL_THE_PARSER_SAYS:
                    self._body_left -= len(piece)
            else:
                piece, data = self._next_of_head(data)
            super().data_received(piece)
        if self._head > MOST_HEAD:
            self._turn_away(431, TOO_LONG)

    def _next_of_head(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what the parser may see of a request's head, and what comes after that.

        A server may ignore an `Upgrade` and goes on in HTTP/1.1 (RFC 9110 §7.8). The parser would stop there and take
        the body for the next request, so it sees the header by another name.
        """
        at = (self._tail + data).find(END)
        end = at + len(END) - len(self._tail) if at >= 0 else len(data)
        before, head = self._tail[-1:], data[:end]
        if at < 0:
            line = (before + head).rpartition(b"\n")
            name = line[2].lower().rstrip(b" \t")
            if line[1] and name and b"upgrade".startswith(name):
                self._held = line[2]
                head = head[: -len(line[2])]
        self._tail = b"" if at >= 0 else (self._tail + head)[1 - len(END) :]
        return UPGRADE.sub(b"\nx-ignored-upgrade", before + head)[len(before) :], data[end:]

    def on_headers_complete(self) -> None:
        self._head = 0
        parser: Any = self.parser
        if parser.should_upgrade():
            # CONNECT. What follows would belong to another protocol, and must not be read as a request.
            self._refuse(400, "this server is no proxy")
            return
        if parser.get_http_version() not in VERSIONS:
            self._refuse(505, "this server speaks HTTP/1.1")
            return
        if self._is_reserve and self.url.partition(b"?")[0] not in HEALTH:
            self._refuse(503, "too many connections")
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD:
            self._refuse(431, TOO_LONG)
            return
        found = dict(self.headers)
        chunked = b"transfer-encoding" in found
        self._body_left = UNTIL_THE_PARSER_SAYS if chunked else int(found.get(b"content-length", 0))
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _UntilClosed

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes after a body in chunks is none, whatever it is called."""
        if not self._body_left:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._head = 0
        if not self._is_refused:
            super().on_body(body)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: it is answered."""

    def on_message_complete(self) -> None:
        """Stop the clock: the request is complete. Between two requests uvicorn has a clock of its own."""
        self._head = self._body_left = 0
        self._since = self.loop.time()
        if self._is_refused:
            return
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
            is_framed = not isinstance(self.cycle, _UntilClosed)
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_framed else piece)

    def _bound_receiving(self) -> None:
        if self._receiving is None:
            self._receiving = self.loop.call_later(self._limits.receive_s, self._too_slow)

    def _too_slow(self) -> None:
        self._receiving = None
        self._turn_away(408, "the request took too long to arrive")

    def _refuse(self, status: int, why: str) -> None:
        """Turn a request away whose head the parser has read; what follows of it is nothing."""
        self._is_refused = True
        self._turn_away(status, why)

    def _turn_away(self, status: int, why: str) -> None:
        """Close, with a word where no answer has begun."""
        if not getattr(self.cycle, "response_started", False):
            head = f"HTTP/1.1 {status} \r\ncontent-type: text/plain\r\ncontent-length: {len(why)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n{why}".encode())
        self.transport.close()


class _UntilClosed(RequestResponseCycle):
    """An answer to HTTP/1.0, which knows no chunks (RFC 9112 §6.1): it ends where the connection does."""

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected or self.response_complete:
            return
        if message["type"] == "http.response.start":
            self.response_started = True
            named = [b"%b: %b\r\n" % pair for pair in message.get("headers", []) if pair[0].lower() != b"connection"]
            self.transport.write(b"".join([STATUS_LINE[message["status"]], *named, b"connection: close\r\n\r\n"]))
            return
        if self.scope["method"] != "HEAD":
            self.transport.write(message.get("body", b""))
        if not message.get("more_body", False):
            self.response_complete = True
            self.message_event.set()
            self.transport.close()
            self.on_response()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
