"""A base model of which a part changed: the part travels, the rest is taken from the file that is here."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import msgspec
import pytest

from fieldlm.blobs.fetch import FolderSource, fetch
from fieldlm.blobs.store import Blobs
from fieldlm.blobs.tensor_chunks import LEAST_BYTES, chunk_sizes
from fieldlm.core.files import CHUNK_BYTES, sha256_file
from fieldlm.formats.bundle import SIGNATURE, Bundle, describe, write_bundle
from fieldlm_compiler.repository.publish import publish
from tests.support.update_simulators import KEY, Site, make_site, small_bundle


def bundle_of(folder: Path, model: Path) -> Bundle:
    """Make a bundle around a real model file, which it hard-links."""
    bundle = small_bundle(folder, base_bytes=10)
    (folder / "model.gguf").unlink()
    os.link(model, folder / "model.gguf")
    manifest = bundle.manifest
    files = tuple(describe(folder, file.path, file.role) for file in manifest.files)
    (folder / SIGNATURE).unlink()
    return write_bundle(folder, msgspec.structs.replace(manifest, files=files), KEY)


def changed(model: Path, target: Path, group: str) -> int:
    """Copy `model` with other weights in the tensors that begin with `group`; return how many bytes they have."""
    shutil.copyfile(model, target)
    size = 0
    tensors = [tensor for tensor in gguf.GGUFReader(model).tensors if tensor.name.startswith(group)]
    with target.open("r+b") as file:
        for tensor in tensors:
            file.seek(tensor.data_offset)
            file.write(bytes(byte ^ 0x11 for byte in tensor.data.tobytes()))
            size += int(tensor.n_bytes)
    assert size
    return size


@pytest.fixture
def site(tmp_path: Path, smollm2_gguf: Path) -> Iterator[Site]:
    plain = tmp_path / "plain.gguf"
    shutil.copyfile(smollm2_gguf, plain)
    site = make_site(tmp_path, bundle_of(tmp_path / "base", plain))
    yield site
    site.slots.close()


def test_one_changed_group_of_tensors_costs_its_bytes_and_a_hundredth(
    site: Site, smollm2_gguf: Path, tmp_path: Path
) -> None:
    group = changed(smollm2_gguf, tmp_path / "tuned.gguf", "blk.7.")
    tuned = bundle_of(tmp_path / "tuned", tmp_path / "tuned.gguf")
    site.publish(tuned)
    result = site.update()
    assert (result.outcome, result.generation) == ("updated", tuned.generation)
    assert group < result.bytes_fetched <= 1.01 * group
    assert result.bytes_fetched < result.bytes_bundle / 20
    assert sha256_file(site.slots.current().folder / "model.gguf") == sha256_file(tmp_path / "tuned.gguf")


def test_chunks_begin_where_tensors_do_and_cover_the_file(smollm2_gguf: Path) -> None:
    sizes = list(chunk_sizes(smollm2_gguf))
    assert sum(sizes) == smollm2_gguf.stat().st_size
    assert max(sizes) <= CHUNK_BYTES
    starts = {sum(sizes[:number]) for number in range(len(sizes))}
    large = [tensor for tensor in gguf.GGUFReader(smollm2_gguf).tensors if tensor.n_bytes >= LEAST_BYTES]
    assert len(large) > 200
    assert {int(tensor.data_offset) for tensor in large} <= starts


@pytest.mark.parametrize("here", ["nothing", "another file", "half a copy"])
def test_a_device_without_the_old_file_fetches_the_whole(base_bundle: Bundle, tmp_path: Path, here: str) -> None:
    model = base_bundle.need("base")
    bundle = bundle_of(tmp_path / "tuned", model)
    release = publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    blobs = Blobs(tmp_path / "state")
    if here != "nothing":
        data = bytearray(model.read_bytes() if here == "half a copy" else bytes(3 * CHUNK_BYTES))
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path = blobs.path("0" * 64)
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    source = FolderSource(tmp_path / "repository")
    fetch(source, release, blobs, wanted=release.files)
    assert all(blobs.holds(file.sha256, file.size) for file in release.files)
    base = release.files[0]
    whole = sum(file.size for file in release.files) + base.index_blob.size
    assert source.moved < 0.6 * whole if here == "half a copy" else source.moved == whole
