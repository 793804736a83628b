"""What two parsers may take for different requests: sent to the server, and through real proxies before it.

Never two answers to one request, never an answer to somebody else's, and no request runs that hides in another.
"""

import itertools
import re
import socket
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from fieldlm.api.app import make_app
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import KEEP_ALIVE_S, listening
from tests.support.depth import DEPTH
from tests.support.proxies import NAMES, proxy

INNER = "GET /v1/models/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = '{"id": "x"}'
FORMS: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parents[1] / "fixtures" / "http" / "forms.toml").read_text()
)
ROUTES = ["direct", *NAMES]
PATIENCE_S = 60
NGINX_KEEPS_S = 60  # an idle connection to a server, unless told otherwise
_number = itertools.count()


class Seen:
    """An application, and which requests it answered while somebody was there: method and path."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests: list[tuple[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        left = False

        async def told() -> Any:
            nonlocal left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            return message

        async def say(message: Any) -> None:
            if message["type"] == "http.response.start" and not left:
                self.requests.append((scope["method"], scope["path"]))
            await send(message)

        await self.app(scope, told, say)


@dataclass
class Front:
    """A real server, and the ports by which it is reached: its own, and those of the proxies."""

    seen: Seen
    url: str
    ports: dict[str, int] = field(default_factory=dict[str, int])

    def say(self, route: str, pieces: list[bytes]) -> bytes:
        """Send `pieces` and that there will be no more; return all that is answered."""
        said: list[bytes] = []
        with socket.create_connection(("127.0.0.1", self.ports[route]), timeout=PATIENCE_S) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError):  # who has refused something does not read the rest of it
                for piece in pieces:
                    client.sendall(piece)
                if b"HTTP/1.0" not in b"".join(pieces):  # where who closes this half is taken for one that has left
                    client.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while piece := client.recv(65536):
                    said.append(piece)
        return b"".join(said)


@pytest.fixture(scope="module")
def front(base_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    live = Generations(base_bundle, EngineOptions(threads=1, context=256, parallel=2))
    seen = Seen(make_app(live, lambda _: None, ready=lambda: None))
    with ExitStack() as running:
        running.callback(live.close)
        server = running.enter_context(listening(seen))
        made = Front(seen, server.url, {"direct": server.port})
        for name in NAMES:
            made.ports[name] = running.enter_context(proxy(name, server.url, tmp_path_factory.mktemp(name)))
        yield made


def answers(said: bytes) -> list[int]:
    """Return the statuses of the final answers in `said`."""
    found = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d\d\d)\b", said)]
    return [status for status in found if status >= 200]


def bytes_of(form: dict[str, Any]) -> bytes:
    return form["sent"].replace("INNER", INNER).replace("BODY", BODY).encode()


def cuts(whole: bytes) -> list[list[bytes]]:
    """Return `whole` as one segment, as head and body, and as many."""
    head, end, rest = whole.partition(b"\r\n\r\n")
    return [[whole], [head + end, rest] if rest else [whole], [whole[at : at + 7] for at in range(0, len(whole), 7)]]


def test_there_are_forms_of_every_kind() -> None:
    assert len(FORMS) >= 120
    assert len({form["sent"] for form in FORMS.values()}) == len(FORMS)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_request_has_one_answer_and_hides_no_other(front: Front, route: str, form: dict[str, Any]) -> None:
    whole = bytes_of(form)
    tried = cuts(whole) if route == "direct" or DEPTH > 1 else cuts(whole)[1:2]
    for pieces in tried:
        front.seen.requests.clear()
        said = answers(front.say(route, pieces))
        ran = list(front.seen.requests)
        most = form.get(route, form.get("most", 1))
        assert len(said) <= most, (said, ran, pieces)
        if not form.get("headless"):
            assert len(ran) <= len(said), (said, ran, pieces)
        if not form.get("inner") and route not in form:
            assert ("GET", "/v1/models/smuggled") not in ran, (said, ran, pieces)
        # Who comes next, over the same connection to the server, gets the answer to what they asked.
        name = f"next-{next(_number)}"
        with closing(HTTPConnection("127.0.0.1", front.ports[route], timeout=PATIENCE_S)) as client:
            client.request("GET", f"/v1/models/{name}")
            after = client.getresponse()
            assert (after.status, name.encode() in after.read()) == (404, True), pieces


@pytest.mark.parametrize("route", NAMES)
def test_a_proxy_that_keeps_its_connections_never_finds_one_closed(front: Front, route: str) -> None:
    front.seen.requests.clear()

    def many(first: int) -> list[int]:
        found: list[int] = []
        for i in range(50):
            with closing(HTTPConnection("127.0.0.1", front.ports[route], timeout=PATIENCE_S)) as client:
                # Every other one is refused before its body is read.
                client.request("POST", "/nowhere" if i % 2 else "/v1/feedback", body=b'{"id": "x", "rating": "up"}')
                answer = client.getresponse()
                answer.read()
                found.append(answer.status)
        return found

    with ThreadPoolExecutor(4) as clients:
        statuses = [status for each in clients.map(many, range(4)) for status in each]
    assert set(statuses) == {404}
    assert len(front.seen.requests) == len(statuses) == 200
    assert KEEP_ALIVE_S > NGINX_KEEPS_S


@pytest.mark.parametrize("route", NAMES)
def test_words_come_through_a_proxy_as_they_are_said(front: Front, route: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{front.ports[route]}/v1/chat/completions", json=body) as answer:
        events = [line for line in answer.iter_lines() if line]
    assert answer.status_code == 200
    assert len(events) > 4
    assert events[-1] == "data: [DONE]"
