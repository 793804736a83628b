"""Who gets in and how long a client may take, over real sockets."""

import asyncio
import hmac
import json
import os
import select
import socket
import ssl
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from fieldlm.api.app import make_app
from fieldlm.core.config import Config, load_config
from fieldlm.core.errors import ConfigError, InputError
from fieldlm.device.listeners import ListenSettings
from fieldlm.device.systemd import heartbeat
from fieldlm.engines import Sampling
from fieldlm.inference.engine_watchdog import ProgressMonitor
from fieldlm.inference.generations import Generations
from fieldlm.network.api_keys import Keys
from fieldlm.network.host_names import is_local
from fieldlm.network.http_connection import ConnectionLimits
from fieldlm.network.http_server import Heartbeat, HttpServer, listening
from fieldlm.network.sockets import Peers, Tls
from tests.support.certificate import certificate

KEY = "a-key-of-fair-length"
HELLO = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
PATIENCE_S = 60


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    pieces: list[bytes] = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def test_a_file_of_keys_is_read_with_names_and_remarks(tmp_path: Path) -> None:
    keys = Keys.read(key_file(tmp_path, f"# who may ask\n\n{KEY} till-3\nanother-key-of-fair-length\n", 0o640))
    assert keys.holds(KEY)
    assert keys.holds("another-key-of-fair-length")
    assert not keys.holds("till-3")
    assert not keys.holds(KEY[:-1])
    assert not keys.holds("")


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (KEY, 0o644, "every user of this machine can open"),
        ("short\n", 0o600, "line 1 of .* is shorter than 16"),
        ("# nothing\n", 0o600, "holds no key"),
        (None, 0, "cannot be read"),
    ],
)
def test_a_file_of_keys_that_leaks_or_lacks_is_refused(
    tmp_path: Path, text: str | None, mode: int, message: str
) -> None:
    path = tmp_path / "keys" if text is None else key_file(tmp_path, text, mode)
    with pytest.raises(ConfigError, match=message) as caught:
        Keys.read(path)
    assert "\n" not in str(caught.value)


def test_a_key_is_compared_with_every_other_whatever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def seen(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", seen)
    keys = Keys([KEY, "another-key-of-fair-length", "a third key, longer than the others are"])
    for key, is_known in ((KEY, True), ("a third key, longer than the others are", True), ("x", False), ("", False)):
        compared.clear()
        assert keys.holds(key) is is_known
        assert compared == [(32, 32)] * 3, "neither the first match nor a length ends it early"


def test_with_keys_only_their_holders_are_answered(live: Generations) -> None:
    app = make_app(live, lambda _: None, ready=lambda: None, keys=Keys([KEY]))
    with listening(app) as server, httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        for path in ("/", "/page.js", "/vendor.js", "/page.css", "/kiosk.js", "/kiosk.css", "/health", "/ready"):
            assert client.get(path).status_code == 200, path
        for path in ("/v1/models", "/metrics", "/status", "/nowhere"):
            assert client.get(path).status_code == 401, path
        for wrong in (f"Bearer {KEY}x", KEY, f"Basic {KEY}", "Bearer", "Bearer \xff"):
            headers = {b"authorization": wrong.encode("latin-1")}
            response = client.post(CHAT, json={"messages": HELLO}, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as known:
            assert [model.owned_by for model in known.models.list()] == ["fieldlm"]
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.models.list()


def settings_of(tmp_path: Path, **flags: object) -> Config:
    return load_config({"state": str(tmp_path / "state"), **flags}, {"HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"host": "0.0.0.0"}, "would answer the whole network"),
        ({"host": "::"}, "would answer the whole network"),
        ({"host": "none"}, "listens nowhere"),
        ({"tls_cert": "x.pem"}, "needs both"),
        ({"tls_cert": "x.pem", "tls_key": "x.pem", "socket": "s"}, "do not go together"),
        ({"socket": "s", "socket_group": "no-such-group"}, "no group 'no-such-group'"),
    ],
)
def test_settings_that_leak_or_contradict_are_refused(tmp_path: Path, flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ListenSettings.of(settings_of(tmp_path, **flags))


def test_the_network_is_answered_with_keys_or_on_request(tmp_path: Path) -> None:
    keys = key_file(tmp_path, KEY)
    assert ListenSettings.of(settings_of(tmp_path, host="0.0.0.0", api_keys=str(keys))).keys
    assert ListenSettings.of(settings_of(tmp_path, host="0.0.0.0", open="true")).keys is None
    assert ListenSettings.of(settings_of(tmp_path)).host == "127.0.0.1"
    assert is_local("::1")


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def small_app() -> Starlette:
    return Starlette(routes=[Route("/", hello)])


def test_tls_is_served_and_a_wrong_certificate_is_one_clear_line(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    with listening(small_app(), tls=tls) as server:
        assert server.url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(tls.certificate))
        assert httpx.get(f"https://localhost:{server.port}/", verify=trust, trust_env=False).text == "hello"
    with pytest.raises(InputError, match="cannot be set up"):
        HttpServer(small_app(), port=0, tls=Tls(tls.key, tls.certificate))


def test_a_socket_and_the_network_are_served_together_and_the_socket_needs_no_key(
    live: Generations, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    app = make_app(live, lambda _: None, ready=lambda: None, keys=Keys([KEY]))
    server = HttpServer(app, port=0, unix_socket=path, peers=Peers.own(os.getegid()))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert path.stat().st_mode & 0o777 == 0o660
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://device") as client:
            assert client.get("/v1/models").status_code == 200
    finally:
        server.stop()
        thread.join()


def test_the_kernel_tells_a_stranger_at_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def ask() -> int:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://device") as client:
            return client.get("/").status_code

    nobody = frozenset({54_321})
    with listening(small_app(), unix_socket=path, peers=Peers(nobody)):
        assert ask() == 403
    with listening(small_app(), unix_socket=path, peers=Peers(nobody, os.getegid())):
        assert ask() == 200


@pytest.mark.parametrize(
    "said", [b"", b"G", b"GET / HTTP/1.1\r\nhost:", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"]
)
def test_a_client_that_does_not_finish_its_request_is_closed(said: bytes) -> None:
    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/", read, methods=["POST"])])
    with listening(app, limits=ConnectionLimits(receive_s=0.1)) as server, connect(server) as client:
        client.sendall(said)
        assert b" 408 " in all_of(client).partition(b"\r\n")[0]


def test_a_client_that_sends_a_byte_now_and_then_is_closed_all_the_same() -> None:
    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/", read, methods=["POST"])])
    with listening(app, limits=ConnectionLimits(receive_s=0.3)) as server, connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        sent = 0
        while not select.select([client], [], [], 0.02)[0]:
            client.sendall(b"x")
            sent += 1
            assert sent < 50 * PATIENCE_S, "every byte gave it more time"
        assert b" 408 " in client.recv(100).partition(b"\r\n")[0]


def test_a_head_without_an_end_is_refused() -> None:
    with listening(small_app()) as server, connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x-more: and more\r\n" * 5000)
        assert b" 431 " in all_of(client).partition(b"\r\n")[0]


def test_a_long_body_is_no_long_head() -> None:
    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(routes=[Route("/", read, methods=["POST"])])
    with listening(app) as server, httpx.Client() as client:
        assert [client.post(server.url, content=bytes(300_000)).text for _ in range(2)] == ["300000"] * 2


def test_an_answer_may_take_longer_than_its_request() -> None:
    async def slow(_: Request) -> PlainTextResponse:
        await asyncio.sleep(0.5)
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/", slow)])
    with listening(app, limits=ConnectionLimits(receive_s=0.2, stall_s=0.2)) as server:
        assert httpx.get(server.url).text == "done"


def test_a_client_that_stops_reading_is_cut_off() -> None:
    ended = threading.Event()

    async def flood() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield bytes(65536)
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def answer(_: Request) -> StreamingResponse:
        return StreamingResponse(flood())

    app = Starlette(routes=[Route("/", answer)])
    with listening(app, limits=ConnectionLimits(stall_s=0.1)) as server, connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert ended.wait(PATIENCE_S)


def test_the_page_is_served_under_a_strict_policy(url: str) -> None:
    page = httpx.get(url)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text


def test_the_watchdog_is_fed_while_answers_make_progress_and_not_when_they_are_stuck(live: Generations) -> None:
    clock = [0.0]
    pulse = ProgressMonitor(lambda: clock[0])
    engine = live.current.engine
    clock[0] = 10_000.0
    assert pulse.is_alive(), "nothing is asked"
    running = pulse.watch(engine.start(engine.tokenize("tea tea tea tea"), Sampling(max_tokens=3)))
    clock[0] += 599
    assert pulse.is_alive()
    clock[0] += 2
    assert not pulse.is_alive(), "nothing has come for ten minutes"
    assert list(running)[-1].outcome == "length"
    clock[0] += 10_000
    assert pulse.is_alive(), "it has ended"


def test_systemd_hears_the_watchdog_from_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert heartbeat(lambda: True) is None, "no watchdog was asked for"
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        alive = [False]
        looked = threading.Semaphore(0)

        def is_alive() -> bool:
            looked.release()
            return alive[0]

        beat = heartbeat(is_alive)
        assert isinstance(beat, Heartbeat)
        with listening(small_app(), heartbeat=beat):
            assert looked.acquire(timeout=PATIENCE_S)
            assert looked.acquire(timeout=PATIENCE_S)
            systemd.setblocking(False)
            with pytest.raises(BlockingIOError):
                systemd.recv(100)
            systemd.settimeout(PATIENCE_S)
            alive[0] = True
            assert systemd.recv(100) == b"WATCHDOG=1"
        monkeypatch.setenv("WATCHDOG_PID", "1")
        assert heartbeat(lambda: True) is None, "it waits for another process"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "model", "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream",
    "stream_options", "metadata", "n", "logit_bias", "logprobs", "tools", "tool_choice", "response_format", "id",
    "rating", "correction", "presence_penalty", "input", "instructions", "text", "max_output_tokens",
)  # fmt: skip
SMALL: list[dict[str, Any]] = [
    {},
    {"messages": HELLO, "max_tokens": 1},
    {"prompt": "x", "max_tokens": 1},
    {"id": "x"},
]


def changed(valid: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    # An answer as long as the model likes would say nothing more.
    return {**valid, **more} | ({"max_tokens": 1} if "max_tokens" in valid else {})


BODIES = JSON | st.builds(
    changed, st.sampled_from(SMALL), st.dictionaries(st.sampled_from(FIELDS), JSON | st.integers(-3, 3), max_size=3)
)
POSTS = (CHAT, "/v1/completions", "/v1/feedback")


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(POSTS), body=BODIES)
def test_whatever_json_is_sent_is_answered_and_never_a_server_error(url: str, path: str, body: Any) -> None:
    response = httpx.post(url + path, content=json.dumps(body), timeout=PATIENCE_S)
    assert response.status_code < 500, response.text
