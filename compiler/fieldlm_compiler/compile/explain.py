"""`fieldlm explain BUNDLE`: one page, whole in itself, on how a bundle's types were chosen and what they cost."""

import json
import math
import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import write_whole
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm_compiler.export.ggml import kind
from fieldlm_compiler.search import onnx_blocks

MB = 1e6
WIDTH, HEIGHT, MARGIN = 720, 300, 60
BLOCK = re.compile(r"blk\.(\d+)\.(.*)")
FEWEST_BITS, MOST_BITS = 2.5, 8.5
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td,th{padding:.15rem .6rem;
text-align:left;border-bottom:1px solid #ddd}.heat td{font-size:11px;padding:.1rem .3rem;border:1px solid #fff}
svg text{font-size:12px;fill:#555}.note{color:#666}"""


def main(argv: Sequence[str]) -> int:
    """Write a page about a bundle."""
    parser = terminal.parser("explain", "Write a page on how a bundle's types were chosen and what they cost.")
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--out", type=Path, help="the page; by default BUNDLE.html beside the bundle")
    args = parser.parse_args(argv)
    bundle = open_bundle(args.bundle)
    out = args.out or args.bundle.with_name(f"{args.bundle.name}.html")
    write_whole(out, page(bundle).encode())
    terminal.show({"bundle": bundle.id, "page": str(out)}, str(out), as_json=args.json)
    return 0


def page(bundle: Bundle) -> str:
    """Return the page; raises InputError when the bundle's types were not searched for."""
    search = json.loads(bundle.need("report").read_bytes()).get("search")
    if not search:
        raise InputError(
            f"{bundle.folder} is {bundle.manifest.recipe.quant}, a preset: there is no search to explain; "
            "compile it with a limit, such as --max-bundle-mb"
        )
    manifest = bundle.manifest
    title = f"{manifest.model.name} as {manifest.recipe.quant} for {manifest.profile}"
    gates = [
        (gate.name, f"{gate.value:g}", f"{gate.limit:g}", gate.unit, "passed" if gate.passed else "missed")
        for gate in manifest.gates
    ]
    parts = [
        f"<h1>{escape(title)}</h1><p class=note>generation {bundle.generation}, {manifest.size / MB:.1f} MB, from "
        f"{escape(manifest.model.source)} ({escape(manifest.model.licence)})</p>",
        "<h2>The frontier</h2><p class=note>The line is the least divergence foreseen for each size; the dots were "
        "made and measured beside full weights. Dots above the line by one factor mean that the order is right.</p>",
        _plot(search),
        *_caches(search),
        "<h2>What each megabyte bought</h2>",
        _table(_bought(search["frontier"]), ("from MB", "to MB", "divergence falls by", "for each MB")),
        "<h2>The type of each tensor</h2>",
        _heat(search["types"]),
        "<h2>Gates</h2>",
        _table(gates, ("gate", "value", "limit", "unit", "verdict")),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    return head + "".join(parts) + "</html>\n"


def _plot(search: dict[str, Any]) -> str:
    line = [(each["bytes"] / MB, each["predicted_kl"]) for each in search["frontier"] if each["predicted_kl"] > 0]
    dots = [(each["bytes"] / MB, each["measured"]["kl"], each["quant"]) for each in search["trials"]]
    values = [kl for _, kl in line] + [kl["value"] for _, kl, _ in dots]
    left, right = min(mb for mb, _ in line), max(mb for mb, _ in line)
    low, high = math.floor(math.log10(max(min(values), 1e-5))), math.ceil(math.log10(max(values)))

    def x(mb: float) -> float:
        return MARGIN + (mb - left) / max(right - left, 1e-9) * (WIDTH - 2 * MARGIN)

    def y(kl: float) -> float:
        at = (math.log10(max(kl, 10.0**low)) - low) / max(high - low, 1)
        return HEIGHT - MARGIN / 2 - at * (HEIGHT - MARGIN)

    path = " ".join(f"{x(mb):.1f},{y(kl):.1f}" for mb, kl in line)
    grid = "".join(
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(10.0**power):.1f}" y2="{y(10.0**power):.1f}" stroke="#eee"/>'
        f'<text x="4" y="{y(10.0**power) + 4:.1f}">{10.0**power:g}</text>'
        for power in range(low, high + 1)
    )
    marks = "".join(
        f'<circle cx="{x(mb):.1f}" cy="{y(kl["value"]):.1f}" r="4" fill="#c33"/>'
        f'<text x="{x(mb) + 7:.1f}" y="{y(kl["value"]) - 6:.1f}">{escape(quant)}: {kl["value"]:.4f}</text>'
        for mb, kl, quant in dots
    )
    ends = "".join(f'<text x="{x(mb) - 15:.1f}" y="{HEIGHT - 2}">{mb:.0f} MB</text>' for mb in (left, right))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="divergence over size">{grid}'
        f'<polyline points="{path}" fill="none" stroke="#36c" stroke-width="2"/>{marks}{ends}</svg>'
    )


def _caches(search: dict[str, Any]) -> list[str]:
    """Return what was known of keys and values in fewer bits, where there was a choice."""
    if not search["caches"]:
        return []
    chosen = search["cache"] or {"keys": "f16", "values": "f16"}
    rows = [
        (each["keys"], each["values"], f"{each['mb']:.1f}", f"{each['predicted_kl']:.5f}", "chosen" if is_it else "")
        for each in search["caches"]
        for is_it in [(each["keys"], each["values"]) == (chosen["keys"], chosen["values"])]
    ]
    note = "What a coarser cache saves of the memory allowed, weights may take. Divergence is that of full weights."
    head = ("keys", "values", "MB as served", "divergence", "")
    return [f"<h2>Keys and values</h2><p class=note>{note}</p>", _table(rows, head)]


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
            rows.append(
                (f"{one['bytes'] / MB:.1f}", f"{other['bytes'] / MB:.1f}", f"{fall:.5f}", f"{fall / more_mb:.6f}")
            )
    return rows


def _heat(types: dict[str, str]) -> str:
    """Return a table of blocks by tensors, coloured by bits for each weight; what is in no block comes first."""
    blocks: dict[int, dict[str, str]] = {}
    for name, each in types.items():
        if found := BLOCK.fullmatch(name):
            blocks.setdefault(int(found[1]), {})[found[2].removesuffix(".weight")] = each
    names = sorted({name for block in blocks.values() for name in block})
    rows = [
        f"<tr><th>{number}</th>{''.join(_cell(block.get(name, '')) for name in names)}</tr>"
        for number, block in sorted(blocks.items())
    ]
    others = "".join(
        f"<tr><th>{escape(name)}</th>{_cell(each)}</tr>" for name, each in types.items() if not BLOCK.fullmatch(name)
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f"<table class=heat>{others}</table><table class=heat><tr><th>block</th>{head}</tr>{''.join(rows)}</table>"


def _cell(name: str) -> str:
    if not name:
        return "<td></td>"
    bits = onnx_blocks.bits(name) if name == onnx_blocks.WHOLE or onnx_blocks.NAME.fullmatch(name) else kind(name).bits
    heat = min(1.0, max(0.0, (bits - FEWEST_BITS) / (MOST_BITS - FEWEST_BITS)))
    return f'<td style="background:hsl({220 - 200 * heat:.0f} 70% 80%)" title="{bits:g} bits">{escape(name)}</td>'


def _table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
