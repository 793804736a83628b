"""`fieldlm explain BUNDLE`: one page, whole in itself, on how a bundle's types were chosen and what they cost."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fieldlm.core import charts, options, terminal
from fieldlm.core.charts import Dot, Scale, Svg
from fieldlm.core.errors import InputError
from fieldlm.core.files import write_whole
from fieldlm.core.pages import render
from fieldlm.formats.bundle import Bundle, open_bundle

MB = 1e6
BLOCK = re.compile(r"blk\.(\d+)\.(.*)")
FEWEST_BITS, MOST_BITS = 2.5, 8.5
Cell = tuple[str, int, str]
"""A tensor's type, its warmth in per cent, and its bits for each weight."""


def main(argv: Sequence[str]) -> int:
    """Write a page about a bundle."""
    parser = terminal.parser(
        "explain",
        "Write a page on how a bundle's types were chosen and what they cost.",
        "fieldlm explain smollm2-rpi5-8gb --out why.html",
    )
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--out", type=options.new_file, help="the page; by default BUNDLE.html beside the bundle")
    args = parser.parse_args(argv)
    bundle = open_bundle(args.bundle)
    out = args.out or args.bundle.with_name(f"{args.bundle.name}.html")
    write_whole(out, page(bundle).encode())
    terminal.show({"bundle": bundle.id, "page": str(out)}, str(out), as_json=args.json)
    return 0


def page(bundle: Bundle) -> str:
    """Return the page; raises InputError when the bundle's types were not searched for."""
    report = json.loads(bundle.need("report").read_bytes())
    search = report.get("search")
    if not search:
        raise InputError(
            f"{bundle.folder} is {bundle.manifest.recipe.quant}, a preset: there is no search to explain; "
            "compile it with a limit, such as --max-bundle-mb"
        )
    manifest = bundle.manifest
    blocks, others = _heat(search["types"])
    return render(
        "fieldlm_compiler.compile",
        "explain.html",
        title=f"{manifest.model.name} as {manifest.recipe.quant} for {manifest.profile}",
        bundle=bundle,
        frontier=_frontier(search, next(iter(report.get("candidates", ())), None), _limit_mb(bundle)),
        caches=_caches(search),
        bought=_bought(search["frontier"]),
        blocks=sorted(blocks.items()),
        names=sorted({name for block in blocks.values() for name in block}),
        others=others,
        confidence=report.get("confidence", ()),
        gates=[
            (
                gate.name,
                f"{gate.value:g}",
                f"{gate.limit:g}",
                f"{gate.unit} {gate.doubt}",
                "passed" if gate.passed else "missed",
            )
            for gate in manifest.gates
        ],
    )


def _limit_mb(bundle: Bundle) -> float | None:
    """Return how large the bundle was allowed to be, in MB; None where no limit said so."""
    gate = next((gate for gate in bundle.manifest.gates if gate.name == "bundle"), None)
    return gate.limit if gate else None


def _frontier(search: dict[str, Any], chosen: dict[str, Any] | None, limit_mb: float | None) -> Svg:
    """Draw what was foreseen and what was made and measured; `chosen` is the candidate that became the bundle.

    Sizes are those of the bundle, as its limit counts them.
    """
    line = [(_bundle_mb(each), each["predicted_kl"]) for each in search["frontier"] if each["predicted_kl"] > 0]
    dots = [_dot(each, "old") for each in search["trials"]]
    is_it = [
        chosen is not None and all(each[name] == chosen[name] for name in ("quant", "bytes", "cache"))
        for each in search["trials"]
    ]
    if any(is_it):  # which may have been tried twice; it is drawn last, above the others
        dots.append(replace(dots.pop(is_it.index(True)), kind="new", is_below=False))
    values = [kl for _, kl in line] + [dot.y for dot in dots]
    left, right = min(mb for mb, _ in line), max(mb for mb, _ in line)
    low, high = math.floor(math.log10(max(min(values), 1e-5))), math.ceil(math.log10(max(values)))
    powers = range(low, max(high, low + 1) + 1)
    return charts.plot(
        "divergence over size",
        Scale(low=left, high=right, ticks=[(mb, f"{mb:.1f} MB") for mb in (left, right)]),
        Scale(low=10.0**low, high=10.0 ** powers[-1], ticks=[(10.0**p, f"{10.0**p:g}") for p in powers], is_log=True),
        line=line,
        dots=dots,
        marks=[(limit_mb, f"limit {limit_mb:g} MB")] if limit_mb and left <= limit_mb <= right else [],
    )


def _dot(trial: dict[str, Any], kind: str) -> Dot:
    found = trial["measured"]["kl"]["value"]
    return Dot(x=_bundle_mb(trial), y=found, kind=kind, words=f"{trial['quant']}: {found:.4f}", is_below=True)


def _bundle_mb(point: dict[str, Any]) -> float:
    from fieldlm.bench.calibration import BESIDE_MB

    return point["bytes"] / MB + BESIDE_MB


def _caches(search: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return what was known of keys and values in fewer bits, where there was a choice."""
    chosen = search["cache"] or {"keys": "f16", "values": "f16"}
    return [
        (each["keys"], each["values"], f"{each['mb']:.1f}", f"{each['predicted_kl']:.5f}", "chosen" if is_it else "")
        for each in search["caches"]
        for is_it in [(each["keys"], each["values"]) == (chosen["keys"], chosen["values"])]
    ]


def _bought(frontier: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Cut the frontier into about eight steps of equal bytes."""
    first, last = frontier[0]["bytes"], frontier[-1]["bytes"]
    steps = [first + (last - first) * at / 8 for at in range(9)]
    points = [min(frontier, key=lambda each: abs(each["bytes"] - step)) for step in steps]
    rows: list[tuple[str, ...]] = []
    for one, other in pairwise(points):
        more_mb = (other["bytes"] - one["bytes"]) / MB
        if more_mb > 0:
            fall = one["predicted_kl"] - other["predicted_kl"]
            rows.append((f"{_bundle_mb(one):.2f}", f"{_bundle_mb(other):.2f}", f"{fall:.5f}", f"{fall / more_mb:.6f}"))
    return rows


def _heat(types: dict[str, str]) -> tuple[dict[int, dict[str, Cell]], list[tuple[str, Cell]]]:
    """Return the types of each block's tensors by name, and of the tensors that are in no block."""
    blocks: dict[int, dict[str, Cell]] = {}
    others: list[tuple[str, Cell]] = []
    for name, each in types.items():
        if found := BLOCK.fullmatch(name):
            blocks.setdefault(int(found[1]), {})[found[2].removesuffix(".weight")] = _cell(each)
        else:
            others.append((name, _cell(each)))
    return blocks, others


def _cell(name: str) -> Cell:
    from fieldlm_compiler.export.ggml import kind
    from fieldlm_compiler.search import onnx_blocks

    bits = onnx_blocks.bits(name) if name == onnx_blocks.WHOLE or onnx_blocks.NAME.fullmatch(name) else kind(name).bits
    heat = min(1.0, max(0.0, (bits - FEWEST_BITS) / (MOST_BITS - FEWEST_BITS)))
    return name, round(10 + 60 * heat), f"{bits:g}"
