"""An ONNX model of which a part changed: its graph says where the weights beside it begin, so that the part travels."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fieldlm.core.files import CHUNK_BYTES, sha256_file
from fieldlm.formats.bundle import Bundle, Role, describe, write_bundle
from fieldlm_compiler.repository.publish import describe_release
from tests.support.update_simulators import KEY, Site, make_site, small_bundle

LAYERS, WIDE, HIGH = 12, 613, 1009  # tensors of 2.47 MB, none of which begins at a whole megabyte
TENSOR_BYTES = WIDE * HIGH * 4


def onnx_bundle(folder: Path, *, changed: int = -1, tag: str = "") -> Bundle:
    """Make a bundle of a graph and, beside it, the weights of its layers; those of layer `changed` are others."""
    plain = small_bundle(folder, base_bytes=10)
    (folder / "model.gguf").unlink()
    weights = [
        numpy_helper.from_array(noise(number + 100 * (number == changed)), f"layer.{number}")
        for number in range(LAYERS)
    ]
    graph = helper.make_graph([], f"layers{tag}", [], [], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    files: list[tuple[str, Role]] = [
        ("model.onnx", "base"), ("model.onnx.data", "base"), ("template.jinja", "template"),
    ]  # fmt: skip
    listed = tuple(describe(folder, path, role) for path, role in files)
    (folder / "manifest.sig").unlink()
    return write_bundle(folder, msgspec.structs.replace(plain.manifest, engine="onnx", files=listed), KEY)


def noise(seed: int) -> "np.typing.NDArray[np.float32]":
    return np.random.default_rng(seed).standard_normal((WIDE, HIGH), np.float32)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = make_site(tmp_path, onnx_bundle(tmp_path / "base"))
    yield site
    site.slots.close()


def test_one_changed_tensor_beside_an_onnx_graph_costs_its_bytes_and_a_hundredth(site: Site, tmp_path: Path) -> None:
    tuned = onnx_bundle(tmp_path / "tuned", changed=5)
    site.publish(tuned)
    result = site.update()
    assert (result.outcome, result.generation) == ("updated", tuned.generation)
    assert TENSOR_BYTES < result.bytes_fetched <= 1.01 * TENSOR_BYTES
    weights = "model.onnx.data"
    assert sha256_file(site.slots.current().folder / weights) == sha256_file(tuned.folder / weights)


def test_a_graph_that_cannot_be_read_is_published_and_its_weights_are_cut_by_the_megabyte(tmp_path: Path) -> None:
    bundle = onnx_bundle(tmp_path / "broken")
    (bundle.folder / "model.onnx").write_bytes(b"\xff" * 100)
    (bundle.folder / "manifest.sig").unlink()
    files = tuple(describe(bundle.folder, file.path, file.role) for file in bundle.manifest.files)
    broken = write_bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, files=files), KEY)
    release, _ = describe_release(broken, None)
    data = next(file for file in release.files if file.path == "model.onnx.data")
    assert data.chunks == -(-data.size // CHUNK_BYTES)
    assert data.size >= LAYERS * TENSOR_BYTES


def test_whoever_edits_the_graph_alone_pays_for_the_graph_alone(site: Site, tmp_path: Path) -> None:
    tuned = onnx_bundle(tmp_path / "tuned", tag=" with another name")
    site.publish(tuned)
    result = site.update()
    assert result.outcome == "updated"
    assert result.bytes_fetched < 30_000
