"""The search for ONNX: blocks as onnxruntime computes them, and a small model from its checkpoint to a gated bundle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fieldlm.bench.calibration import BESIDE_MB
from fieldlm.cli import verify
from fieldlm.core.errors import GateError
from fieldlm.engines.onnx import PAST, session_of
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.compile.explain import main as explain
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.export.ggml import Floats
from fieldlm_compiler.export.onnx_graph import MICROSOFT
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search.gptq_rounding import factor
from fieldlm_compiler.search.onnx_blocks import NBits, Rounded, nbits, ways
from fieldlm_compiler.search.onnx_forecast import OnnxForesight
from fieldlm_compiler.search.onnx_weights import OnnxWeights
from fieldlm_compiler.search.searchable import mixtures_of
from fieldlm_compiler.verify.limits import Limits, SearchRequest
from fieldlm_compiler.verify.onnx_read import OnnxReader

Build = Callable[..., Bundle]
SMALL_MB = 0.9  # between the smallest mixture and full weights
ROWS, COLUMNS = 24, 384  # an odd count of blocks of 128
TYPES = [way.name for way in ways(COLUMNS) if isinstance(way, NBits)]


@pytest.fixture(scope="module")
def searched(build: Build, tiny_folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    request = SearchRequest(calibration=(text,), limits=Limits(max_bundle_mb=SMALL_MB, max_ram_mb=40))
    return build(tiny_folder, tmp_path_factory.mktemp("searched") / "bundle", fmt="onnx", request=request)


@pytest.fixture(scope="module")
def weights() -> Floats:
    return np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def _operators(to: NBits, rounded: Rounded) -> tuple[Floats, Floats]:
    """Return the matrix as MatMulNBits computes with it, and as GatherBlockQuantized looks it up."""
    flat = [rounded.blocks, rounded.scales.ravel(), *([] if rounded.zeros is None else [rounded.zeros.ravel()])]
    table = [rounded.blocks.reshape(ROWS, -1), rounded.scales, *([] if rounded.zeros is None else [rounded.zeros])]
    names, others = ([f"{use}{at}" for at in range(len(flat))] for use in ("flat", "table"))
    about = {"bits": to.bits, "block_size": to.block}
    sizes = {"K": COLUMNS, "N": ROWS, "accuracy_level": 0}
    looked = {"gather_axis": 0, "quantize_axis": 1}
    nodes = [
        helper.make_node("MatMulNBits", ["x", *names], ["y"], domain=MICROSOFT),
        helper.make_node("GatherBlockQuantized", [others[0], "ids", *others[1:]], ["z"], domain=MICROSOFT),
    ]
    for node, attributes in zip(nodes, (about | sizes, about | looked), strict=True):
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    graph = helper.make_graph(
        nodes,
        "both",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [COLUMNS, COLUMNS]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [ROWS]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz"],
        [numpy_helper.from_array(each, name) for each, name in zip([*flat, *table], [*names, *others], strict=True)],
    )
    sets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=9).SerializeToString()
    feeds = {"x": np.eye(COLUMNS, dtype=np.float32), "ids": np.arange(ROWS)}
    found: Any = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)
    return found[0].T, found[1]


@pytest.mark.parametrize("name", TYPES)
def test_blocks_are_what_onnxruntime_reads_and_repair_loses_less(name: str, weights: Floats) -> None:
    to = nbits(name)
    inputs = np.random.default_rng(2).normal(size=(1024, 8)) @ np.random.default_rng(3).normal(size=(8, COLUMNS))
    covariance = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    importance = np.ascontiguousarray(np.diag(covariance))
    rounded = to.round(weights, importance, None)
    alone = to.alone(weights, importance)
    for read in _operators(to, rounded):
        np.testing.assert_allclose(read, alone, rtol=1e-4, atol=1e-4)
    assert to.size(ROWS, COLUMNS) == sum(each.nbytes for each in rounded if each is not None)

    def loss(changed: Floats) -> float:
        return float(np.square(inputs @ (changed - weights).T).mean())

    assert loss(to.repaired(weights, factor(covariance))) < 0.8 * loss(alone)


def test_a_mixture_under_a_size_is_as_large_as_foreseen_and_says_how_it_was_found(
    searched: Bundle, tiny: Checkpoint, stages: Stages, profile: Profile, tmp_path: Path
) -> None:
    bundle = open_bundle(searched.folder)
    search = json.loads(bundle.need("report").read_bytes())["search"]
    full = lower(tiny, "onnx", stages)
    kept = ("model.onnx", "model.onnx.data", "tokenizer.json")
    held = sum((bundle.folder / name).stat().st_size for name in kept)
    assert held == search["trials"][0]["bytes"] == mixtures_of(full).size_bytes(full, search["types"], profile)
    assert SMALL_MB - 0.1 < held / 1e6 + BESIDE_MB < SMALL_MB
    foreseen = OnnxForesight(full, profile, 100.0, stages).foresee(search["types"])
    assert foreseen.bytes == held
    assert foreseen.tokens_per_s > 0
    kl = [trial["measured"]["kl"]["value"] for trial in search["trials"]]
    assert 0 < kl[0] < kl[1]
    assert len(set(search["types"].values())) > 1
    assert "bundle" in {gate.name for gate in bundle.manifest.gates}
    assert verify.verify(bundle)["ok"]
    assert explain([str(bundle.folder), "--out", str(tmp_path / "page.html")]) == 0
    assert all(name in (tmp_path / "page.html").read_text() for name in set(search["types"].values()))


def test_what_the_measure_reads_is_what_the_engine_computes(searched: Bundle) -> None:
    path, tokens = searched.folder / "model.onnx", list(range(5, 25))
    read = OnnxReader(path, 32, 1).read(tokens, 0)
    session = session_of(path, 1)
    weights = OnnxWeights(path)
    caches = [value for value in session.get_inputs() if value.name.startswith(PAST)]
    feeds: dict[str, Any] = {
        value.name: np.zeros((1, value.shape[1], 32, value.shape[3]), np.float32) for value in caches
    }
    assert feeds
    assert weights.context > len(tokens)
    for count in (1, 7, len(tokens)):
        named = {
            "input_ids": np.array([tokens[:count]], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
        }
        asked = {value.name for value in session.get_inputs()}
        said: Any = session.run(["logits"], {name: each for name, each in (feeds | named).items() if name in asked})
        np.testing.assert_allclose(said[0][0, -1], read[count - 1], rtol=1e-3, atol=1e-3)


def test_limits_that_no_mixture_keeps_say_what_the_smallest_has(
    build: Build, tiny_folder: Path, text: Path, searched: Bundle, tmp_path: Path
) -> None:
    limits = {
        Limits(max_bundle_mb=0.4): r"MB of files, --max-bundle-mb leaves 0\.4; allow",
        Limits(max_ram_mb=1): r"MB of memory \(weights \d+, cache \d+, buffers 0\), --max-ram-mb leaves 1; allow",
        Limits(min_tokens_per_s=1e9): r"tokens/s here, --min-tokens-per-s wants 1e\+09; allow",
    }
    for each, line in limits.items():
        with pytest.raises(GateError, match=line):
            build(tiny_folder, tmp_path / "out", fmt="onnx", request=SearchRequest(calibration=(text,), limits=each))
    assert not (tmp_path / "out").exists()
