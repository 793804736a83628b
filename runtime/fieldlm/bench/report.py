"""Reports of a bench and of a comparison: a page that needs nothing else, or Markdown to paste into an issue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.bench.comparison import HEAD, KEY, Comparison, Difference, cells, notes
from fieldlm.bench.formats import Row, is_void, name_of_test
from fieldlm.bench.result import Interval, interval
from fieldlm.core import charts
from fieldlm.core.charts import Dot, Scale, Span, Svg
from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors, write_whole
from fieldlm.core.pages import render

ROOM = "fieldlm.bench"
SUFFIXES = (".html", ".md")
METHOD = (
    "Medians of the repetitions with Student's 95 % interval; prompts of random tokens, answers by the likeliest "
    "token, the first left out, for it comes with the prompt. The bandwidth is read by as many threads, just before "
    "each repetition; what decode uses of it are the bytes of weights, keys and values that a token has to read."
)
TESTED = f"Welch's test of the logarithms of the speeds, and the 95 % interval of B/A. {KEY}"


def check_target(path: Path) -> None:
    """Raise InputError for a report that is neither a page nor Markdown."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--report {path}: want a name that ends in .html or .md")


def write_report(path: Path, page: str, markdown: str) -> None:
    """Write the one of both that the name of `path` asks for."""
    with disk_errors(path):
        write_whole(path, (page if path.suffix == ".html" else markdown).encode())


def bench_page(rows: Sequence[Row]) -> str:
    """Return the page of what was measured; `rows` as `-o json` has them."""
    found: list[Row] = msgspec.to_builtins(rows)
    return render(
        ROOM,
        "bench.html",
        title=f"Bench of fieldlm: {_title(found)}",
        name=_title(found),
        tests=[_test_cells(row) for row in found],
        head=TEST_HEAD,
        plots=[(_name(row), _speeds(row)) for row in found if len(row["samples_ts"]) > 1],
        remarks=_remarks(found),
        facts=_facts(found[0]),
        method=METHOD,
    )


def bench_markdown(rows: Sequence[Row]) -> str:
    """Return the same as Markdown."""
    found: list[Row] = msgspec.to_builtins(rows)
    lines = [
        f"### {_title(found)}", "", *markdown_table(TEST_HEAD, [_test_cells(row) for row in found]), "",
        *(f"- {line}" for line in _remarks(found)), "" if _remarks(found) else "No remarks.", METHOD, "",
        "<details><summary>Where it ran</summary>", "", *markdown_table(("", ""), _facts(found[0])), "", "</details>",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def comparison_page(found: Comparison) -> str:
    """Return the page of a comparison."""
    return render(
        ROOM,
        "comparison.html",
        title="Bench of fieldlm: B against A",
        a=found.a,
        b=found.b,
        picture=ratios(found.differences),
        head=HEAD,
        rows=[cells(each) for each in found.differences],
        notes=notes(found),
        method=TESTED,
    )


def comparison_markdown(found: Comparison) -> str:
    """Return the same as Markdown."""
    rows = [cells(each) for each in found.differences]
    lines = [
        f"A: {plain(found.a)}  ", f"B: {plain(found.b)}", "", *markdown_table(HEAD, rows),
        "", *(f"- {plain(line)}" for line in notes(found)), "", TESTED,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def ratios(found: Sequence[Difference]) -> Svg:
    """Draw the ratios with their intervals, one row a test, on one logarithmic axis; 1 is no difference."""
    ends = [end for each in found for end in (each.ratio, each.low, each.high, 1.0) if end]
    reach = max(1.02, *ends, 1 / min(ends))
    scale = Scale(
        low=1 / reach,
        high=reach,
        ticks=[(x, f"{x:.2f}".removesuffix(".00")) for x in (1 / reach, 1.0, reach)],
        is_log=True,
    )
    rows = [
        Span(
            words=each.test if len(each.test) < 34 else f"{each.test[:33]}…",
            value=each.ratio, low=each.low, high=each.high,
            kind={"B is faster": "good", "B is slower": "bad"}.get(each.verdict, "old"),
        )
        for each in found
    ]  # fmt: skip
    return charts.spans("How many times as fast B is as A", scale, rows, mark=1.0)


def _speeds(row: Row) -> Svg:
    """Draw the speed of each repetition: a fall, and an outlier, are seen before they are tested."""
    speeds: list[float] = row["samples_ts"]
    top, last = max(speeds) * 1.05, len(speeds)
    return charts.plot(
        f"Tokens a second of each repetition, {_name(row)}",
        Scale(low=0.5, high=last + 0.5, ticks=((1.0, "repetition 1"), (float(last), f"{last}"))),
        Scale(low=0.0, high=top, ticks=((0.0, "0"), (row["avg_ts"], f"{row['avg_ts']:.1f}"))),
        line=[(at + 1.0, speed) for at, speed in enumerate(speeds)],
        dots=[Dot(x=at + 1.0, y=speed, kind="new", words="") for at, speed in enumerate(speeds)],
    )


TEST_HEAD = ("test", "#tokens/s [95 %]", "#time to first token, ms", "#of the bandwidth, %", "#J/token", "how")


def _test_cells(row: Row) -> tuple[str, ...]:
    ours = row["fieldlm"]
    is_decode, is_alone = row["n_gen"] > 0, not (row["n_gen"] and row["n_prompt"])
    how = f"{row['n_threads']} threads, {row['type_k']}/{row['type_v']}, {row['load_mode']}, ub {row['n_ubatch']}"
    joules = ours["energy"]["joules_per_token"]
    return (
        name_of_test(row) + (" (void)" if is_void(row) else ""),
        interval(row["samples_ts"]).words(),
        _words(ours["ttft_ms"]) if row["n_prompt"] else "",
        _words(ours["bandwidth_percent"], 0) if is_decode and is_alone else "",
        _words(joules, 3) if is_decode and joules else "",
        how,
    )


def _words(found: dict[str, Any], digits: int = 1) -> str:
    return msgspec.convert(found, Interval).words(digits)


def _name(row: Row) -> str:
    return f"{name_of_test(row)}, {row['n_threads']} threads, {row['type_k']}/{row['type_v']}"


def _title(rows: Sequence[Row]) -> str:
    models = ", ".join(dict.fromkeys(row["model_type"] for row in rows))
    return f"{models} on {rows[0]['gpu_info'] or rows[0]['cpu_info']}"


def _remarks(rows: Sequence[Row]) -> list[str]:
    """Return each remark once, with the tests that it is of where it is not of all."""
    tests: dict[str, list[str]] = {}
    for row in rows:
        for line in row["fieldlm"]["remarks"]:
            tests.setdefault(line, []).append(_name(row))
    return [line if len(of) == len(rows) else f"{line} ({'; '.join(of)})" for line, of in tests.items()]


def _facts(row: Row) -> list[tuple[str, str]]:
    """Return what somebody needs who wants to see the same figures."""
    ours, before, after = row["fieldlm"], row["fieldlm"]["before"], row["fieldlm"]["after"]
    around, energy = ours["environment"], ours["energy"]
    heat = [f"{each['temperature_c']:.0f} °C" if each["temperature_c"] else "no sensor" for each in (before, after)]
    source = energy["source"]
    found = {
        "processor": row["cpu_info"],
        "profile": around["profile"],
        "build": row["build_commit"],
        "kernel": around["kernel"],
        "governor": around["facts"]["governor"] or "the kernel does not say",
        "memory bandwidth, read": f"{ours['bandwidth']['read_gb_s']:.1f} GB/s",
        "peak memory": f"{ours['memory_mb']['peak']:.0f} MB",
        "load": f"{ours['load_s']:.2f} s",
        "temperature before and after": " and ".join(dict.fromkeys(heat)),
        "load average before and after": f"{before['load_average']:.1f} and {after['load_average']:.1f}",
        "energy": f"{source['source']}: {source['covers']}" if source else "; ".join(energy["why_not"]) or "no source",
        "SHA-256 of the weights": next(iter(ours["sha256"].values()), ""),
        "measured": row["test_time"],
    }
    return [(name, str(value)) for name, value in found.items()]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; columns whose name begins with # are aligned to the right."""
    rule = ["---:" if name.startswith("#") else "---" for name in head]
    lines = [[name.lstrip("#") for name in head], rule, *([plain(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def plain(text: str) -> str:
    """Return `text` as it reads in a table of Markdown."""
    return "".join(f"\\{each}" if each in "|<>*_`[]" else each for each in " ".join(text.split()))
