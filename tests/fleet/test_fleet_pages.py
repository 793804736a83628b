"""The pages of a fleet in a real Chromium: filtered, of a stretch of time, by task, live, empty and in trouble."""

import http.client
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from fieldlm.core.errors import InputError
from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.fleet.command import main
from fieldlm_compiler.fleet.page import Asked
from fieldlm_compiler.fleet.request_tasks import tell_by
from fieldlm_compiler.fleet.view import Selection, TellTask, look
from fieldlm_compiler.learn.router import write_router
from tests.support.browser import DESK, NARROW, faults, overflow, unreachable
from tests.support.fleet_pages import served

HOUR_MS = 3_600_000
OLD, NEW = "a1b2c3d4e5f6", "ffff00001111"
SAID = {
    "t-1": ("a large latte with oat milk please", "two espressos to go", "one cappuccino and a flat white"),
    "t-2": ("are you open on sunday", "when do you close today", "until what time are you open"),
}
NAMES = {"t-1": "order: latte", "t-2": "opening hours: open"}


def asked_for(text: str) -> str:
    return json.dumps([{"role": "system", "content": "You sell coffee."}, {"role": "user", "content": text}])


def records(device: str, generation: str, hours_ago: float, prompts: list[str], wrong: set[int]) -> list[Record]:
    now_ms = time.time_ns() // 1_000_000
    given = [
        Record(
            device=device, epoch=7, stream="gen", seq=seq, kind="generation", generation=generation, model="kiosk",
            wall_ms=round(now_ms - hours_ago * HOUR_MS + seq), response=f"{device}-{seq}", outcome="stop",
            completion_tokens=21, queue_ms=10.0, ttft_ms=100.0, duration_ms=500.0,
            prompt=asked_for(text) if text else "",
        )
        for seq, text in enumerate(prompts, 1)
    ]  # fmt: skip
    said = [
        Record(device=device, epoch=7, stream="fb", seq=n, kind="feedback", response=f"{device}-{seq}", rating="down",
               wall_ms=now_ms)
        for n, seq in enumerate(sorted(wrong), 1)
    ]  # fmt: skip
    return [*given, *said]


def fill(store: Store, *told: list[Record]) -> None:
    for part in told:
        for stream in ("gen", "fb"):
            own = [record for record in part if record.stream == stream]
            if own:
                store.append([block.parse(block.encode(own))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kiosks: one asked for orders and hours an hour ago, one of another generation three days ago."""
    made = tmp_path_factory.mktemp("fleet") / "store"
    orders, hours = list(SAID["t-1"]), list(SAID["t-2"])
    with Store(made) as store:
        fill(
            store,
            records("kiosk-1", OLD, 0.5, [*orders, *hours, "", ""], {4, 5}),
            records("robot-2", NEW, 72, [*orders, *orders], {1}),
        )
        store.note_presence("kiosk-1", '{"state": "ready"}')
        store.note_presence("robot-2", '{"state": "lost"}')
    return made


@pytest.fixture(scope="module")
def tell(tmp_path_factory: pytest.TempPathFactory) -> TellTask:
    path = tmp_path_factory.mktemp("tasks") / "router.npz"
    texts = [(text, task) for task, said in SAID.items() for text in said for _ in range(6)]
    write_router(path, [text for text, _ in texts], [task for _, task in texts], NAMES)
    return tell_by(path)


@pytest.fixture(scope="module")
def url(folder: Path, tell: TellTask) -> Iterator[str]:
    with served(folder, tell) as found:
        yield found


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    made = browser.new_page(viewport={"width": DESK[0], "height": DESK[1]})
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("request", lambda asked: None if asked.url.startswith((url, "data:")) else wrong.append(asked.url))
    made.goto(url)
    yield made
    made.close()
    assert not wrong, "a script failed, or something was fetched from elsewhere"


def names(page: Page) -> list[str]:
    return page.locator("table td a").all_text_contents()


def test_a_fleet_is_filtered_by_device_generation_and_words(page: Page) -> None:
    assert sorted(names(page)) == ["kiosk-1", "robot-2"]
    for field, value, left in (
        ("device", "robot", "robot-2"),
        ("text", "LOST", "robot-2"),
        ("text", "ready", "kiosk-1"),
    ):
        page.locator(f"[name={field}]").fill(value)
        page.get_by_role("button", name="Show").click()
        page.wait_for_url(f"**{field}={value}*")
        assert names(page) == [left]
        expect(page.locator(f"[name={field}]")).to_have_value(value)
        page.get_by_role("link", name="Show all").click()
        expect(page.locator("table td a")).to_have_count(2)
    page.locator("[name=generation]").select_option(NEW)
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(f"**generation={NEW}*")
    assert names(page) == ["robot-2"]
    expect(page.locator("[name=generation] option")).to_have_count(3)


def test_of_a_stretch_of_time_only_its_answers_count(folder: Path, page: Page) -> None:
    since_ms = round(time.time() * 1000 - 24 * HOUR_MS)
    with Store(folder, read_only=True) as store:
        today, ever = look(store, Selection(since_ms=since_ms)), look(store)
    assert [(d.device, d.answers, d.corrected) for d in today.devices] == [("kiosk-1", 8, 2), ("robot-2", 0, 0)]
    assert [(d.device, d.answers, d.corrected) for d in ever.devices] == [("kiosk-1", 8, 2), ("robot-2", 6, 1)]
    assert (sum(each.answers for each in ever.trend), sum(each.corrected for each in ever.trend)) == (14, 3)
    assert (ever.trend[0].answers, ever.trend[-1].answers) == (6, 8)
    steps = {later.wall_ms - each.wall_ms for each, later in pairwise(ever.trend)}
    assert max(steps) - min(steps) <= 1, "a stretch without an answer is as long as another"
    page.locator("[name=hours]").select_option(label="the last day")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**hours=24*")
    expect(page.locator(".tile").nth(1)).to_contain_text("8answers")
    page.get_by_role("link", name="robot-2").click()
    expect(page.locator("tbody tr")).to_have_count(1)  # what somebody said today of an answer of that day
    expect(page.locator(".tile").nth(1)).to_contain_text("of 0 answers")
    page.get_by_role("link", name="all devices").click()
    expect(page.locator("[name=hours]")).to_have_value("24")


def test_a_timeline_is_filtered_by_words(page: Page) -> None:
    page.get_by_role("link", name="kiosk-1").click()
    expect(page.locator("tbody tr")).to_have_count(10)
    page.locator("[name=text]").fill("feedback")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    page.locator("[name=text]").fill("no such word")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#live")).to_contain_text("Nothing is what was asked for")


def test_quality_is_told_by_task_and_generation_and_no_word_of_a_customer_is_shown(
    folder: Path, page: Page, tell: TellTask
) -> None:
    with Store(folder, read_only=True) as store:
        fleet = look(store, tell=tell)
    found = {(each.name, each.generation): (each.answers, each.corrected) for each in fleet.tasks}
    assert found == {
        ("order: latte", OLD): (3, 0),
        ("order: latte", NEW): (6, 1),
        ("opening hours: open", OLD): (3, 2),
    }
    assert fleet.unread == 2
    row = page.locator("tr", has_text="opening hours")
    expect(row).to_contain_text("66.7%")
    assert "oat milk" not in page.content()


def test_without_a_router_the_page_says_how_tasks_are_told(folder: Path, browser: Browser) -> None:
    with served(folder) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#live")).to_contain_text("fieldlm fleet --router")
        page.close()


def test_the_command_tells_tasks_and_refuses_what_is_no_router(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_router(tmp_path / "router.npz", [t for s in SAID.values() for t in s for _ in range(6)],
                 [k for k, s in SAID.items() for _ in s for _ in range(6)], NAMES)  # fmt: skip
    assert main(["--store", str(folder), "--router", str(tmp_path)]) == 0
    assert "opening hours: open" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"fieldlm cluster"):
        main(["--store", str(folder), "--router", str(tmp_path / "none")])


def test_a_page_is_kept_fresh_without_a_reload_and_keeps_what_its_reader_does(browser: Browser, tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        fill(store, records("kiosk-1", OLD, 1, ["hello"], set()))
        store.note_presence("kiosk-1", '{"state": "ready"}')
    with served(tmp_path / "store") as url:
        page = browser.new_page()
        page.clock.install()
        page.goto(url)
        page.evaluate("window.mark = 1")
        page.locator("[name=text]").fill("half a wor")
        page.get_by_role("link", name="kiosk-1").focus()
        with Store(tmp_path / "store") as store:
            fill(store, records("kiosk-2", OLD, 1, ["hello"], set()))
        time.sleep(2.1)  # the server computes a view once in two seconds
        page.clock.run_for(10_500)
        expect(page.locator("table td a")).to_have_count(2)
        expect(page.get_by_role("link", name="kiosk-1")).to_be_focused()
        expect(page.locator("[name=text]")).to_have_value("half a wor")
        assert page.evaluate("window.mark") == 1
        page.get_by_role("button", name="Pause").click()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.clock.run_for(60_000)
        assert not asked
        page.get_by_role("button", name="Go on").click()
        expect.set_options(timeout=10_000)
        page.wait_for_timeout(200)
        assert asked
        page.close()


def test_a_page_that_cannot_be_renewed_says_so_and_keeps_its_figures(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.clock.install()
    with served(folder) as url:
        page.goto(url)
        page.route("**/*", lambda route: route.fulfill(status=503, content_type="text/html",
                                                       body="<main><p>the store is gone</p></main>"))  # fmt: skip
        page.clock.run_for(10_500)
        expect(page.locator("#troubled")).to_have_text("Not fresh: the store is gone")
        page.unroute("**/*")
        page.clock.run_for(10_500)
        expect(page.locator("#troubled")).to_have_text("")
    page.clock.run_for(10_500)
    expect(page.locator("#troubled")).to_contain_text("does not answer")
    assert sorted(names(page)) == ["kiosk-1", "robot-2"]
    page.close()


def answered(url: str, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request(method, path)
    response = connection.getresponse()
    found = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("path", "status"), [("/", 200), ("/kiosk-1", 200), ("/nobody", 404), ("/live.js", 200), ("/?x=1", 400)]
)
def test_head_is_answered_as_get_is_without_its_body(url: str, path: str, status: int) -> None:
    head, get = answered(url, path, "HEAD"), answered(url, path)
    assert head[0] == get[0] == status
    assert head[2] == b""
    assert int(head[1]["content-length"]) == len(get[2])
    assert head[1]["content-type"] == get[1]["content-type"]


@pytest.mark.parametrize("query", ["hours=3", "hours=x", "colour=red"])
def test_a_filter_that_makes_no_sense_is_refused_in_words(url: str, query: str) -> None:
    status, _, body = answered(url, f"/?{query}")
    assert status == 400
    assert b"This filter cannot be read" in body


def test_hostile_words_in_the_address_are_text(url: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(
        f"{url}/?device=%22%3E%3Cimg+src%3Dx+onerror%3Dwindow.pwned%3D1%3E&text=%3Cscript%3Ewindow.pwned=1%3C/script%3E"
    )
    expect(page.locator("#live")).to_contain_text("No device is what was asked for")
    assert page.locator("img").count() == 0
    assert page.evaluate("window.pwned") is None
    page.close()


def test_an_empty_store_says_what_would_fill_it_and_a_lost_one_that_it_is_lost(
    tmp_path: Path, browser: Browser
) -> None:
    with Store(tmp_path / "store"):
        pass
    page = browser.new_page()
    with served(tmp_path / "store") as url:
        page.goto(url)
        expect(page.locator("#live")).to_contain_text("No device has been heard of yet")
        assert faults(page) == []
        (tmp_path / "store").rename(tmp_path / "gone")
        response = page.goto(url)
        assert response
        assert response.status == 503
        expect(page.locator("h1")).to_have_text("The store cannot be read")
        assert faults(page) == []
    page.close()


def test_an_address_is_read_back_as_it_was_written() -> None:
    asked = Asked.read({"device": " kiosk ", "hours": "24"})
    assert (asked.device, asked.address) == ("kiosk", "?hours=24")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, NARROW], ids=["desk", "narrow"])
def test_everybody_can_read_it(browser: Browser, url: str, scheme: Any, size: tuple[int, int]) -> None:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    for path in ("/", "/kiosk-1", "/nobody", "/?hours=x", "/?device=none"):
        page.goto(url + path)
        assert (path, faults(page), overflow(page), unreachable(page)) == (path, [], 0, set())
    page.close()
