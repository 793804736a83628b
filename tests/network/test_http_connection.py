"""What a client may say in HTTP/1.1 and 1.0, and that one request has one answer however its bytes arrive."""

import random
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator, Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

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
        for piece in pieces:
            client.sendall(piece)
        found: list[bytes] = []
        while piece := client.recv(65536):
            found.append(piece)
    return b"".join(found)


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
