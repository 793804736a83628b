from typing import Any

from fieldlm_compiler.demo.report import candidates, page, steps, timeline, travelled

PLAIN: dict[str, Any] = {"right": 9, "total": 10, "share": 0.9, "low": 0.6, "high": 0.98}
SCORE = PLAIN | {"strangers": PLAIN}
UPDATE: dict[str, Any] = {
    "requests": 3, "failed": 0, "generation": "new", "bundle_bytes": 150_000_000, "fetched_bytes": 10_000_000,
    "answers": [[100.0, 0.2, "old"], [101.0, 0.4, "old"], [102.0, 0.3, "new"]],
    "steps": [{"name": "switched", "at_s": 101.5}, {"name": "long ago", "at_s": 5.0}],
}  # fmt: skip
REPORT: dict[str, Any] = {
    "model": "m <1>", "profile": "p", "cores": 2, "wall_s": 600, "before": SCORE | {"share": 0.0}, "after": SCORE,
    "candidates": [{"name": "Q8_0", "size_mb": 145.0, "tokens_per_s": 100.0, "chosen": True}],
    "telemetry": {"streams": {"gen": {"produced": 5, "stored": 5}}, "bytes_mqtt": 1000, "bytes_per_record": 200.0,
                  "outage_s": 3.0, "gaps": 0, "doubled": 0},
    "update": UPDATE, "tasks": [{"name": "order", "size": 4, "example": "a <b>latte</b>"}],
    "stages": [{"title": "Compile", "seconds": 12.3}],
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
