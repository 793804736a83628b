"""`fieldlm fleet` and its pages, in a real Chromium: what a store holds is what one sees, and nothing more."""

import http.client
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from fieldlm.core.errors import InputError
from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.fleet import command
from fieldlm_compiler.fleet.command import describe, main
from fieldlm_compiler.fleet.observation import FleetSnapshot
from fieldlm_compiler.fleet.page import fleet_page
from fieldlm_compiler.fleet.serve import Pages
from fieldlm_compiler.fleet.view import look, timeline
from tests.support.fleet_pages import served

ATTACK = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
DESK, PHONE = (1280, 900), (390, 844)
BEGAN_MS = 1_764_000_000_000


def answers(device: str, count: int, *, first: int = 1, generation: str = "a1b2c3d4e5f6") -> list[Record]:
    """Answers of 21 tokens: 10 ms of waiting, 90 to the first token, then 400 for twenty others. One in ten fails."""
    return [
        Record(
            device=device,
            epoch=7,
            stream="gen",
            seq=seq,
            kind="generation",
            wall_ms=BEGAN_MS + 1000 * seq,
            generation=generation,
            model="kiosk",
            outcome="error" if seq % 10 == 0 else "stop",
            completion_tokens=21,
            queue_ms=10.0,
            ttft_ms=100.0,
            duration_ms=500.0,
            prompt="never to be seen here",
        )
        for seq in range(first, first + count)
    ]


def updates(device: str, *ends: tuple[str, str]) -> list[Record]:
    """Ends of updates, one after the other: what happened, and why."""
    return [
        msgspec.convert(
            {
                "device": device, "epoch": 7, "stream": "ota", "seq": n, "kind": "update", "wall_ms": BEGAN_MS + n,
                "detail": {"event": f"update.{end}", "reason": reason},
            },
            Record,
        )
        for n, (end, reason) in enumerate(ends, 1)
    ]  # fmt: skip


def test_a_device_whose_last_update_failed_says_so(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for device, *ends in (
            ("kiosk-1", ("committed", ""), ("rolled-back", "hangs")),
            ("kiosk-2", ("failed", "link"), ("committed", "")),
        ):
            store.append([block.parse(block.encode(updates(device, *ends)))])
            store.note_presence(device, '{"state": "ready"}')
    with Store(tmp_path, read_only=True) as store:
        fleet = look(store)
    assert [device.failed for device in fleet.devices] == ["hangs", ""]
    assert describe(fleet).count("ready, last update failed: hangs") == 1
    assert fleet_page(fleet, "store").count("ready, last update failed: hangs") == 1


def test_the_generation_of_a_device_is_what_it_runs_and_not_what_it_answered_with_last(tmp_path: Path) -> None:
    """After a rollback or an update nobody asks for a while."""
    back = {"event": "update.rolled-back", "reason": "asked", "bundle": "a1b2c3d4e5f6", "generation": "db1ab03b85d0"}
    new = {"event": "update.committed", "bundle": "cc5ecddd0000"}
    at_ms = BEGAN_MS + 60_000
    with Store(tmp_path) as store:
        for name, state, detail in (
            ("kiosk-1", {"state": "ready", "generation": "db1ab03b85d0", "model": "older"}, None),
            ("kiosk-2", {"state": "lost"}, back),
            ("kiosk-3", {"state": "stopped"}, new),
            ("kiosk-4", {"state": "lost"}, None),
            ("kiosk-5", {"state": "ready", "generation": 5, "model": []}, None),
        ):
            fill(store, answers(name, 5))
            if detail:
                record = updates(name, ("", ""))[0]
                store.append(
                    [block.parse(block.encode([msgspec.structs.replace(record, wall_ms=at_ms, detail=detail)]))]
                )
            store.note_presence(name, msgspec.json.encode(state).decode())
        fill(store, answers("kiosk-4", 1, first=6, generation="0123456789ab"))
        fleet = look(store)
    db1, cc5 = ("db1ab03b85d0", False), ("cc5ecddd0000", False)
    found = [(device.generation, device.is_last_answer) for device in fleet.devices]
    assert found == [db1, db1, cc5, ("0123456789ab", True), ("a1b2c3d4e5f6", True)]
    assert [device.model for device in fleet.devices] == ["older", *["kiosk"] * 4]
    for shown in (describe(fleet), fleet_page(fleet, "store")):
        assert (shown.count("db1ab03b"), shown.count("01234567 (last answer)")) == (2, 1)


def events(device: str) -> list[Record]:
    drop = {"stream": "gen", "from": "41", "to": "45", "count": "5", "reason": "spool-full"}
    kinds: list[tuple[str, dict[str, str]]] = [("drop", drop), ("system", {"event": ATTACK})]
    return [
        msgspec.convert(
            {"device": device, "epoch": 7, "stream": "sys", "seq": n, "kind": kind, "detail": detail, "wall_ms": n},
            Record,
        )
        for n, (kind, detail) in enumerate(kinds, 1)
    ]


def fill(store: Store, *parts: Sequence[Record]) -> None:
    store.append([block.parse(block.encode(part, first=1 if part[0].seq > 1 else None)) for part in parts])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fleet") / "store"
    with Store(made) as store:
        fill(store, answers("kiosk-1", 40), answers("kiosk-2", 20, generation="ffff00001111"))
        kept = [record for record in answers("robot-3", 50) if not 41 <= record.seq <= 45]
        fill(store, kept, events("robot-3"))
        for device, state in (("kiosk-1", "ready"), ("kiosk-2", "lost"), ("robot-3", ATTACK)):
            store.note_presence(device, msgspec.json.encode({"device": device, "state": state}).decode())
        store.note_presence("new-4", "no JSON at all")
    return made


def test_every_figure_of_a_device_comes_out_of_its_records(folder: Path) -> None:
    with Store(folder, read_only=True) as store:
        fleet = look(store)
    kiosk, other, robot = (next(d for d in fleet.devices if d.device == n) for n in ("kiosk-1", "kiosk-2", "robot-3"))
    assert (kiosk.state, kiosk.records, kiosk.answers, kiosk.fine) == ("ready", 40, 40, 36)
    assert (kiosk.tokens_per_s, kiosk.ttft_p50_ms) == (pytest.approx(50.0), 100.0)
    assert (kiosk.queue_ms, kiosk.prompt_ms, kiosk.decode_ms) == (400.0, 3600.0, 16000.0)
    assert kiosk.last_ms == BEGAN_MS + 40_000
    assert kiosk.bytes
    assert (other.state, other.generation) == ("lost", "ffff00001111")
    assert (robot.lost, robot.told, fleet.lost) == (0, 5, 0)
    assert fleet.outcomes == {"stop": 94, "error": 11}
    assert [(g.generation, g.devices) for g in fleet.generations] == [("a1b2c3d4e5f6", 2), ("ffff00001111", 1)]
    assert [d.state for d in fleet.devices if d.device == "new-4"] == ["unreadable"]


def test_answers_that_people_corrected_are_counted_beside_those_that_failed(tmp_path: Path) -> None:
    given = [msgspec.structs.replace(each, response=f"r{each.seq}") for each in answers("kiosk-1", 8)]
    said = [("r1", "", "two, please"), ("r1", "", "three, please"), ("r2", "down", ""), ("r3", "up", "")]
    feedback = [
        Record(device="kiosk-1", epoch=7, stream="fb", seq=n, kind="feedback", response=r, rating=rating, correction=c)
        for n, (r, rating, c) in enumerate([*said, ("elsewhere", "down", "")], 1)
    ]
    with Store(tmp_path) as store:
        fill(store, given, feedback)
        fleet = look(store)
        assert "25.0%" in fleet_page(fleet, "test")
    assert [(each.answers, each.fine, each.corrected) for each in fleet.devices] == [(8, 8, 2)]
    assert [(each.answers, each.fine, each.corrected) for each in fleet.generations] == [(8, 8, 2)]


def test_corrections_are_counted_where_their_words_are_not(tmp_path: Path) -> None:
    """As a device in mode `metrics` sends them, or without consent, and as they are once their text is too old."""
    given = [msgspec.structs.replace(each, response=f"r{each.seq}") for each in answers("kiosk-1", 8)]
    said = Record(
        device="kiosk-1", epoch=7, stream="fb", seq=1, kind="feedback", response="r1", detail={"corrected": "yes"},
        wall_ms=BEGAN_MS + 9000,
    )  # fmt: skip
    other = msgspec.structs.replace(said, seq=2, response="r2", detail={"corrected": "no"})
    with Store(tmp_path) as store:
        fill(store, given, [said, other])
        fleet, events = look(store), timeline(store, "kiosk-1", 2)
    assert [(each.answers, each.fine, each.corrected) for each in fleet.devices] == [(8, 8, 1)]
    assert [each.corrected for each in fleet.generations] == [1]
    assert sum(each.corrected for each in fleet.trend) == 1
    assert [each.text for each in events] == ["corrected", "corrected=no"]


def test_tokens_that_a_form_forced_are_no_speed(tmp_path: Path) -> None:
    """They are read as a prompt is; what else a device may say of their number is not believed."""
    forced = [msgspec.structs.replace(each, detail={"forced": "10"}) for each in answers("kiosk-1", 9)]
    read = [msgspec.structs.replace(each, detail={"forced": "21"}) for each in answers("kiosk-1", 9, first=10)]
    junk = [{"forced": "many"}, {"forced": "-1000"}, {}]
    odd = [msgspec.structs.replace(each, detail=junk[at % 3]) for at, each in enumerate(answers("kiosk-2", 9))]
    with Store(tmp_path) as store:
        fill(store, [*forced, *read], odd)
        fleet, snapshot = look(store), FleetSnapshot.read(store, since_ms=0)
    assert [device.tokens_per_s for device in fleet.devices] == [pytest.approx(25.0), pytest.approx(50.0)]
    vitals = [snapshot.answered[device][0].vitals for device in ("kiosk-1", "kiosk-2")]
    assert [each.tokens_per_s for each in vitals] == [pytest.approx(25.0), pytest.approx(50.0)]


def test_what_a_large_model_answered_is_counted_and_says_nothing_of_the_generation(tmp_path: Path) -> None:
    own = answers("kiosk-1", 9)
    slow = {"route": "large", "model": "big-1", "duration_ms": 9000.0, "ttft_ms": 5000.0, "outcome": "error"}
    handed = [msgspec.structs.replace(each, **slow) for each in answers("kiosk-1", 3, first=10)]
    with Store(tmp_path) as store:
        fill(store, [*own, *handed])
        fleet = look(store)
        snapshot = FleetSnapshot.read(store, since_ms=0)
        assert "25%" in fleet_page(fleet, "test").replace(".0%", "%")
    (device,), (generation,) = fleet.devices, fleet.generations
    assert (device.answers, device.large, device.fine, device.model) == (9, 3, 9, "kiosk")
    assert (generation.answers, generation.large, generation.model) == (9, 3, "kiosk")
    assert device.tokens_per_s == pytest.approx(50.0)
    assert "a large model answered 3 more" in describe(fleet)
    (counted,) = snapshot.answered["kiosk-1"]
    assert (counted.answers, counted.vitals.errors) == (9, 0.0)


def test_the_command_prints_a_table_a_timeline_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "kiosk-1  ready" in said
    assert "0 records lost, 5 dropped and told" in said
    assert main(["--store", str(folder), "--json"]) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert (len(document["devices"]), document["lost"]) == (4, 0)
    assert main(["robot-3", "--store", str(folder), "--last", "3", "--json"]) == 0
    assert [event["seq"] for event in msgspec.json.decode(capsys.readouterr().out)] == [48, 49, 50]
    assert main(["robot-3", "--store", str(folder), "--last", "99"]) == 0
    assert "dropped 5 of gen: spool-full" in capsys.readouterr().out


def test_a_lost_record_makes_the_answer_no(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        fill(store, answers("kiosk-1", 5, first=3))
    assert main(["--store", str(tmp_path), "--json"]) == 1


@pytest.mark.parametrize("argv", [["nobody"], ["a/b"], ["--last", "0"]])
def test_wrong_use_is_said_in_a_line(folder: Path, argv: list[str]) -> None:
    with pytest.raises(InputError):
        main([*argv, "--store", str(folder)])


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as found:
        yield found


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    width, height = request.param
    made = browser.new_page(viewport={"width": width, "height": height})
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(url) else None)
    made.goto(url)
    yield made
    made.close()
    assert not faults, "a script failed, or something was fetched from elsewhere"


def test_the_page_shows_the_fleet_and_leads_to_a_devices_timeline(page: Page) -> None:
    expect(page.locator("main")).to_contain_text("4devices, 1 ready")
    expect(page.locator(".tile b.good").last).to_have_text("0")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("link", name="robot-3").click()
    expect(page.locator("h1")).to_have_text("robot-3")
    expect(page.locator("svg.columns g")).to_have_count(45)
    expect(page.locator("main")).to_contain_text("dropped 5 of gen: spool-full")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("link", name="all devices").click()
    expect(page.locator("h1")).to_have_text("fieldlm fleet")


def test_what_devices_say_of_themselves_is_text_and_no_prompt_is_shown(browser: Browser, url: str) -> None:
    page = browser.new_page()
    for path in ("", "/robot-3"):
        page.goto(url + path)
        expect(page.locator("main")).to_contain_text(ATTACK[:20])
        assert page.locator("img, script:not([src='/live.js'])").count() == 0
        assert "never to be seen" not in page.content()
        assert page.evaluate("window.pwned") is None
    page.close()


def test_only_this_machine_by_its_own_name_may_read_it(url: str) -> None:
    hosts = (("/", "evil.example", 403), ("/nobody", "127.0.0.1", 404), ("/", "localhost:1", 200))
    for path, host, status in (*hosts, ("/", "127.0.0.1:1, evil.example", 403), ("/", "localhost:evil.example", 403)):
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", path, headers={"host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_a_page_of_many_devices_shows_those_first_that_need_a_look(tmp_path: Path) -> None:
    rng = random.Random(3)
    names = [f"device-{number:03}" for number in range(250)]
    sick = rng.choice(names)
    with Store(tmp_path) as store:
        for name in names:
            fill(store, answers(name, 1))
            store.note_presence(name, '{"state":"lost"}' if name == sick else '{"state":"ready"}')
        drawn = fleet_page(look(store), "test")
    assert drawn.index(f"/{sick}") < min(drawn.index(f"/{name}") for name in names[:5] if name != sick)
    assert "and 50 more" in drawn


def test_pages_that_are_served_wait_for_the_store_of_a_collector(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "store"
    looks: list[float] = []

    def a_look_later(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:  # a collector that has only just begun
            folder.mkdir()
            (folder / "store.db").touch()
        if len(looks) == 2:
            Store(folder).close()

    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_sleep", a_look_later)
    monkeypatch.setattr(Pages, "serve_forever", ctrl_c)
    assert main(["--store", str(folder), "--serve", "--port", "0"]) == 0
    assert len(looks) == 2
    assert len([each for each in logged.messages if "waiting for: fieldlm collect" in each]) == 1
    assert f"the fleet of {folder} is at http://" in capsys.readouterr().out
    monkeypatch.setattr(command, "_sleep", ctrl_c)
    assert main(["--store", str(tmp_path / "never"), "--serve", "--port", "0"]) == 0
    with pytest.raises(InputError, match="is no store; fill one with"):
        main(["--store", str(tmp_path / "never")])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is no store"):
        main(["--store", str(tmp_path / "file"), "--serve"])
