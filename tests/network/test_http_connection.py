"""What a client may say in HTTP/1.1 and 1.0, and that one request has one answer however its bytes arrive."""

import asyncio
import random
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fieldlm.network.fair_pool import first_to_go, network_of
from fieldlm.network.http_connection import ConnectionLimits
from fieldlm.network.http_server import HttpServer, listening
from fieldlm.network.json_api import as_json, error_response, read_body

OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
    b"connection: upgrade\r\nUPGRADE: TLS/1.0\r\n",
    b"Connection: Upgrade\r\nupgrade:\twebsocket\r\n",
)
# As a request this would have an answer of its own; as a body it is text.
BODY = b"GET /smuggled HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(b"<" + await read_body(request) + b">")


async def stream(_: Request) -> StreamingResponse:
    async def pieces() -> AsyncGenerator[bytes]:
        for piece in (b"one ", b"two ", b"three"):
            yield piece

    return StreamingResponse(pieces())


async def smuggled(_: Request) -> Response:
    return as_json("smuggled")


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    routes = [
        Route("/echo", echo, methods=["POST"]),
        Route("/stream", stream),
        Route("/smuggled", smuggled),
    ]
    with listening(Starlette(routes=routes, exception_handlers={Exception: error_response})) as made:
        yield made


def answers_to(server: HttpServer, pieces: list[bytes]) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found: list[bytes] = []
        with suppress(ConnectionError):  # a server that has refused something does not read the rest of it
            for piece in pieces:
                client.sendall(piece)
            while piece := client.recv(65536):
                found.append(piece)
    return b"".join(found)


def ended_answers_to(server: HttpServer, said: bytes) -> bytes:
    """Send `said` and that nothing follows; return what is answered."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").read()


def post(offer: bytes, *, chunked: bool = False, last: bool = True) -> bytes:
    length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(BODY)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    # What closes the connection comes in a header of its own; the last one that names it counts with the offer's.
    end = b"connection: close\r\n" if last else b""
    return b"POST /echo HTTP/1.1\r\nHost: x\r\n" + offer + end + length + b"\r\n\r\n" + body


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("offer", OFFER)
def test_an_offered_upgrade_is_ignored_and_its_body_is_never_a_request(
    server: HttpServer, offer: bytes, chunked: bool
) -> None:
    whole = post(offer, chunked=chunked)
    cuts = [[], *([at] for at in range(1, len(whole))), list(range(1, len(whole)))]
    for cut in [*random.Random(7).sample(cuts, 40), cuts[0], cuts[-1]]:
        pieces = [whole[start:stop] for start, stop in zip([0, *cut], [*cut, len(whole)], strict=True)]
        said = answers_to(server, pieces)
        assert said.count(b"HTTP/1.1 ") == 1, (cut, said)
        assert said.endswith(b"<" + BODY + b">"), (cut, said)
        assert b"200" in said.partition(b"\r\n")[0]


def test_two_requests_in_a_row_that_offer_an_upgrade_have_two_answers(server: HttpServer) -> None:
    whole = post(OFFER[0], last=False) + post(OFFER[0])
    for size in (1, 7, 64, len(whole)):
        said = answers_to(server, [whole[at : at + size] for at in range(0, len(whole), size)])
        assert said.count(b"HTTP/1.1 200") == said.count(b"<" + BODY + b">") == 2, size


def test_curl_that_offers_http2_gets_its_answer(server: HttpServer) -> None:
    curl = shutil.which("curl")
    assert curl, "install curl"
    command = [curl, "-sS", "--http2", "-d", "hello", f"{server.url}/echo"]
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stdout == b"<hello>"


def test_this_server_is_no_proxy(server: HttpServer) -> None:
    said = answers_to(server, [b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", BODY])
    assert (said.count(b"HTTP/1.1 "), b" 400 " in said) == (1, True)


def test_http_1_0_gets_a_stream_without_frames_that_ends_with_the_connection(server: HttpServer) -> None:
    said = answers_to(server, [b"GET /stream HTTP/1.0\r\n\r\n"])
    head, _, body = said.partition(b"\r\n\r\n")
    assert body == b"one two three"
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert b"transfer-encoding: chunked" in answers_to(
        server, [b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
    )


def test_a_method_that_is_not_allowed_is_told_which_are(server: HttpServer) -> None:
    answer = httpx.get(f"{server.url}/echo")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_compressed_body_is_refused_by_name(server: HttpServer) -> None:
    answer = httpx.post(f"{server.url}/echo", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415
    assert "gzip" in answer.json()["error"]["message"]


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(server: HttpServer) -> None:
    expects = b"connection: close\r\nexpect: 100-continue\r\ncontent-length: 1000000000\r\n"
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + expects + b"\r\n"
    assert answers_to(server, [head]).partition(b"\r\n")[0].split()[1] == b"413"


def test_a_byte_order_mark_is_no_part_of_a_body(server: HttpServer) -> None:
    assert httpx.post(f"{server.url}/echo", content=b"\xef\xbb\xbf{}").text == "<{}>"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Host: evil\r\nHost: x", b"400"),
        (b"Host: x\r\nX: y\r\nHOST: x", b"400"),
        (b"Host: x\r\nTransfer-Encoding: gzip, chunked", b"501"),
        (b"Host: x\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked", b"501"),
    ],
)
def test_what_two_servers_may_understand_in_two_ways_is_refused(server: HttpServer, head: bytes, status: bytes) -> None:
    said = answers_to(server, [b"POST /echo HTTP/1.1\r\n" + head + b"\r\n\r\n0\r\n\r\n"])
    assert (said.count(b"HTTP/1.1 "), said.split()[1]) == (1, status)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /smuggled HTTP/1.1\r\nHost: x\r\nx-long: " + bytes(70_000).replace(b"\0", b"x") + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"GET /smuggled\r\n\r\n", b"505"),
    ],
    ids=["header", "url", "http-0.9"],
)
def test_a_head_that_is_too_long_or_too_old_is_refused_also_when_it_comes_at_once(
    server: HttpServer, said: bytes, status: bytes
) -> None:
    answer = answers_to(server, [said])
    assert answer.partition(b"\r\n")[0].split()[1] == status
    assert b"smuggled" not in answer


def test_what_follows_a_body_in_chunks_has_an_end(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client, pytest.raises(ConnectionError):
        client.sendall(post(b"", chunked=True)[:-2] + b"x-more: and more\r\n" * 1_000_000)


def test_what_follows_a_body_in_chunks_is_no_header_of_the_request() -> None:
    async def told(request: Request) -> Response:
        await request.body()
        return as_json(request.headers.get("authorization"))

    with listening(Starlette(routes=[Route("/", told, methods=["POST"])])) as server:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        said = answers_to(server, [head + b"1\r\nx\r\n0\r\n", b"authorization: Bearer x\r\n\r\n"])
    assert said.endswith(b"null")


def half_open(server: HttpServer, address: str = "127.0.0.1") -> socket.socket:
    """Return a connection that has begun a request, and is known to the server."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60, source_address=(address, 0))
    client.sendall(b"GET / HTTP/1.1\r\nhost:")
    return client


def status_of(server: HttpServer, path: str, address: str) -> int:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=60) as client:
        return client.get(server.url + path).status_code


class Slow:
    """An application whose answers at / wait until they may end, and elsewhere do not."""

    def __init__(self) -> None:
        self.ended = False
        self.left = threading.Event()
        self._begun = threading.Semaphore(0)
        self.app = Starlette(routes=[Route("/", self._wait), Route("/health", self._say), Route("/other", self._say)])

    def ask(self, *clients: socket.socket) -> None:
        """Complete what `half_open` began, and return when the application has all of it."""
        for client in clients:
            client.sendall(b" x\r\nconnection: close\r\n\r\n")
        for _ in clients:
            self.wait_begun()

    def wait_begun(self) -> None:
        assert self._begun.acquire(timeout=60)

    async def _wait(self, request: Request) -> PlainTextResponse:
        self._begun.release()
        while not self.ended:
            await asyncio.sleep(0.01)
            if await request.is_disconnected():
                self.left.set()
        return PlainTextResponse("waited")

    async def _say(self, _: Request) -> PlainTextResponse:
        return PlainTextResponse("well")


@pytest.fixture
def slow() -> Slow:
    return Slow()


ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def begun(slow: Slow, server: HttpServer, *said: bytes) -> socket.socket:
    """Return a connection that has sent `said`, the first of it a request that is being answered."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(said[0])
    slow.wait_begun()
    for piece in said[1:]:
        client.sendall(piece)
    return client


def test_who_has_said_all_is_answered(slow: Slow) -> None:
    with listening(slow.app) as server, begun(slow, server, ASK) as client:
        client.shutdown(socket.SHUT_WR)
        heard = client.makefile("rb")
        assert heard.readline().startswith(b"HTTP/1.1 102 ")  # what tells one that is gone from one that listens
        slow.ended = True
        rest = heard.read()
    assert rest.count(b"HTTP/1.1 200 ") == 1
    assert rest.endswith(b"waited")


def test_a_request_that_is_not_whole_is_never_run(server: HttpServer) -> None:
    assert ended_answers_to(server, post(b"", last=False)[:-1]) == b""
    two = post(b"", last=False) + post(b"", last=False)[:-1]
    assert ended_answers_to(server, two).count(b"HTTP/1.1 200 ") == 1


def test_who_is_gone_is_noticed_before_their_answer(slow: Slow) -> None:
    with listening(slow.app) as server:
        begun(slow, server, ASK).close()
        assert slow.left.wait(60)
        slow.ended = True


BROKEN = (b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n", b"GET /" + b"x" * 70_000, b"GET / HTTP/1.7\r\n\r\n")


@pytest.mark.parametrize("broken", BROKEN, ids=["header", "long", "version"])
def test_a_refusal_waits_for_the_answers_before_it(slow: Slow, broken: bytes) -> None:
    with listening(slow.app) as server, begun(slow, server, ASK, ASK, broken, ASK) as client:
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(60)
        slow.ended = True
        said = client.makefile("rb").read()
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", said)]
    assert (statuses[:2], len(statuses), said.count(b"waited")) == ([200, 200], 3, 2)
    assert statuses[2] >= 400


def test_whoever_holds_half_open_requests_locks_nobody_out(slow: Slow) -> None:
    with listening(slow.app) as server:
        held = [half_open(server) for _ in range(275)]
        for address in ("127.0.0.2", "127.0.0.1"):
            assert [status_of(server, path, address) for path in ("/health", "/other")] == [200, 200], address
        assert b" 503 " in held[0].recv(100), "the oldest of who holds the most made room"
        for client in held:
            client.close()


def test_the_oldest_of_those_that_wait_makes_room_and_no_answer_is_cut_off(
    slow: Slow,
) -> None:
    with listening(slow.app, limits=ConnectionLimits(connections=3)) as server:
        asked, *waiting = (half_open(server) for _ in range(3))
        slow.ask(asked)
        last = half_open(server)
        assert b" 503 " in waiting[0].recv(100)
        slow.ask(waiting[1], last)
        assert (status_of(server, "/health?x", "127.0.0.2"), status_of(server, "/other", "127.0.0.2")) == (200, 503)
        slow.ended = True
        for client in (asked, waiting[1], last):
            assert client.makefile("rb").read().endswith(b"waited")
            client.close()
        waiting[0].close()


def test_the_unix_socket_is_served_whoever_fills_the_network(slow: Slow, tmp_path: Path) -> None:
    limits = ConnectionLimits(connections=2, reserve=0)
    server = HttpServer(slow.app, port=0, unix_socket=tmp_path / "s", limits=limits)
    thread = threading.Thread(target=server.run)
    thread.start()
    busy = [half_open(server) for _ in range(2)]
    try:
        slow.ask(*busy)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "s")), timeout=60) as client:
            assert client.get("http://device/other").status_code == 200
        assert status_of(server, "/health", "127.0.0.2") == 503
    finally:
        server.stop()
        thread.join()
        for client in busy:
            client.close()


def test_one_machine_is_one_network_also_where_it_has_many_addresses() -> None:
    assert network_of("10.0.0.7") == network_of("::ffff:10.0.0.7") == "10.0.0.7"
    assert network_of("2001:db8:1:2::7") == network_of("2001:db8:1:2:ffff::9") != network_of("2001:db8:1:3::7")
    waiting = [("a", "one", 1.0), ("b", "many", 3.0), ("c", "many", 2.0)]
    assert (first_to_go(waiting), first_to_go([])) == ("c", None)
