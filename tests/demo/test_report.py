from pathlib import Path
from typing import Any

from fieldlm_compiler.demo.report import axis, candidates, functions, loss_curve, page, steps, timeline, travelled
from fieldlm_compiler.demo.summary import words

PLAIN: dict[str, Any] = {
    "right": 9, "total": 10, "share": 0.9, "low": 0.6, "high": 0.98, "functions": {"order": [6, 6], "price": [3, 4]},
}  # fmt: skip
SCORE = PLAIN | {"strangers": PLAIN}
UPDATE: dict[str, Any] = {
    "requests": 3, "failed": 0, "generation": "new", "bundle_bytes": 150_000_000, "fetched_bytes": 10_000_000,
    "adapter_bytes": 9_000_000,
    "answers": [[100.0, 0.2, "old"], [101.0, 0.4, "old"], [102.0, 0.3, "new"]],
    "steps": [{"name": "switched", "at_s": 101.5}, {"name": "long ago", "at_s": 5.0}],
}  # fmt: skip
REPORT: dict[str, Any] = {
    "model": "m <1>", "profile": "p", "cores": 2, "wall_s": 600, "before": SCORE | {"share": 0.0}, "after": SCORE,
    "candidates": [{"name": "Q8_0", "size_mb": 145.0, "tokens_per_s": 100.0, "chosen": True}],
    "telemetry": {"streams": {"gen": {"produced": 5, "stored": 5}}, "bytes_mqtt": 1000, "bytes_per_record": 200.0,
                  "outage_s": 3.0, "gaps": 0, "doubled": 0},
    "update": UPDATE, "tasks": [{"name": "order", "size": 4, "example": "a <b>latte</b>"}],
    "stages": [{"title": "Compile", "seconds": 12.3, "resumed": False},
               {"title": "Tune", "seconds": 600, "resumed": False}],
    "foreseen_s": 630.0, "interrupted": False, "redacted": {"NAME": 12},
    "curated": {"generations": 7, "examples": 5, "dropped": {"no consent": 2}},
    "tune": {"losses": [2.0, 0.5, 0.0], "examples": 5, "steps": 3, "seconds": 4.2, "device": "cpu",
             "precision": "float32", "eval_loss_before": 2.5, "eval_loss_after": 0.1},
}  # fmt: skip


def drawn_timeline() -> str:
    picture = timeline(UPDATE)
    assert picture
    return picture.__html__()


def test_what_customers_said_is_text_and_never_markup() -> None:
    text = page(REPORT)
    assert "<b>latte" not in text
    assert "a &lt;b&gt;latte&lt;/b&gt;" in text
    assert "m &lt;1&gt;" in text


def test_answers_are_coloured_by_the_generation_that_gave_them() -> None:
    picture = drawn_timeline()
    assert picture.count('class="old"') == 2
    assert picture.count('class="new"') == 1


def test_only_steps_within_the_picture_are_drawn() -> None:
    assert [step["name"] for step in steps(UPDATE)] == ["switched"]
    assert drawn_timeline().count('class="limit"') == 1
    assert "1 switched" in page(REPORT)
    assert "long ago" not in page(REPORT)


def test_an_update_that_nobody_was_there_for_has_no_picture() -> None:
    alone = UPDATE | {"answers": []}
    assert timeline(alone) is None
    assert "long ago" not in page(REPORT | {"update": alone})


def test_the_longest_bar_of_candidates_is_the_largest_value() -> None:
    rows = [{"name": n, "size_mb": s, "tokens_per_s": 10.0} for n, s in (("big", 100.0), ("small", 50.0))]
    widths = [float(bar.root[0].get("width", 0)) for _, bar, _ in candidates(rows)]
    assert widths == [100, 100, 50, 100]


def test_what_is_missing_in_the_store_is_counted() -> None:
    telemetry = REPORT["telemetry"] | {"streams": {"gen": {"produced": 5, "stored": 3}}}
    assert travelled(telemetry) == [("gen", 5, 3, 2)]


def test_the_page_tells_what_was_dropped_what_was_hidden_and_how_long_it_was_foreseen_to_take() -> None:
    text = page(REPORT)
    assert "no consent" in text
    assert "NAME" in text
    assert "10.0 minutes, 10.5 were foreseen" in text


def test_functions_are_counted_over_all_who_were_asked() -> None:
    assert [(name, words) for name, _, words in functions(SCORE)] == [("order", "100% (12/12)"), ("price", "75% (6/8)")]


def test_stages_lie_behind_each_other_on_the_time_axis() -> None:
    rows = axis(REPORT["stages"])
    assert [words for _, _, words in rows] == ["0:00 to 0:12, 12 s", "0:12 to 10:12, 600 s"]
    blank, drawn = rows[1][1].root
    assert float(drawn.get("x", 0)) == float(blank.get("width", 0)) > 0


def test_a_loss_of_nothing_has_its_place_on_a_logarithmic_axis() -> None:
    picture = loss_curve([2.0, 0.5, 0.0])
    assert picture
    assert picture.__html__().count("<circle") == 3
    assert loss_curve([]) is None


def test_what_an_earlier_run_saw_is_not_claimed(tmp_path: Path) -> None:
    unseen = UPDATE | {"requests": None, "failed": None, "fetched_bytes": None, "answers": []}
    stages = [REPORT["stages"][0] | {"resumed": True}]
    telemetry = REPORT["telemetry"] | {"outage_s": None}
    again = REPORT | {"update": unseen, "stages": stages, "interrupted": True, "telemetry": telemetry}
    for text in (page(again), words(again, tmp_path)):
        assert "not measured: an earlier run saw it" in text
        assert "went on after an interruption" in text
        assert "foreseen" not in text
        assert "0 failed" not in text
    assert "a time that was not measured" in page(again)
