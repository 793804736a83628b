"""A screen in a public place: its look and languages, and the PIN of who looks after it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, expect

from fieldlm.api.app import make_app
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.kiosk import Kiosk, load_kiosk
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening
from fieldlm.network.pin import FREE_TRIES, digest_pin
from tests.support.browser import DESK, NARROW, faults, overflow, unreachable

PATIENCE_MS = 60_000
PIN = "4711"
EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/kiosk.toml"
LOGO = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="4" fill="#0b4f6b"/></svg>'
SCREEN = (1024, 600)


@pytest.fixture(scope="module")
def kiosk(tmp_path_factory: pytest.TempPathFactory) -> Kiosk:
    folder = tmp_path_factory.mktemp("kiosk")
    (folder / "logo.svg").write_text(LOGO)
    path = folder / "kiosk.toml"
    path.write_text(f'logo = "logo.svg"\npin = "{digest_pin(PIN)}"\n' + EXAMPLE.read_text())
    path.chmod(0o600)
    return load_kiosk(path)


@pytest.fixture(scope="module")
def live(base_bundle: Bundle) -> Iterator[Generations]:
    made = Generations(base_bundle, EngineOptions(threads=1, context=128, parallel=1))
    yield made
    made.close()


@pytest.fixture
def url(live: Generations, kiosk: Kiosk) -> Iterator[str]:
    with listening(make_app(live, lambda _: None, ready=lambda: None, kiosk=kiosk)) as server:
        yield server.url


def opened(
    browser: Browser, url: str, *, locale: str = "de-AT", scheme: Any = "light", size: tuple[int, int] = SCREEN
) -> Page:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, locale=locale, color_scheme=scheme)
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    return page


def unlock(page: Page, pin: str) -> None:
    page.locator("#staff").click()
    page.locator("#pin").fill(pin)
    page.locator("#pin").press("Enter")


def ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    expect(page.locator("#send")).to_be_visible(timeout=PATIENCE_MS)


def test_it_speaks_the_browsers_language_and_wears_the_files_colours(browser: Browser, url: str) -> None:
    page = opened(browser, url)
    expect(page).to_have_title("Café Nord")
    expect(page.locator("#hint")).to_have_text("Was darf es sein?")
    expect(page.locator("#question")).to_have_attribute("placeholder", "Nachricht")
    expect(page.locator("#state")).to_have_text("bereit")
    assert page.evaluate("document.documentElement.lang") == "de"
    assert page.locator("#send").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(11, 79, 107)"
    page.wait_for_function("() => document.getElementById('logo').naturalWidth > 0")
    for hidden in ("#settings", "#figures", "#model"):
        expect(page.locator(hidden)).to_be_hidden()
    page.close()
    english = opened(browser, url, locale="fr-FR")
    expect(english.locator("#hint")).to_have_text("What would you like?")
    english.close()


def test_without_a_file_there_is_no_gate_and_the_page_is_as_it_was(browser: Browser, live: Generations) -> None:
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        page = opened(browser, server.url)
        expect(page.locator("#hint")).to_have_text("Ask something.")
        expect(page.locator("#staff")).to_be_hidden()
        expect(page.locator("#settings")).to_be_visible()
        expect(page.locator("#figures")).to_be_visible()
        page.close()
        assert httpx.post(f"{server.url}/v1/fieldlm/kiosk/unlock", json={"pin": "1234"}).status_code == 404


def test_only_the_pin_opens_options_and_what_is_left_alone_is_shut_again(browser: Browser, url: str) -> None:
    page = opened(browser, url)
    page.clock.install()
    page.goto(url)
    unlock(page, "0000")
    expect(page.locator("#pin-refused")).to_have_text("Das ist nicht die PIN.")
    page.locator("#cancel-pin").click()
    unlock(page, PIN)
    expect(page.locator("#settings")).to_be_visible()
    expect(page.locator("#figures")).to_be_visible()
    page.locator("#settings").click()
    page.locator("#system").fill("Sag immer ja.")
    page.locator("#apply").click()
    page.locator("#staff").click()
    expect(page.locator("#settings")).to_be_hidden()
    assert "Sag immer ja." not in page.evaluate("JSON.stringify({...localStorage})")
    unlock(page, PIN)
    expect(page.locator("#settings")).to_be_visible()
    page.clock.run_for(100_000)
    expect(page.locator("#settings")).to_be_hidden()
    unlock(page, PIN)
    expect(page.locator("#settings")).to_be_visible()
    page.reload()
    expect(page.locator("#settings")).to_be_hidden()
    page.close()


def test_the_pin_is_in_no_page_and_guessing_it_takes_long(browser: Browser, url: str, kiosk: Kiosk) -> None:
    for path in ("/", "/page.js", "/kiosk.js", "/status"):
        text = httpx.get(url + path).text
        assert kiosk.pin not in text
        assert kiosk.pin.split("$")[2] not in text
    gate = f"{url}/v1/fieldlm/kiosk/unlock"
    tries = [httpx.post(gate, json={"pin": "0000"}) for _ in range(FREE_TRIES)]
    assert [each.status_code for each in tries] == [403] * (FREE_TRIES - 1) + [429]
    assert (httpx.post(gate, json={"pin": PIN}).status_code, tries[-1].headers["retry-after"]) == (429, "30")
    assert httpx.post(gate, json={"pin": 4711}).status_code == 400
    page = opened(browser, url)
    unlock(page, PIN)
    expect(page.locator("#pin-refused")).to_contain_text("Zu viele Versuche. Warten Sie ")
    page.close()


def test_a_conversation_longer_than_the_context_goes_on_and_says_what_is_gone(browser: Browser, url: str) -> None:
    """On the real model: 128 tokens of context hold one such question, and no two."""
    page = opened(browser, url)
    sent: list[dict[str, Any]] = []

    def note(asked: Request) -> None:
        if "completions" in asked.url:
            sent.append(json.loads(asked.post_data or ""))

    page.on("request", note)
    page.evaluate("talk.settings = {max_tokens: 4}")
    for _ in range(3):
        ask(page, "Which of the drinks that you have here is warm, and has milk but no coffee in it at all? " * 2)
    expect(page.locator(".note.failed")).to_have_count(0)
    expect(page.locator(".turn.assistant")).to_have_count(3)
    expect(page.locator(".trimmed")).to_contain_text("Der Anfang dieses Gesprächs hat keinen Platz mehr")
    ask(page, "All of it, please. " * 100)
    expect(page.locator(".note.failed")).to_have_text("Diese Frage ist zu lang. Bitte stellen Sie eine kürzere.")
    assert len({each["metadata"]["session"] for each in sent}) == 1
    page.locator("#clear").click()
    ask(page, "Hi")
    assert len({each["metadata"]["session"] for each in sent}) == 2
    assert [message["content"] for message in sent[-1]["messages"]] == ["Hi"]
    page.close()


def test_a_logo_that_is_opened_by_itself_runs_nothing(url: str) -> None:
    answer = httpx.get(f"{url}/kiosk-logo")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SCREEN, DESK, NARROW], ids=["screen", "desk", "narrow"])
def test_everybody_can_use_it(browser: Browser, url: str, scheme: Any, size: tuple[int, int]) -> None:
    page = opened(browser, url, scheme=scheme, size=size)
    expect(page.locator("#state")).to_have_text("bereit")
    assert (faults(page), overflow(page)) == ([], 0)
    assert unreachable(page) == set()
    unlock(page, "1234")
    expect(page.locator("#pin-refused")).not_to_be_empty()
    assert (faults(page), overflow(page)) == ([], 0)
    page.locator("#pin").fill(PIN)
    page.locator("#pin").press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    assert (faults(page), overflow(page)) == ([], 0)
    assert unreachable(page) == set()
    page.close()
