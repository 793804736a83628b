"""Every command that asks our own server reaches it with keys, over TLS and on a unix socket alone."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from fieldlm.api.app import make_app
from fieldlm.cli import chat, doctor, logs, ps, update
from fieldlm.control.owner_commands import Commands, command_route
from fieldlm.core.config import load_config
from fieldlm.core.errors import InputError, TrustError, UnavailableError
from fieldlm.device.listeners import ListenSettings
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.certificates import certificate_sha256
from fieldlm.network.http_client import HttpClient
from fieldlm.network.http_server import listening
from fieldlm.updates.routes import update_routes
from fieldlm.updates.slots import Slots
from fieldlm.updates.updater import Updater
from fieldlm_compiler.learn import evaluate
from tests.support.certificate import certificate

KEY = "a-key-of-fair-length"


@dataclass
class Site:
    """A server as the settings of its machine describe it."""

    url: str
    has_keys: bool
    folder: Path


@pytest.fixture
def site(
    request: pytest.FixtureRequest, base_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """Settings of the environment, and a server that listens as they say, with updates and the owner's commands."""
    home = {"HOME": str(tmp_path), "FIELDLM_STATE": str(tmp_path / "state"), "FIELDLM_PORT": "0"}
    (tmp_path / "api-keys").write_text(KEY)
    (tmp_path / "api-keys").chmod(0o600)
    more: dict[str, dict[str, str]] = {
        "plain": {},
        "keys": {"FIELDLM_API_KEYS": str(tmp_path / "api-keys")},
        "tls": {"FIELDLM_TLS_CERT": str(tmp_path / "cert.pem"), "FIELDLM_TLS_KEY": str(tmp_path / "key.pem")},
        "socket": {"FIELDLM_HOST": "none", "FIELDLM_SOCKET": str(tmp_path / "s")},
    }
    certificate(tmp_path)
    for name, value in (home | more[request.param]).items():
        monkeypatch.setenv(name, value)
    slots = Slots(tmp_path / "state")
    slots.factory(base_bundle.folder)
    live = Generations(slots.boot(), EngineOptions(threads=1, context=512, parallel=1))
    updater = Updater(slots, live, repository=str(tmp_path / "none"), trust=None)
    commands = Commands(tmp_path / "state", "kiosk-1", {"logs": lambda _: ["a line"]})
    settings = ListenSettings.of(load_config())
    routes = [*update_routes(updater), command_route(commands)]
    app = make_app(live, lambda _: None, ready=lambda: None, keys=settings.keys, extra_routes=routes)
    server = settings.server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    monkeypatch.setenv("FIELDLM_PORT", str(server.port))
    if settings.keys:
        monkeypatch.setenv("FIELDLM_API_KEY", KEY)
    yield Site(server.url, has_keys=settings.keys is not None, folder=tmp_path)
    server.stop()
    thread.join()
    live.close()
    slots.close()


def one_question(folder: Path) -> str:
    path = folder / "eval.jsonl"
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "no answer"}]
    path.write_text(json.dumps({"messages": said}))
    return str(path)


@pytest.mark.parametrize("site", ["plain", "keys", "tls", "socket"], indirect=True)
def test_every_command_reaches_the_server_that_the_settings_describe(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ps.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"]["status"] == "ready"
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert chat.main(["--max-tokens", "2"]) == 0
    assert capsys.readouterr().out.strip()
    # The repository is not there: the server itself says so, in words that only its updater has.
    assert update.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "failed"
    assert logs.main([]) == 0
    assert capsys.readouterr().out == "a line\n"
    assert doctor.check_port(load_config()).text == f"a server on {site.url} says it is healthy"
    assert evaluate.main([one_question(site.folder), "--max-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 1


@pytest.mark.parametrize("site", ["keys"], indirect=True)
def test_a_key_that_is_missing_is_asked_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIELDLM_API_KEY")
    questions = one_question(site.folder)
    for command, argv in ((update.main, []), (ps.main, []), (evaluate.main, [questions])):
        for where in ([], ["--url", site.url]):
            with pytest.raises(InputError, match=r"an API key is needed.*; put the key into FIELDLM_API_KEY"):
                command([*argv, *where])


@pytest.mark.parametrize("site", ["tls"], indirect=True)
def test_https_is_https_and_counts_when_somebody_vouches_for_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = site.url.replace("127.0.0.1", "localhost")
    questions = one_question(site.folder)
    for command, argv in ((evaluate.main, [questions]), (update.main, []), (ps.main, [])):
        with pytest.raises(TrustError, match=r"cannot be trusted.*SSL_CERT_FILE"):
            command([*argv, "--url", url])
    monkeypatch.setenv("SSL_CERT_FILE", str(site.folder / "cert.pem"))
    assert evaluate.main([questions, "--url", url, "--max-tokens", "2"]) == 0
    assert "exact match" in capsys.readouterr().out
    assert HttpClient(site.url, fingerprint=certificate_sha256(site.folder / "cert.pem")[:16]).get("/ready")[0] == 200
    with pytest.raises(TrustError, match="0123456789abcdef was announced or configured"):
        HttpClient(site.url, fingerprint="0123456789abcdef").get("/ready")
    with pytest.raises(UnavailableError, match="is it fieldlm"):
        HttpClient(site.url.replace("https", "http")).get("/ready")


def test_no_key_goes_to_who_only_says_that_he_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDLM_API_KEY", KEY)
    seen: list[dict[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))
        await PlainTextResponse("[]")(scope, receive, send)

    with listening(app) as server:
        with pytest.raises(UnavailableError, match="no fieldlm device of this version"):
            logs.main([server.url])
        HttpClient(server.url).get("/")
    assert b"authorization" not in seen[0]
    assert seen[1][b"authorization"] == f"Bearer {KEY}".encode()


@pytest.mark.parametrize(
    "url", ["kiosk", "unix:", "ftp://kiosk", "http://", "http://kiosk:0", "http://kiosk:x", "http://[::1"]
)
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(InputError, match="is not the address of a server"):
        HttpClient(url)


def test_a_socket_that_nobody_serves_is_free_and_one_that_a_stranger_has_is_not(tmp_path: Path) -> None:
    flags = {"device": "d", "state": str(tmp_path), "host": "none", "socket": str(tmp_path / "s")}
    assert doctor.check_port(load_config(flags, {})).text == f"{tmp_path / 's'} is free"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(tmp_path / "s"))
        stranger.listen()
        assert doctor.check_port(load_config(flags, {})).level == "fail"
