"""Two results are held against each other: the interval holds the true ratio, and chance alone is no difference."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldlm.bench import bench
from fieldlm.bench.comparison import compare, describe_comparison, welch
from fieldlm.bench.report import bench_markdown, bench_page
from fieldlm.bench.student import p_value, quantile
from fieldlm.cli.bench import main
from fieldlm.core.errors import InputError
from fieldlm.formats.bundle import Bundle
from fieldlm.hardware.detect import detect
from tests.bench.test_bench import SAMPLE, result
from tests.support.machines import sysroot

ROW = {"n_prompt": 0, "n_gen": 128, "n_depth": 0, "n_threads": 4, "cpu_info": "Cortex-A76", "build_commit": "abc"}
SLOW, FAST = [10.0, 10.2, 9.9, 10.1], [11.0, 11.2, 10.9, 11.1]


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(ROW | row) for row in rows))
    return path


def test_students_quantiles_are_those_of_tables() -> None:
    # Any table of Student's t; 2.5 degrees of freedom are scipy's.
    known = {1: 12.7062, 2: 4.3027, 3: 3.1824, 5: 2.5706, 10: 2.2281, 30: 2.0423, 1000: 1.9623}
    assert {freedom: round(quantile(freedom), 4) for freedom in known} == known
    assert quantile(9, confidence=0.99) == pytest.approx(3.2498, abs=1e-4)
    assert p_value(0.0, 3) == 1.0
    assert p_value(-2.0, 5) == p_value(2.0, 5) == pytest.approx(0.10194, abs=1e-5)


@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("wider", [1.0, 3.0])
def test_the_interval_holds_the_ratio_nineteen_times_of_twenty(runs: int, wider: float) -> None:
    random = np.random.default_rng(2)
    a = 100 * np.exp(random.normal(0, 0.02, (1500, runs)))
    b = 105 * np.exp(random.normal(0, 0.02 * wider, (1500, runs)))
    found = [welch(left, right) for left, right in zip(a.tolist(), b.tolist(), strict=True)]
    held = [low <= 1.05 <= high for _, low, high, _ in found if low is not None and high is not None]
    assert 0.93 <= sum(held) / len(found) <= 0.97


def test_chance_alone_is_no_difference_however_many_tests_there_are(tmp_path: Path) -> None:
    random, wrong, rounds = np.random.default_rng(4), 0, 100
    for _ in range(rounds):
        files = [
            written(
                tmp_path / name,
                *({"n_gen": gen, "samples_ts": random.normal(50, 1, 5).tolist()} for gen in range(1, 9)),
            )
            for name in ("a", "b")
        ]
        wrong += any("is" in each.verdict.split() for each in compare(*files).differences)
    assert wrong / rounds <= 0.1


def test_a_difference_is_told_with_what_else_is_not_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = written(
        tmp_path / "a.json",
        {"samples_ts": SLOW, "fieldlm": {"remarks": ["load 2.0 before the start", "void: it was hot"]}},
    )
    b = written(
        tmp_path / "b.json", {"samples_ts": FAST, "n_threads": 8}, {"samples_ts": SLOW, "n_gen": 7, "n_threads": 8}
    )
    page = tmp_path / "c.html"
    assert main(["--compare", str(a), str(b), "--json", "--report", str(page)]) == 0
    document = json.loads(capsys.readouterr().out)
    (found,) = document["differences"]
    assert (found["test"], found["verdict"]) == ("tg128", "B is faster")
    assert found["low"] < 11.05 / 10.05 < found["high"]
    assert found["p"] < 0.001
    assert found["differs"] == {"threads": ["4", "8"]}
    assert document["alone"] == [f"tg7 is in {b} alone"]
    assert document["remarks"] == ["A: load 2.0 before the start", "A: void: it was hot"]
    text = page.read_text()
    assert "<svg" in text
    assert "threads: 4 in A, 8 in B" in text
    assert '<p class="bad">A: void: it was hot</p>' in text
    assert "<p>A: load 2.0 before the start</p>" in text
    ticks = re.findall(r">(\d+(?:\.\d+)?)</text>", text)
    assert "1" in ticks
    assert all(len(tick.partition(".")[2]) <= 2 for tick in ticks)
    assert "<script" not in text


def test_rows_are_told_apart_by_what_differs_within_a_file(tmp_path: Path) -> None:
    rows = [{"samples_ts": SLOW, "n_threads": 1}, {"samples_ts": FAST, "n_threads": 2}]
    found = compare(written(tmp_path / "a", *rows), written(tmp_path / "b", *rows[::-1]))
    assert [(each.test, each.ratio) for each in found.differences] == [
        ("tg128, threads 1", 1.0),
        ("tg128, threads 2", 1.0),
    ]
    assert all(each.verdict.startswith("no difference shown") for each in found.differences)


def test_llama_benchs_own_results_are_read(tmp_path: Path) -> None:
    # As tools/llama-bench/README.md shows them, and as older versions wrote flash attention and mapping.
    theirs = {
        "build_commit": "8cf427ff", "build_number": 5163, "cpu_info": "AMD Ryzen 7 7800X3D 8-Core Processor",
        "gpu_info": "NVIDIA GeForce RTX 4080", "backends": "CUDA", "model_type": "qwen2 7B Q4_K - Medium",
        "model_size": 4677120000, "n_batch": 2048, "n_ubatch": 512, "n_threads": 8, "type_k": "f16",
        "type_v": "f16", "n_gpu_layers": -1, "use_mmap": True, "n_prompt": 512, "n_gen": 0, "n_depth": 0,
        "avg_ns": 72135640, "samples_ns": [74601900, 71632900, 71745200, 71952700, 70745500],
        "samples_ts": [6863.1, 7147.55, 7136.37, 7115.79, 7237.21],
    }  # fmt: skip
    old = written(tmp_path / "old", theirs | {"flash_attn": False})
    (found,) = compare(old, written(tmp_path / "new", theirs | {"flash_attn": -1, "load_mode": "mmap"})).differences
    assert (found.test, found.ratio) == ("pp512", 1.0)
    assert found.differs == {"fa": ("False", "-1"), "lm": ("", "mmap")}


def test_what_is_said_of_no_difference_is_the_interval(tmp_path: Path) -> None:
    wide = [9.0, 11.0, 10.0, 10.5]
    found = compare(written(tmp_path / "a", {"samples_ts": SLOW}), written(tmp_path / "b", {"samples_ts": wide}))
    (only,) = found.differences
    assert only.low is not None
    assert only.high is not None
    assert only.low < 1 < only.high
    assert only.verdict == f"no difference shown: the ratio lies between {only.low:.3f} and {only.high:.3f}"
    assert "not adjusted" in describe_comparison(found)


def test_an_interval_alone_is_no_difference_among_many_tests(tmp_path: Path) -> None:
    alike = [{"n_gen": gen, "samples_ts": SLOW} for gen in range(1, 9)]
    a = written(tmp_path / "a", {"samples_ts": SLOW}, *alike)
    b = written(tmp_path / "b", {"samples_ts": [10.3, 10.5, 10.2, 10.4]}, *alike)
    first = compare(a, b).differences[0]
    assert first.low is not None
    assert first.low > 1
    assert first.p is not None
    assert first.p > 0.05
    assert "the interval leaves 1 out" in first.verdict


@pytest.mark.parametrize(("voids", "named"), [("a", "A"), ("b", "B"), ("ab", "A and B")])
def test_a_void_row_has_no_other_verdict(voids: str, named: str, tmp_path: Path) -> None:
    files = [
        written(
            tmp_path / name,
            {"samples_ts": speeds, "fieldlm": {"is_void": name in voids}},
            {"samples_ts": speeds, "n_gen": 7},
        )
        for name, speeds in (("a", SLOW), ("b", FAST))
    ]
    first, second = compare(*files).differences
    assert first.verdict == f"void: nothing to believe in {named}"
    assert second.verdict == "B is faster"


def test_rows_of_the_same_test_are_one(tmp_path: Path) -> None:
    twice = written(tmp_path / "a", {"samples_ts": SLOW[:2]}, {"samples_ts": SLOW[2:]})
    (found,) = compare(twice, written(tmp_path / "b", {"samples_ts": FAST})).differences
    assert found.a.samples == tuple(SLOW)


def test_one_repetition_has_no_verdict(tmp_path: Path) -> None:
    (found,) = compare(
        written(tmp_path / "a", {"samples_ts": [10.0]}), written(tmp_path / "b", {"samples_ts": [20.0]})
    ).differences
    assert (round(found.ratio, 9), found.low, found.p) == (2.0, None, None)
    assert found.verdict == "one repetition says nothing of its error"


def test_speeds_that_never_vary_are_what_they_are() -> None:
    assert welch([5.0, 5.0], [5.0, 5.0]) == (1.0, 1.0, 1.0, 1.0)
    ratio, low, high, p = welch([5.0, 5.0], [10.0, 10.0])
    assert (low, high, p) == (ratio, ratio, 0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no results"),
        ("[]", "has no results"),
        ("{", "is no result of -o json or -o jsonl"),
        ('[{"n_prompt": 1}]', "is no result of -o json or -o jsonl"),
        (json.dumps([ROW]), "is no result of -o json or -o jsonl"),
        (json.dumps([ROW | {"samples_ts": []}]), "without speeds"),
        (json.dumps([ROW | {"samples_ts": [0.0, 1.0]}]), "without speeds"),
        (json.dumps([ROW | {"samples_ts": [1.0], "n_gen": 5}]), "no test in common: tg128 and tg5"),
        ("\x80", "is no result"),
    ],
)
def test_what_cannot_be_compared_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    good, bad = written(tmp_path / "a", {"samples_ts": SLOW}), tmp_path / "b"
    bad.write_text(text)
    with pytest.raises(InputError, match=words):
        compare(good, bad)


def test_a_run_is_a_page_and_a_text_to_paste(base_bundle: Bundle) -> None:
    rows = bench.document(base_bundle, result(samples=(SAMPLE,) * 3), detect(sysroot("pi-5-8gb")))
    page, text = bench_page(rows), bench_markdown(rows)
    assert page.count("<svg") == 2, "the prompt's repetitions and the answer's"
    assert "the machine was at rest" in page
    assert "<script" not in page
    assert "| tg128 | 8.0 \\[8.0, 8.0\\] |  | 80 \\[80, 80\\] |" in text
    assert "| pp512 | 102.4 \\[102.4, 102.4\\] | 5100.0" in text
    assert base_bundle.manifest.files[0].sha256 in page
    assert base_bundle.manifest.files[0].sha256 in text
    voided, calm = (
        row | {"fieldlm": row["fieldlm"] | {"remarks": [*lines, "load 2.0"], "is_void": bool(lines)}}
        for row, lines in zip(rows, (["void: it was hot"], []), strict=True)
    )
    marked = bench_markdown([voided, calm])
    assert "| pp512 (void) |" in marked
    assert "| tg128 |" in marked
    assert "- void: it was hot (pp512, 4 threads, f16/f16)\n- load 2.0\n" in marked
    odd = [row | {"cpu_info": "<b>|x"} for row in rows]
    assert "<b>|x" not in bench_page(odd) + bench_markdown(odd).partition("\n")[2]
