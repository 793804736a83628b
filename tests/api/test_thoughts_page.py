"""The page while a model thinks: it says so, has the thought folded beside the answer, and never sends it back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from fieldlm.api.app import make_app
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening
from tests.api.test_chat_page import PATIENCE_MS, ask, says, streamed, whole
from tests.support.browser import DESK, NARROW, faults, overflow, unreachable

THOUGHT = "They ask <b>when</b>.\n\n  So: nine."
HELD = """() => { const real = window.fetch; window.fetch = async (where, how) => {
  if (!String(where).endsWith('chat/completions')) return real(where, how);
  const body = new ReadableStream({start(to) { window.tell = text => to.enqueue(new TextEncoder().encode(text));
    window.end = () => to.close(); }});
  return new Response(body); }; }"""
"""Lets the test say when each piece of an answer comes."""


@pytest.fixture(scope="module")
def url(base_bundle: Bundle) -> Iterator[str]:
    live = Generations(base_bundle, EngineOptions(threads=1, context=128, parallel=1))
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        yield server.url
    live.close()


def opened(browser: Browser, url: str, *, scheme: Any = "light", size: tuple[int, int] = DESK) -> Page:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    return page


def thought_first(answer: str = "Nine.", thought: str = THOUGHT, reason: str = "stop") -> str:
    parts = [thought[at : at + 5] for at in range(0, len(thought), 5)]
    deltas = [{"delta": {"reasoning_content": part}, "finish_reason": None} for part in parts]
    return streamed(*deltas) + whole(answer, reason)


def test_while_it_thinks_the_page_says_so(browser: Browser, url: str) -> None:
    page = opened(browser, url)
    page.evaluate(HELD)
    page.locator("#question").fill("When?")
    page.locator("#question").press("Enter")
    page.wait_for_function("() => window.tell")
    turn, thought = page.locator(".turn.assistant"), page.locator("details.thought")
    expect(turn).to_have_text("")
    expect(thought).to_be_hidden()
    page.evaluate("text => tell(text)", streamed({"delta": {"reasoning_content": "They "}}))
    expect(turn).to_have_text("Thinking…")
    expect(page.locator("#heard")).to_have_text("Thinking…")
    expect(thought).to_be_visible()
    assert thought.get_attribute("open") is None
    assert faults(page) == []
    page.evaluate("text => tell(text)", streamed({"delta": {"content": "Nine."}}))
    page.evaluate("text => { tell(text); end(); }", whole(""))
    expect(turn).to_have_text("Nine.")
    expect(page.locator("#heard")).to_have_text("Nine.")
    page.close()


def test_a_thought_is_folded_beside_its_answer_as_it_was_written(browser: Browser, url: str) -> None:
    page = opened(browser, url)
    says(page, thought_first())
    ask(page, "When?")
    thought = page.locator("details.thought")
    expect(page.locator(".turn.assistant")).to_have_text("Nine.")
    expect(thought.locator("p")).to_be_hidden()
    thought.locator("summary").press("Enter")
    expect(thought.locator("p")).to_be_visible()
    assert thought.locator("p").text_content() == THOUGHT
    assert thought.locator("b").count() == 0
    page.reload()
    assert page.locator("details.thought p").text_content() == THOUGHT
    page.close()


def test_a_thought_is_never_sent_back_and_what_only_thought_is_no_answer(browser: Browser, url: str) -> None:
    page = opened(browser, url)
    asked = says(page, thought_first(), thought_first("", reason="length"), whole("Yes."))
    for question in ("When?", "And then?", "Sure?"):
        ask(page, question)
    expect(page.locator(".exchange").nth(1).locator(".note")).to_contain_text("cut off")
    expect(page.locator("details.thought:not([hidden])")).to_have_count(2)
    assert "They ask" not in json.dumps(asked)
    assert [each["content"] for each in asked[2]["messages"]] == ["When?", "Nine.", "Sure?"]
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".turn.assistant").last).to_have_text("Yes.")
    expect(page.locator(".exchange").last.locator("details")).to_be_hidden()
    page.close()


@pytest.mark.parametrize("button", ["#save-md", "#save-json"])
def test_what_is_taken_away_has_the_thought_apart(browser: Browser, url: str, button: str, tmp_path: Path) -> None:
    page = opened(browser, url)
    says(page, thought_first())
    ask(page, "When?")
    page.locator("#settings").click()
    with page.expect_download() as download:
        page.locator(button).click()
    download.value.save_as(tmp_path / "kept")
    text = (tmp_path / "kept").read_text()
    if button == "#save-json":
        document = json.loads(text)
        assert document["exchanges"][0]["thought"] == THOUGHT
        assert THOUGHT not in [message["content"] for message in document["messages"]]
    else:
        assert f"## Thought\n\n{THOUGHT}\n\n## Answer\n\nNine." in text
    page.close()


def test_a_customer_of_a_kiosk_hears_that_it_thinks_and_sees_no_thought(browser: Browser, url: str) -> None:
    page = opened(browser, f"{url}/?kiosk")
    says(page, thought_first())
    ask(page, "When?")
    expect(page.locator(".turn.assistant")).to_have_text("Nine.")
    expect(page.locator("details.thought")).to_be_hidden()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, NARROW], ids=["desk", "narrow"])
def test_everybody_can_read_a_thought(browser: Browser, url: str, scheme: Any, size: tuple[int, int]) -> None:
    page = opened(browser, url, scheme=scheme, size=size)
    says(page, thought_first(thought="a" * 300 + "\n" + THOUGHT))
    ask(page, "When?")
    assert (faults(page), overflow(page), unreachable(page)) == ([], 0, set())
    page.locator("summary").press("Enter")
    expect(page.locator("details.thought p")).to_be_visible()
    assert (faults(page), overflow(page)) == ([], 0)
    page.close()
