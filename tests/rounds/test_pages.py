"""The pages of rounds in a real Chromium: readable on a telephone and on a desk."""

import json
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Page

from fieldlm.cli.main import main
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.rounds.overview import cells
from fieldlm_compiler.rounds.report import in_service, losses, page, redacted, trend
from fieldlm_compiler.rounds.state import FinishedRound
from fieldlm_compiler.rounds.table import as_json, text
from tests.support.sample_rounds import round_pages, sample_round


def shown(browser: Browser, folder: Path, name: str, width: int) -> Page:
    (folder / "page.html").write_text(round_pages(str)[name])
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((folder / "page.html").as_uri())
    return page


@pytest.mark.parametrize("name", ["round", "rounds"])
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_screen(browser: Browser, tmp_path: Path, name: str, width: int) -> None:
    page = shown(browser, tmp_path, name, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, td, th, span, h1, h2')].filter(e => e.offsetParent && e.innerText.trim())"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
    page.close()


def test_a_refused_round_says_which_task_and_every_task_has_its_bars(browser: Browser, tmp_path: Path) -> None:
    page = shown(browser, tmp_path, "round", 1200)
    assert page.locator("h1").inner_text().startswith("Round 3 refused: 82% (180/220) before, 89% (195/220) now")
    assert "allergens" in page.locator("p.bad").inner_text()
    assert page.locator("svg.bar").count() == 3 * (1 + 4)
    assert page.locator("svg.plot").count() == 2, "the losses, and the calls that are saved"
    assert page.get_by_text("answers 1 task of 2 where it is sure").is_visible()
    assert page.get_by_text("over a session's share").is_visible()
    page.close()


def test_the_losses_of_a_long_training_are_few_points_and_end_where_it_ended() -> None:
    drawn = losses([float(step) for step in range(1000)])
    assert drawn is not None
    points = [point for line in drawn.root.iter("polyline") for point in (line.get("points") or "").split()]
    assert len(points) == 250
    assert losses([1.0]) is None


def test_the_trend_is_of_what_served_after_each_round() -> None:
    drawn = trend([sample_round(str, number) for number in (1, 2, 3)])
    assert drawn is not None
    assert [dot.get("class") for dot in drawn.root.iter("circle")] == ["new", "new", "old"]
    words = [text.text for text in drawn.root.iter("text")]
    assert words[-3:] == ["75%", "82%", "82%"], "of the refused one that of the bundle before"


def test_what_was_redacted_is_counted_by_kind() -> None:
    said = [
        CuratedExample(
            messages=[{"role": "user", "content": "tea"}], answer="{}", label_source="correction", session="s",
            response=str(number), split="train", redacted=kinds,
        )
        for number, kinds in enumerate((["name", "phone"], ["name"], []))
    ]  # fmt: skip
    assert redacted(said) == {"redacted: name": 2, "redacted: phone": 1}


def test_a_round_of_whose_adapter_no_bundle_was_made_is_shown_as_well(tmp_path: Path) -> None:
    made = sample_round(str, 2)
    why = "no bundle was made of the adapter: the artefact is not its source"
    rows = [msgspec.structs.replace(row, this=None) for row in made.tasks]
    document = msgspec.structs.replace(
        made, this=None, tests=[], tasks=rows, decision="refused", reasons=[why], generation=""
    )
    assert why in page(document)
    assert "<span>this round</span>" not in page(document)
    said = text(FinishedRound(folder=tmp_path, document=document))
    assert said.endswith(f"round 2 is refused\n  ✗ {why}\n  {tmp_path / 'report.html'}")
    assert cells(document)[4:] == ["72.7%", "–", f"refused: {why}"]
    assert in_service(document) == made.previous


def test_the_figures_as_json_have_shares_and_intervals() -> None:
    document = as_json(sample_round(str, 2))
    assert document["this"] == {
        "right": 180, "total": 220, "share": pytest.approx(0.818, abs=1e-3), "low": pytest.approx(0.762, abs=1e-3),
        "high": pytest.approx(0.864, abs=1e-3),
    }  # fmt: skip
    assert json.loads(json.dumps(document))["tasks"][0]["previous"]["total"] == 100


def test_rounds_are_read_without_a_trace_and_a_page_is_written_where_one_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "rounds" / "0003"
    one.mkdir(parents=True)
    (one / "round.json").write_bytes(msgspec.json.encode(sample_round(str)))
    before = sorted(tmp_path.rglob("*"))
    assert main(["rounds", str(tmp_path / "rounds"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] is None
    assert sorted(tmp_path.rglob("*")) == before
    page = tmp_path / "rounds.html"
    assert main(["rounds", str(tmp_path / "rounds"), "--page", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    assert "<svg" in page.read_text()


def test_a_round_says_what_came_of_preferences_and_nothing_where_there_were_none() -> None:
    plain = sample_round(str)
    found = {"pairs": {"train": 12, "eval": 10}, "eval_preferred_before": 0.4, "eval_preferred_after": 0.9}
    made, none_held = (
        page(msgspec.structs.replace(plain, tune=plain.tune | {"preferences": found | more}))
        for more in ({}, {"eval_preferred_before": None, "eval_preferred_after": None})
    )
    assert "12 corrections stood against what was answered before; of those to watch with 40% were likelier" in made
    assert "12 corrections stood against what was answered before." in none_held
    assert "stood against" not in page(plain)
