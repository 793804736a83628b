"""The page on a searched bundle is whole in itself and shows what the report says."""

import json
import re
from pathlib import Path

import pytest

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
    assert all(f">{gate.name}</td>" in html for gate in bundle.manifest.gates)
    assert not re.search(r"(src|href)=|https?://|<script", html.replace('href="data:,"', "", 1))


def test_a_preset_has_nothing_to_explain(tiny_compiled: Bundle) -> None:
    with pytest.raises(InputError, match=r"is Q8_0, a preset: there is no search to explain; compile it with a limit"):
        page(tiny_compiled)
