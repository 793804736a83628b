"""The page at `/` in a real Chromium: it talks, stops and asks for a key; nothing the model says is run."""

import json
import time
from collections.abc import Iterator
from typing import cast

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from fieldlm.api.app import make_app
from fieldlm.api.dashboard import Leaves
from fieldlm.engines import EngineOptions
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.api_keys import Keys
from fieldlm.network.http_server import listening
from tests.support.browser import overflow

KEY = "a-key-of-fair-length"
PATIENCE_MS = 60_000
KIOSK, LOW, PHONE = (1280, 800), (1024, 600), (390, 844)


@pytest.fixture(scope="module")
def live(base_bundle: Bundle) -> Iterator[Generations]:
    made = Generations(base_bundle, EngineOptions(threads=1, context=1024, parallel=2))
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(live: Generations) -> Iterator[str]:
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        yield server.url


@pytest.fixture(params=[KIOSK, LOW, PHONE], ids=["kiosk", "low", "phone"])
def page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    width, height = request.param
    made = browser.new_page(viewport={"width": width, "height": height}, has_touch=True)
    made.set_default_timeout(PATIENCE_MS)
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith((url, "data:")) else None)
    made.goto(url)
    yield made
    made.close()
    assert not faults, "a script failed, or something was fetched from elsewhere"


def ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.locator("#send").tap()


def test_it_shows_what_runs_and_holds_a_conversation(page: Page, live: Generations) -> None:
    expect(page.locator("#state")).to_have_text("ready", timeout=PATIENCE_MS)
    expect(page.locator("#facts")).to_contain_text(live.current.bundle.generation)
    for question in ("Say hello.", "And again."):
        ask(page, question)
        expect(page.locator("#send")).to_be_visible(timeout=PATIENCE_MS)
    turns = page.locator(".turn").all_text_contents()
    assert (turns[0], turns[2], len(turns)) == ("Say hello.", "And again.", 4)
    assert all(turns)
    expect(page.locator("#speed")).not_to_have_text("–", timeout=PATIENCE_MS)
    expect(page.locator("#speeds polyline")).to_have_count(1)
    page.locator("#clear").tap()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator(".hint")).to_be_visible()


def test_everything_fits_and_can_be_hit_with_a_finger(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("#send", "#question", "#clear", "#settings", "#more"):
        box = page.locator(name).bounding_box()
        assert box
        assert box["height"] >= 48
        assert box["y"] + box["height"] <= (page.viewport_size or {"height": 0})["height"]


@pytest.mark.parametrize("width", [320, 375, 600, 896, 900, 1280])
@pytest.mark.parametrize("path", ["", "?kiosk"])
def test_the_header_fits_while_the_device_is_out_of_reach(browser: Browser, url: str, path: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 700})
    page.route("**/status", lambda route: route.abort("connectionrefused"))
    page.goto(f"{url}/{path}")
    expect(page.locator("#state")).to_have_text("no connection", timeout=PATIENCE_MS)
    expect(page.locator("#state")).to_be_visible()
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('header *')].filter(e => e.checkVisibility()).filter(e => {
        const { left, right } = e.getBoundingClientRect(); return left < -1 || right > innerWidth + 1; })
        .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert (beyond, overflow(page)) == ([], 0)
    page.close()


def test_all_figures_are_seen_at_once(page: Page) -> None:
    expect(page.locator("#facts")).to_contain_text("Answering", timeout=PATIENCE_MS)
    is_narrow = (page.viewport_size or {"width": 0})["width"] < 600
    if is_narrow:
        expect(page.locator("#figures")).to_be_hidden()
        page.locator("#more").tap()
        expect(page.locator("#more")).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#speeds")).to_be_visible()
    assert page.evaluate("() => figures.scrollHeight <= figures.clientHeight")
    expect(page.locator("#facts dd").last).to_be_in_viewport(ratio=1)
    if is_narrow:
        page.locator("#more").tap()
        expect(page.locator("#figures")).to_be_hidden()


def test_a_long_message_is_seen_whole(page: Page) -> None:
    question = page.locator("#question")
    before = question.bounding_box()
    question.fill("where is the charging station " * 9)
    after = question.bounding_box()
    assert before
    assert after
    assert after["height"] > 1.4 * before["height"]
    assert page.evaluate("() => question.scrollHeight <= question.clientHeight + 1 || question.clientHeight > 150")


def test_a_conversation_that_nobody_goes_on_with_is_cleared_after_a_countdown(browser: Browser, url: str) -> None:
    page = browser.new_page(has_touch=True)
    sessions: list[str] = []
    page.on(
        "request", lambda r: sessions.append(json.loads(r.post_data)["metadata"]["session"]) if r.post_data else None
    )
    page.clock.install()
    page.goto(f"{url}/?idle=60")
    for _ in range(2):
        ask(page, "Say hello.")
        expect(page.locator("#send")).to_be_visible(timeout=PATIENCE_MS)
        page.clock.run_for(50_000)
        expect(page.locator("#idle")).to_contain_text("A new conversation begins in")
    page.locator("#idle").tap()
    expect(page.locator("#idle")).to_be_hidden()
    page.clock.run_for(30_000)
    expect(page.locator(".turn")).to_have_count(4)
    page.clock.run_for(40_000)
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "And who are you?")
    expect(page.locator("#send")).to_be_visible(timeout=PATIENCE_MS)
    assert sessions[0] == sessions[1] != sessions[2], "each conversation is a session"
    page.close()


def test_a_conversation_that_outgrows_the_context_goes_on_without_its_beginning(
    browser: Browser, base_bundle: Bundle
) -> None:
    small = Generations(base_bundle, EngineOptions(threads=1, context=192, parallel=1))
    with listening(make_app(small, lambda _: None, ready=lambda: None)) as server:
        page = browser.new_page(has_touch=True)
        page.goto(server.url)
        for _ in range(3):
            ask(page, "Where is the charging station? " * 10)
            expect(page.locator("#send")).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator(".trimmed")).to_have_count(1)
        expect(page.locator(".failed")).to_have_count(0)
        assert all(page.locator(".turn").all_text_contents())
        page.close()
    small.close()


@pytest.fixture
def fresh_url(live: Generations) -> Iterator[str]:
    """A server that has answered nobody yet."""
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        yield server.url


def test_an_answer_is_timed_while_it_is_written_and_stop_really_stops_it(
    browser: Browser, fresh_url: str, live: Generations
) -> None:
    engine = cast(LlamaEngine, live.current.engine)
    page = browser.new_page(has_touch=True)
    page.goto(fresh_url)

    def endless(route: Route) -> None:
        # The server's own answer would end by itself; this one lasts until it is stopped.
        asked = json.loads(route.request.post_data or "{}")
        route.continue_(post_data=json.dumps({**asked, "max_tokens": 900, "temperature": 1.5, "seed": 7}))

    page.route("**/v1/chat/completions", endless)
    ask(page, "Count from 1 to 500: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20")
    expect(page.locator(".turn.assistant")).not_to_be_empty(timeout=PATIENCE_MS)
    expect(page.locator("#speed")).not_to_have_text("–", timeout=PATIENCE_MS)
    expect(page.locator("#stop")).to_be_visible()
    page.locator("#stop").tap()
    expect(page.locator("#send")).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_function("async () => (await (await fetch('status')).json()).running === 0", timeout=PATIENCE_MS)
    deadline_s = time.monotonic() + PATIENCE_MS / 1000
    while engine.running and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert engine.running == 0
    page.close()


def test_a_locked_server_asks_for_the_key_once(browser: Browser, live: Generations) -> None:
    with listening(make_app(live, lambda _: None, ready=lambda: None, keys=Keys([KEY]))) as server:
        page = browser.new_page()
        page.goto(server.url)
        door = page.locator("#door")
        expect(door).to_be_visible(timeout=PATIENCE_MS)
        page.locator("#key").fill("a wrong key, long enough")
        page.locator("#unlock button").click()
        expect(page.locator("#refused")).to_be_visible(timeout=PATIENCE_MS)
        page.locator("#key").fill(KEY)
        page.locator("#unlock button").click()
        expect(page.locator("#state")).to_have_text("ready", timeout=PATIENCE_MS)
        page.reload()
        expect(page.locator("#state")).to_have_text("ready", timeout=PATIENCE_MS)
        expect(door).not_to_be_visible()
        page.close()


def test_it_promises_only_what_the_device_keeps(browser: Browser, live: Generations) -> None:
    for leaves, promise in (
        ("nothing", "Nothing leaves this device."),
        ("figures", "your words do not"),
        ("text", "your words too where you have agreed"),
    ):
        told = cast(Leaves, leaves)
        app = make_app(live, lambda _: None, ready=lambda: None, leaves=lambda told=told: told)
        with listening(app) as server:
            page = browser.new_page()
            page.goto(server.url)
            said = page.locator("#promise")
            expect(said).to_contain_text(promise, timeout=PATIENCE_MS)
            assert ("Nothing leaves" in (said.text_content() or "")) == (leaves == "nothing")
            page.close()
