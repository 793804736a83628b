"""A conversation on the page: Markdown that cannot bite, kept by the browser, edited, asked again, taken away."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from fieldlm.api import dashboard
from fieldlm.api.app import make_app
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening
from tests.support.browser import DESK, NARROW, faults, overflow, unreachable

PATIENCE_MS = 60_000
CHAT = "**/v1/chat/completions"
MARKDOWN = """# Coffee

| size | price |
|---|---|
| small | 2 € |

1. **Grind**, then *brew*: `water / 15`
2. See [the menu](https://example.org/menu)

```python
print("a < b & c")
```
"""


@pytest.fixture(scope="module")
def url(base_bundle: Bundle) -> Iterator[str]:
    live = Generations(base_bundle, EngineOptions(threads=1, context=1024, parallel=2))
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        yield server.url
    live.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": DESK[0], "height": DESK[1]}, accept_downloads=True)
    made = context.new_page()
    made.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else wrong.append(asked.url))
    made.goto(url)
    yield made
    context.close()
    assert not wrong, "a script failed, or something was fetched from elsewhere"


def streamed(*choices: dict[str, Any], **more: Any) -> str:
    return "".join(f"data: {json.dumps({'choices': [{'index': 0, **choice}], **more})}\n\n" for choice in choices)


def whole(text: str, reason: str = "stop", **own: Any) -> str:
    parts = [text[at : at + 7] for at in range(0, len(text), 7)]
    return streamed(*({"delta": {"content": part}, "finish_reason": None} for part in parts)) + streamed(
        {"delta": {}, "finish_reason": reason}, model="big-1", fieldlm=own
    )


def says(page: Page, *bodies: str) -> list[dict[str, Any]]:
    """Have the device say each body in turn, the last for ever; returns what it is asked."""
    asked: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or "{}"))
        route.fulfill(content_type="text/event-stream", body=bodies[min(len(asked), len(bodies)) - 1])

    page.route(CHAT, answer)
    return asked


def ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    expect(page.locator("#send")).to_be_visible()


def options(page: Page, **values: str) -> None:
    page.locator("#settings").click()
    for name, value in values.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#apply").click()
    expect(page.locator("#options")).to_be_hidden()


def test_markdown_is_shown_as_what_it_means(page: Page) -> None:
    says(page, whole(MARKDOWN))
    ask(page, "How?\n# not a heading of mine")
    turn = page.locator(".turn.assistant")
    expect(turn.locator("h2")).to_have_text("Coffee")
    expect(turn.locator("table td").first).to_have_text("small")
    expect(turn.locator("ol > li")).to_have_count(2)
    expect(turn.locator("strong")).to_have_text("Grind")
    expect(turn.locator("pre")).to_have_text('print("a < b & c")\n')
    link = turn.get_by_role("link", name="the menu")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(page.locator(".turn.user")).to_have_text("How?\n# not a heading of mine")


ATTACKS = (
    '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script><b>bold</b>',
    "[click](javascript:window.pwned=1) [data](data:text/html,<script>parent.pwned=1</script>)",
    "![x](https://evil.example/steal?q=1) <https://ok.example> <iframe srcdoc='<script>parent.pwned=1</script>'>",
    '[a](https://x.example/"onmouseover="window.pwned=1) `</code><svg onload=window.pwned=1>`',
    "<form action=https://evil.example><input name=q><button>go</button></form>",
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.pwned=1&gt;">',
    "<style>*{display:none}</style><div id=send class=turn style='position:fixed'>",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_the_model_says_never_runs_and_fetches_nothing(page: Page, attack: str) -> None:
    says(page, whole(attack))
    ask(page, attack)
    turn = page.locator(".turn.assistant")
    expect(page.locator(".turn.user")).to_have_text(attack)
    expect(turn).not_to_be_empty()
    assert (
        turn.locator("img, script, iframe, svg, math, style, form, input, b, div:not(.code):not(.scroll)").count() == 0
    )
    assert turn.evaluate(
        "e => [...e.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        ".every(n => !/^on|style|srcdoc|^id/.test(n))"
    )
    assert turn.evaluate("e => [...e.querySelectorAll('a')].every(a => ['https:', 'mailto:'].includes(a.protocol))")
    for mark in turn.locator("*").all():
        mark.dispatch_event("mouseover")
    assert page.evaluate("window.pwned") is None


def test_not_even_markup_from_a_script_of_the_page_is_run(page: Page) -> None:
    refused = page.evaluate(
        """() => { const tries = [() => { document.body.innerHTML = '<b>'; },
        () => { document.createElement('script').text = '1'; },
        () => trustedTypes.createPolicy('mine', {createHTML: x => x})];
        return tries.map(each => { try { each(); return 'done'; } catch (error) { return error.name; } }); }"""
    )
    assert "done" not in refused


def test_a_conversation_survives_a_reload_and_goes_on_in_its_session(page: Page) -> None:
    asked = says(page, whole("It is *open*."), whole("Until nine."))
    options(page, system="Be brief.", temperature="0.5", max_tokens="40", seed="7")
    ask(page, "Open today?")
    page.reload()
    expect(page.locator(".turn.assistant em")).to_have_text("open")
    ask(page, "Until when?")
    expect(page.locator(".turn")).to_have_count(4)
    assert asked[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Open today?"},
        {"role": "assistant", "content": "It is *open*."},
        {"role": "user", "content": "Until when?"},
    ]
    assert [each["metadata"]["session"] for each in asked] == [asked[0]["metadata"]["session"]] * 2
    for each in asked:
        assert (each["temperature"], each["max_tokens"], each["seed"]) == (0.5, 40, 7)


def test_where_it_is_kept_is_said_and_forget_leaves_nothing(page: Page) -> None:
    says(page, whole("A secret of mine."))
    options(page, system="You know a secret.")
    ask(page, "Tell.")
    assert "A secret of mine." in page.evaluate("JSON.stringify(localStorage)")
    page.locator("#settings").click()
    expect(page.locator("#where")).to_contain_text("kept in this browser")
    page.locator("#forget").click()
    expect(page.locator(".turn")).to_have_count(0)
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.locator("#settings").click()
    expect(page.locator("#system")).to_have_value("")


def test_the_next_customer_finds_nothing_of_the_last_one(page: Page, url: str) -> None:
    asked = says(page, whole("Your card ends in 4711."))
    page.clock.install()
    page.goto(f"{url}/?kiosk&idle=60")
    expect(page.locator("#settings")).to_be_hidden()

    def left_behind() -> bool:
        found = page.evaluate("JSON.stringify({...localStorage}) + document.body.innerText + question.value")
        return "4711" in found or "my card" in found

    for leave in (lambda: page.clock.run_for(70_000), lambda: gone_for(page, 70_000)):
        ask(page, "Which is my card?")
        page.locator("#question").fill("my card again")
        assert left_behind()
        leave()
        page.wait_for_function("() => !document.querySelector('.turn')")
        assert not left_behind()
    sessions = {each["metadata"]["session"] for each in asked}
    assert len(sessions) == len(asked) == 2


def gone_for(page: Page, millis: int) -> None:
    """Close the page as a browser does that breaks down, and open it later."""
    page.evaluate(
        "millis => localStorage.setItem('fieldlm.touched', Number(localStorage['fieldlm.touched']) - millis)", millis
    )
    page.reload()


def test_a_machine_that_slept_shows_who_wakes_it_nothing_of_who_was_there(page: Page, url: str) -> None:
    says(page, whole("Your card ends in 4711."))
    page.clock.install()
    page.goto(f"{url}/?idle=60")
    ask(page, "Which is my card?")
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 3600)
    page.locator("h1").click()
    expect(page.locator(".turn")).to_have_count(0)
    assert "4711" not in page.evaluate("JSON.stringify({...localStorage})")


def test_what_one_tab_forgets_is_forgotten_in_all(page: Page, url: str) -> None:
    says(page, whole("Well."))
    ask(page, "How are you?")
    other = page.context.new_page()
    other.goto(url)
    expect(other.locator(".turn")).to_have_count(2)
    other.locator("#clear").click()
    expect(page.locator(".turn")).to_have_count(0)


@pytest.mark.parametrize(
    "kept",
    [
        "no JSON",
        '{"format": 1}',
        '{"format": 99, "exchanges": []}',
        "[]",
        '{"format":1,"session":"s","from":0,"settings":{},"exchanges":[{"question":1}]}',
    ],
)
def test_what_is_kept_and_cannot_be_read_is_forgotten(page: Page, kept: str) -> None:
    page.evaluate(
        "kept => { localStorage['fieldlm.conversation'] = kept; localStorage['fieldlm.touched'] = Date.now(); }", kept
    )
    says(page, whole("Fine."))
    page.reload()
    ask(page, "Still there?")
    expect(page.locator(".turn")).to_have_count(2)


def test_a_question_is_edited_and_an_answer_asked_for_again(page: Page) -> None:
    asked = says(page, whole("One."), whole("Two."), whole("Three."), whole("Four."))
    ask(page, "First?")
    ask(page, "Second?")
    expect(page.get_by_role("button", name="Ask again")).to_have_count(1)
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".turn")).to_have_text(["First?", "One.", "Second?", "Three."])
    page.get_by_role("button", name="Edit").first.click()
    expect(page.locator("#question")).to_have_value("First?")
    page.locator("#question").press("Escape")
    expect(page.locator("#editing")).to_be_hidden()
    page.get_by_role("button", name="Edit").first.click()
    ask(page, "Other?")
    expect(page.locator(".turn")).to_have_text(["Other?", "Four."])
    assert [message["content"] for message in asked[2]["messages"]] == ["First?", "One.", "Second?"]
    assert [message["content"] for message in asked[3]["messages"]] == ["Other?"]


def test_an_answer_and_its_code_are_copied_as_they_were_written(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    says(page, whole(MARKDOWN))
    ask(page, "How?")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN
    page.get_by_role("button", name="Copy code").click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).startsWith('print')")


@pytest.mark.parametrize(("button", "name"), [("#save-md", "conversation.md"), ("#save-json", "conversation.json")])
def test_a_conversation_is_taken_away_as_a_file(page: Page, button: str, name: str, tmp_path: Path) -> None:
    says(page, whole(MARKDOWN, "length"))
    options(page, system="Be brief.")
    ask(page, "How?")
    page.locator("#settings").click()
    with page.expect_download() as download:
        page.locator(button).click()
    assert download.value.suggested_filename == name
    download.value.save_as(tmp_path / name)
    text = (tmp_path / name).read_text()
    if name.endswith("json"):
        document = json.loads(text)
        assert [each["role"] for each in document["messages"]] == ["system", "user", "assistant"]
        assert document["messages"][2]["content"] == MARKDOWN
    else:
        assert MARKDOWN in text
        assert "cut off" in text
        assert "Be brief." in text


def test_an_answer_that_was_cut_off_says_so(page: Page) -> None:
    says(page, whole("And then", "length"))
    ask(page, "Go on for ever.")
    expect(page.locator(".exchange .note")).to_contain_text("cut off")
    expect(page.locator("#question")).to_have_value("")


HALF = streamed({"delta": {"content": "Half an"}})
BUSY = {"error": {"message": "The device is busy; try again."}}
FAILURES: dict[str, Callable[[Route], None]] = {
    "broke off": lambda route: route.fulfill(content_type="text/event-stream", body=HALF),
    "cannot be reached": lambda route: route.abort("connectionrefused"),
    "is busy": lambda route: route.fulfill(status=503, json=BUSY),
    "answered 500": lambda route: route.fulfill(status=500, body="<html>"),
}


@pytest.mark.parametrize("told", FAILURES)
def test_an_error_stands_apart_and_its_question_is_asked_again(page: Page, told: str) -> None:
    page.route(CHAT, FAILURES[told])
    ask(page, "Will it end?")
    expect(page.locator(".note.failed")).to_contain_text(told)
    expect(page.locator(".turn.user")).to_have_text("Will it end?")
    assert told not in (page.locator(".turn.assistant").text_content() or "")
    page.reload()
    page.unroute(CHAT)
    asked = says(page, whole("Yes."))
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".turn.assistant")).to_have_text("Yes.")
    expect(page.locator(".note.failed")).to_have_count(0)
    assert [message["content"] for message in asked[0]["messages"]] == ["Will it end?"]


def test_what_failed_is_not_told_to_the_model_again(page: Page) -> None:
    asked = says(page, streamed({"delta": {"content": "Half"}}), whole("Yes."))
    ask(page, "One?")
    ask(page, "Two?")
    assert [message["content"] for message in asked[1]["messages"]] == ["Two?"]


def test_a_screen_reader_hears_the_finished_answer_and_not_its_pieces(page: Page) -> None:
    says(page, whole("It is **nine** o'clock."))
    page.evaluate(
        """() => { const box = document.getElementById('heard'); window.told = [];
        new MutationObserver(() => told.push(box.textContent))
        .observe(box, {childList: true, characterData: true, subtree: true}); }"""
    )
    ask(page, "The time?")
    expect(page.locator("#heard")).to_have_text("It is nine o'clock.")
    assert [each for each in page.evaluate("window.told") if each] == ["It is nine o'clock."]
    assert page.locator("#said").evaluate("e => e.closest('[aria-live], [role=log]')") is None


def test_a_screen_reader_is_told_who_speaks(page: Page) -> None:
    says(page, whole("It is nine."), streamed())
    ask(page, "The time?")
    ask(page, "And now?")
    expect(page.locator(".note.failed")).to_be_visible()
    heard = page.locator("#said").aria_snapshot()
    assert re.search(r"You:.*The time\?.*Answer:.*It is nine\..*You:.*And now\?", heard, re.DOTALL), heard
    assert heard.count("Answer:") == 1, "what has no answer has nobody who gives it"


def stops(page: Page) -> list[str]:
    """Return where the Tab key goes, from the page's beginning to its end."""
    page.evaluate("document.activeElement.blur()")
    found: list[str] = []
    for _ in range(30):
        page.keyboard.press("Tab")
        found.append(page.evaluate("document.activeElement.id"))
    return found


def test_the_tab_key_stops_at_the_state_only_where_it_opens_something(browser: Browser, url: str) -> None:
    for size, path, is_stop in (
        (DESK, "", False),
        (NARROW, "", True),
        (DESK, "?kiosk", False),
        (NARROW, "?kiosk", False),
    ):
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(f"{url}/{path}")
        expect(page.locator("#state")).to_have_text("ready", timeout=PATIENCE_MS)
        expect(page.locator("#state")).to_be_visible()
        found = stops(page)
        assert "question" in found
        assert ("more" in found) is is_stop, (size, path)
        page.close()


def test_an_answer_of_the_large_model_is_marked(page: Page) -> None:
    says(page, whole("Forty-two.", answered_by="large", escalation="unsure"), whole("Yes.", answered_by="small"))
    ask(page, "Why?")
    expect(page.locator(".exchange .note")).to_have_text(
        "Answered by big-1, the large model beside this device (unsure)."
    )
    ask(page, "Sure?")
    expect(page.locator(".exchange").last.locator(".note")).to_have_count(0)
    page.reload()
    expect(page.locator(".exchange").first.locator(".note")).to_contain_text("big-1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, NARROW], ids=["desk", "narrow"])
def test_everybody_can_use_it(browser: Browser, url: str, scheme: Any, size: tuple[int, int]) -> None:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(url)
    expect(page.locator("#state")).to_have_text("ready", timeout=PATIENCE_MS)
    assert faults(page) == []
    says(page, whole(MARKDOWN + "a" * 200, "length", answered_by="large"), streamed({"delta": {"content": "Half"}}))
    ask(page, "How?")
    ask(page, "And?")
    expect(page.locator(".note.failed")).to_be_visible()
    assert (faults(page), overflow(page)) == ([], 0)
    assert unreachable(page) == set()
    page.locator("#settings").press("Enter")
    expect(page.locator("#options")).to_be_visible()
    assert (faults(page), overflow(page)) == ([], 0)
    page.keyboard.press("Escape")
    page.evaluate("askForKey()")
    assert (faults(page), overflow(page)) == ([], 0)
    page.keyboard.press("Escape")
    if size == NARROW:
        page.locator("#more").press("Enter")
        expect(page.locator("#figures")).to_be_visible()
        assert (faults(page), overflow(page)) == ([], 0)
    page.close()


def test_libraries_of_others_are_what_their_makers_built() -> None:
    folder = Path(dashboard.__file__).parent / "static/vendor"
    rows = re.findall(r"^\| `(\S+\.js)` .*`(\w{64})` \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {path.name for path in folder.glob("*.js")}
    for name, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert len(list(folder.glob("LICENSE-*"))) == len(rows)
