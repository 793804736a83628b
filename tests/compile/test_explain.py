"""The page on a searched bundle is whole in itself and shows what the report says."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from fieldlm.bench.calibration import BESIDE_MB
from fieldlm.core.errors import InputError
from fieldlm.formats.bundle import Bundle
from fieldlm_compiler.compile.explain import main, page
from fieldlm_compiler.verify.limits import Limits, SearchRequest
from tests.search.test_search import SMALL_MB, Build


def test_the_page_shows_every_tensor_every_gate_and_every_trial_and_fetches_nothing(
    build: Build, tiny_folder: Path, text: Path, tmp_path: Path
) -> None:
    request = SearchRequest(calibration=(text,), limits=Limits(max_bundle_mb=SMALL_MB))
    bundle = build(tiny_folder, tmp_path / "bundle", request=request)
    assert main([str(bundle.folder)]) == 0
    html = (tmp_path / "bundle.html").read_text()
    search = json.loads(bundle.need("report").read_bytes())["search"]
    assert len(re.findall(r'title="[\d.]+ bits"', html)) == len(search["types"])
    assert html.count("<circle") == len(search["trials"])
    assert html.count('<circle class="new"') == 1
    assert f"{bundle.manifest.recipe.quant}: " in html.split('<circle class="new"')[1].split("</text>")[0]
    assert f">limit {SMALL_MB:g} MB</text>" in html
    ends = (f"{search['frontier'][at]['bytes'] / 1e6 + BESIDE_MB:.1f} MB" for at in (0, -1))
    assert all(f">{end}</text>" in html for end in ends)
    assert all(f">{gate.name}</td>" in html for gate in bundle.manifest.gates)
    assert not re.search(r"(src|href)=|https?://|<script", html.replace('href="data:,"', "", 1))


def test_what_was_tried_twice_is_marked_once_and_a_limit_beyond_the_frontier_is_no_line(
    build: Build, tiny_folder: Path, text: Path, tmp_path: Path
) -> None:
    request = SearchRequest(calibration=(text,), limits=Limits(max_bundle_mb=SMALL_MB))
    bundle = build(tiny_folder, tmp_path / "bundle", request=request)
    report = bundle.need("report")
    document = json.loads(report.read_bytes())
    document["search"]["trials"] *= 2
    report.write_text(json.dumps(document))
    gates = tuple(msgspec.structs.replace(gate, limit=9.0) for gate in bundle.manifest.gates)
    html = page(msgspec.structs.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, gates=gates)))
    assert html.count('<circle class="new"') == 1
    assert html.count("<circle") == len(document["search"]["trials"])
    assert 'class="limit"' not in html


def test_a_preset_has_nothing_to_explain(tiny_compiled: Bundle) -> None:
    with pytest.raises(InputError, match=r"is Q8_0, a preset: there is no search to explain; compile it with a limit"):
        page(tiny_compiled)
