"""Pages of other origins: those that the owner has named may use the API, by HTTP and in a real Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from fieldlm.api.app import make_app
from fieldlm.core.config import Config, load_config
from fieldlm.core.errors import ConfigError
from fieldlm.device.listeners import ListenSettings
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.api_keys import Keys
from fieldlm.network.http_server import listening
from fieldlm.network.json_api import as_json

KEY = "a-key-of-fair-length"
CHAT, STATUS = "/v1/chat/completions", "/v1/fieldlm/status"
APPS = ["https://app.example", "tauri://localhost", "capacitor://localhost", "app://obsidian.md"]
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
ASKS = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    "access-control-request-private-network": "true",
}
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def live(base_bundle: Bundle) -> Iterator[Generations]:
    made = Generations(base_bundle, EngineOptions(threads=1, context=256, parallel=2))
    yield made
    made.close()


def app_of(live: Generations, *origins: str, **more: Any) -> Starlette:
    async def status(_: Request) -> Any:
        return as_json({"device": "kiosk"})

    routes = [Route(STATUS, status, methods=["GET", "POST"])]
    return make_app(live, lambda _: None, ready=lambda: None, origins=origins, extra_routes=routes, **more)


@pytest.fixture(scope="module")
def open_http(live: Generations) -> Iterator[httpx.Client]:
    with listening(app_of(live, *APPS)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def keyed_http(live: Generations) -> Iterator[httpx.Client]:
    app = app_of(live, *APPS, keys=Keys([KEY]))
    with listening(app) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def named(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("origin", APPS)
def test_an_origin_that_was_named_may_ask_and_read(open_http: httpx.Client, origin: str) -> None:
    asked = open_http.options(CHAT, headers={"origin": origin, **ASKS})
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == origin
    assert asked.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-private-network"] == "true"
    for stream in (False, True):
        answer = open_http.post(CHAT, json={**BODY, "stream": stream}, headers={"origin": origin})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
    refused = open_http.post(CHAT, json={**BODY, "max_queue_ms": 0}, headers={"origin": origin})
    assert refused.status_code == 429
    assert refused.headers["access-control-allow-origin"] == origin
    assert "Retry-After" in refused.headers["access-control-expose-headers"]


FOREIGN = [
    "https://evil.example",
    "http://app.example",
    "https://app.example:444",
    "https://app.example.evil.example",
    "https://sub.app.example",
    "null",
    "*",
    "app://obsidian.md.evil",
]


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_page_is_told_nothing(open_http: httpx.Client, keyed_http: httpx.Client, origin: str) -> None:
    for client, status in ((open_http, 403), (keyed_http, 401)):
        for asked in (
            client.options(CHAT, headers={"origin": origin, **ASKS}),
            client.post(CHAT, json=BODY, headers={"origin": origin}),
        ):
            assert (asked.status_code, named(asked)) == (status, {})
            assert asked.headers["vary"] == "Origin"
    with_key = keyed_http.post(CHAT, json=BODY, headers={"origin": origin, **BEARER})
    assert named(with_key) == {}


def test_without_keys_a_page_does_not_reach_what_administers_the_device(open_http: httpx.Client) -> None:
    page = {"origin": APPS[0]}
    for path in (STATUS, "/v1/fieldlm/command", "/v1/adapters", "/metrics", "/status", "/", "/v1/chat", "/v1/modelsx"):
        asked = open_http.options(path, headers={**page, **ASKS})
        assert (asked.status_code, named(asked)) == (403, {}), path
        sent = open_http.post(path, content=b"{}", headers={**page, "content-type": "text/plain"})
        assert (sent.status_code, named(sent)) == (403, {}), path
    assert open_http.get(STATUS).status_code == 200, "who is no page is answered as before"
    own = {"origin": str(open_http.base_url).rstrip("/")}
    assert open_http.get(STATUS, headers=own).status_code == 200, "so is the device's own page"


def test_with_keys_the_key_decides_and_the_question_before_needs_none(keyed_http: httpx.Client) -> None:
    page = {"origin": APPS[1]}
    for path in (CHAT, STATUS):
        assert keyed_http.options(path, headers={**page, **ASKS}).status_code == 204
        locked = keyed_http.post(path, json=BODY, headers=page)
        assert (locked.status_code, locked.headers["access-control-allow-origin"]) == (401, APPS[1])
        assert keyed_http.post(path, json=BODY, headers={**page, **BEARER}).status_code == 200
    assert keyed_http.options(CHAT, headers=page).status_code == 401, "this is no question of a browser's"
    command = keyed_http.options("/v1/fieldlm/command", headers={**page, **ASKS})
    assert named(command) == {}, "it asks for no key"


def test_a_name_that_led_here_from_outside_is_refused_for_any_page(open_http: httpx.Client) -> None:
    rebound = {"origin": APPS[0], "host": "evil.example"}
    assert open_http.options(CHAT, headers={**rebound, **ASKS}).status_code == 403
    assert open_http.post(CHAT, json=BODY, headers=rebound).status_code == 403


def test_no_origin_is_let_in_unless_it_was_named(live: Generations) -> None:
    with listening(app_of(live)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        asked = client.options(CHAT, headers={"origin": APPS[0], **ASKS})
        assert (asked.status_code, named(asked), asked.headers.get("vary")) == (403, {}, None)
    with listening(app_of(live, "*", keys=Keys([KEY]))) as server:
        anywhere = {"origin": "https://any.example"}
        assert httpx.options(server.url + CHAT, headers={**anywhere, **ASKS}).status_code == 204
        assert httpx.post(server.url + CHAT, json=BODY, headers=anywhere).status_code == 401


def config_of(tmp_path: Path, origins: object, **more: object) -> Config:
    flags = {"state": str(tmp_path), "allowed_origins": origins, **more}
    return load_config(flags, {"HOME": str(tmp_path)})


def test_origins_are_spelt_as_browsers_spell_them(tmp_path: Path) -> None:
    given = "HTTPS://App.Example:443/, tauri://localhost,http://[::1]:3000,http://10.0.0.7:80"
    wanted = ("https://app.example", "tauri://localhost", "http://[::1]:3000", "http://10.0.0.7")
    assert config_of(tmp_path, given).allowed_origins == wanted
    assert config_of(tmp_path, None).allowed_origins == ()


@pytest.mark.parametrize(
    "wrong",
    ["app.example", "https://", "https://app.example/chat", "https://*.example", "null", "https://a@b", "file://"],
)
def test_what_is_no_origin_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed_origins is .* want SCHEME://HOST"):
        config_of(tmp_path, wrong)


def test_every_page_is_let_in_only_where_keys_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would let every web page in"):
        ListenSettings.of(config_of(tmp_path, "*"))
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    assert ListenSettings.of(config_of(tmp_path, "*", api_keys=str(keys))).keys


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "these tests need Chromium; run: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser.new_page()
        browser.close()


FETCH = """async ([url, body, headers]) => {
    try {
        const response = await fetch(url, {method: "POST", body: JSON.stringify(body), headers});
        return [response.status, await response.text(), response.headers.get("retry-after")];
    } catch (error) {
        return [0, String(error), null];
    }
}"""


def test_a_browser_lets_the_page_of_a_named_origin_talk_and_no_other(page: Page, live: Generations) -> None:
    async def home(_: Request) -> HTMLResponse:
        return HTMLResponse("<!doctype html><title>An app</title>")

    def ask(url: str, **body: Any) -> Any:
        headers = {"content-type": "application/json", **BEARER}
        return page.evaluate(FETCH, [url, {**BODY, **body}, headers])

    elsewhere = Starlette(routes=[Route("/", home)])
    with listening(elsewhere) as app, listening(elsewhere) as other:
        for keys in (None, Keys([KEY])):
            with listening(app_of(live, app.url, keys=keys)) as server:
                page.goto(app.url)
                status, text, _ = ask(server.url + CHAT, stream=True)
                assert (status, text.endswith("data: [DONE]\n\n")) == (200, True)
                assert ask(server.url + CHAT, max_queue_ms=0)[::2] == [429, "2"]
                assert ask(server.url + STATUS)[0] == (200 if keys else 0)
                page.goto(other.url)
                assert ask(server.url + CHAT)[0] == 0
