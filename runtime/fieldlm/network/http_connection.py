"""HTTP connection limits, an end to patience: uvicorn's own, plus bounds on what a client may hold.

A client that takes too long to send its request is answered 408 and closed; one that stops reading is cut off. Where
there are too many connections, of all or of one address, the one that has waited longest without a whole request makes
room; where all are being answered, the next gets 503, unless it asks for the server's health. Those of the unix socket
count apart. There the kernel says who is on the other end.

What is wrong with a request is said in its turn: never in the middle of an answer to the one before it, nor in its
place. Who has said all and closed that half of the connection is answered; who has closed both is noticed.

Of uvicorn's two protocols this is the one that parses in C: the events of a stream cost a seventh of what they cost
over h11, a request a third, and on a small board all of it is taken from the threads that compute.
"""

import asyncio
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from fieldlm.network.auth import TRUSTED
from fieldlm.network.fair_pool import first_to_go, network_of
from fieldlm.network.json_api import SIGN_OF_LIFE, STOPPING, WRITE
from fieldlm.network.sockets import Peers

MOST_HEAD = 64 << 10  # bytes of a request before its body; the parser itself has no bound
END = b"\r\n\r\n"
TOO_LONG = "the head of this request is too long"
VERSIONS = ("1.0", "1.1")
HEALTH = (b"/health", b"/ready")
UPGRADE = re.compile(rb"\nupgrade(?=[ \t]*:)", re.IGNORECASE)
UNTIL_THE_PARSER_SAYS = sys.maxsize
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
PROBE_S = 0.05  # to the second look whether who closed one half of the connection has closed both; then twice that


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


class Connection(HttpToolsProtocol):
    """uvicorn's connection over httptools, bounded."""

    def __init__(
        self,
        *args: Any,
        limits: ConnectionLimits,
        peers: Peers,
        stopping: set[Callable[[], None]],
        headers: Callable[[], list[tuple[bytes, bytes]]],
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self._stopping = stopping
        self._common_headers = headers
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
        self._running: RequestResponseCycle | None = None
        """The request that is being answered; `cycle` is the one that arrived last."""
        self._last_word = b""
        """What is said to a refused request when those before it are answered."""
        self._has_said_all = False
        self._sign = b""
        self._probing: asyncio.TimerHandle | None = None

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
            own = {WRITE: self._write, SIGN_OF_LIFE: self._set_sign, STOPPING: self._stopping}
            self.app_state = {**self.app_state, **trusted, **own}
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
        if self._is_refused:
            return
        if not self._is_answering:
            self._bound_receiving()
        self._head += len(data)
        data, self._held = self._held + data, b""
        while data and not self._is_refused and not self.transport.is_closing():
            if self._body_left:
                piece, data = data[: self._body_left], data[self._body_left :]
                if self._body_left != UNTIL_THE_PARSER_SAYS:
                    self._body_left -= len(piece)
            else:
                piece, data = self._next_of_head(data)
            super().data_received(piece)
        if self._head > MOST_HEAD and not self._is_refused:
            self._refuse(431, TOO_LONG)

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
        if sum(name == b"host" for name, _ in self.headers) > 1:
            # RFC 9112 §3.2. A proxy before this one may have believed another of them.
            self._refuse(400, "this request has more than one Host")
            return
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            self._refuse(501, "of transfer codings this server knows chunked alone")
            return
        chunked = bool(codings)
        self._body_left = UNTIL_THE_PARSER_SAYS if chunked else int(found.get(b"content-length", 0))
        if parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110 §10.1.1: such a client would take it for its answer
        self.server_state.default_headers = self._common_headers()
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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on with the next request; the last one of a connection has the last word."""
        is_last = not self.pipeline
        self._sign = b""
        super().on_response_complete()
        if is_last and (self._last_word or self._has_said_all) and not self.transport.is_closing():
            self.transport.write(self._last_word)
            self.transport.close()

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # asyncio has it so
        """Say whether to keep the connection, for the answer to who has sent all there is to send."""
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()
        now = self._running
        if self.transport.get_extra_info("ssl_object") or now is None or now.more_body or now.response_complete:
            return False
        # In HTTP/1.0 there is no way to see who has left before they are answered, and a proxy's client that leaves is
        # common: nginx speaks it to a server unless told otherwise.
        if now.scope["http_version"] == "1.0" and not now.response_started:
            return False
        if now.response_started and not self._sign:
            return False  # nothing can be written to see: who leaves in the middle is far more common
        self._has_said_all = True
        self._probe(PROBE_S)
        return True

    def _probe(self, after_s: float) -> None:
        """Write what a client may ignore (RFC 9110 §15.2): the system of one that is gone resets the connection."""
        now = self._running
        if now is not None and now.response_started and not now.response_complete and self._sign:
            self._write(self._sign)
        elif now is not None and not now.response_started and now.scope["http_version"] == "1.1":
            self.transport.write(PROCESSING)
        self._probing = self.loop.call_later(after_s, self._probe, 2 * after_s)

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
        self._probing = _cancel(self._probing)
        if self._running is not None and self._running is not self.cycle:
            self._running.disconnected = True  # a later request is here in part; uvicorn tells that one alone
            self._running.message_event.set()
        super().connection_lost(exc)

    def _set_sign(self, piece: bytes) -> None:
        self._sign = piece

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

    def send_400_response(self, msg: str) -> None:
        """Turn a request away that the parser cannot read."""
        self._refuse(400, msg)

    def _refuse(self, status: int, why: str) -> None:
        """Turn a request away, after those before it are answered; what follows of it is nothing."""
        self._is_refused = True
        now = self._running
        if now is None or now.response_complete or now.more_body:
            self._turn_away(status, why)
            return
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()
        self._receiving = _cancel(self._receiving)
        self._last_word = _refusal(status, why)

    def _turn_away(self, status: int, why: str) -> None:
        """Close, with a word where no answer has begun."""
        now = self._running
        if now is None or now.response_complete or not now.response_started:
            self.transport.write(_refusal(status, why))
        if now is not None:
            now.disconnected = True  # it must not add its answer to that word
            now.message_event.set()
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


def _refusal(status: int, why: str) -> bytes:
    head = f"HTTP/1.1 {status} \r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {len(why)}\r\n"
    return f"{head}connection: close\r\n\r\n{why}".encode()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
