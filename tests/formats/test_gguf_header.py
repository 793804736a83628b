import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fieldlm.core.errors import EngineError
from fieldlm.engines import EngineOptions
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.gguf import BLOCKS, read_header
from fieldlm.hardware.cores import physical_cores


def small_gguf(path: Path, architecture: str = "llama") -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "ü"])
    writer.add_array("some.numbers", [1.5, 2.5])
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return small_gguf(tmp_path / "small.gguf")


def test_a_header_says_what_the_file_holds(gguf: Path) -> None:
    header = read_header(gguf)
    assert header.architecture == "llama"
    assert header.tensors["token_embd.weight"].shape == (32, 4)
    assert header.tensors["token_embd.weight"].size == 4 * 32 * 4
    assert list(header.metadata["tokenizer.ggml.tokens"]) == ["<s>", "a", "ü"]
    assert header.metadata["some.numbers"] == [1.5, 2.5]


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    from gguf import GGML_QUANT_SIZES

    known = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}
    assert {kind: BLOCKS[kind] for kind in known if kind in BLOCKS} == {k: v for k, v in known.items() if k in BLOCKS}
    assert not set(known) - set(BLOCKS)


@pytest.mark.parametrize("keep", [0, 3, 4, 23, 24, 60, 200])
def test_a_file_that_is_cut_off_is_refused(gguf: Path, keep: int) -> None:
    gguf.write_bytes(gguf.read_bytes()[:keep])
    with pytest.raises(EngineError, match=r"not a GGUF file|cut off or damaged"):
        read_header(gguf)


def test_a_file_that_ends_inside_its_last_tensor_is_refused(gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"tensor 'token_embd.weight' ends at byte \d+ of \d+"):
        read_header(gguf)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"GGML", "is not a GGUF file"),
        (4, struct.pack("<I", 99), "GGUF version 99"),
        (8, struct.pack("<Q", 2**60), "counts more entries than it has bytes"),
        (16, struct.pack("<Q", 2**60), "counts more entries than it has bytes"),
        (24, struct.pack("<Q", 2**63), "damaged in its header"),
        (24, struct.pack("<Q", 0), "entry without a name"),
    ],
)
def test_a_damaged_header_is_refused_with_the_reason(gguf: Path, offset: int, value: bytes, reason: str) -> None:
    data = bytearray(gguf.read_bytes())
    data[offset : offset + len(value)] = value
    gguf.write_bytes(data)
    with pytest.raises(EngineError, match=reason):
        read_header(gguf)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gets_past_as_anything_but_an_engine_error(gguf: Path, data: st.DataObject) -> None:
    whole = bytearray(small_gguf(gguf).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    gguf.write_bytes(whole)
    with suppress(EngineError):
        assert all(tensor.size <= len(whole) for tensor in read_header(gguf).tensors.values())


def refusal(path: Path) -> str:
    with pytest.raises(EngineError) as caught:
        LlamaEngine(path, EngineOptions(threads=1, context=64, parallel=1))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.gguf").endswith("none.gguf cannot be read: No such file or directory")
    assert refusal(tmp_path).endswith("cannot be read: Is a directory")


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    assert "unknown model architecture: 'marsian'" in refusal(small_gguf(tmp_path / "m.gguf", "marsian"))


def test_a_model_without_its_parameters_is_refused(tmp_path: Path) -> None:
    assert "key not found in model: llama" in refusal(small_gguf(tmp_path / "m.gguf"))


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu in range(4):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text("0-1\n" if cpu < 2 else "2-3\n")
    assert physical_cores(tmp_path, {0, 1, 2, 3}) == 2
    assert physical_cores(tmp_path, {0, 1}) == 1


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("150000 100000", 1), ("50000 100000", 1)])
def test_a_cgroup_limits_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(quota)
    assert physical_cores(tmp_path, {0, 1, 2, 3}) == cores


def test_texts_are_picked_in_any_order_and_of_the_whole_vocabulary(gguf: Path) -> None:
    tokens = read_header(gguf).metadata["tokenizer.ggml.tokens"]
    assert tokens.pick([2, 0, 2]) == ["ü", "<s>", "ü"]
    assert tokens.pick([]) == []
    for beyond in (3, -1):
        with pytest.raises(IndexError):
            tokens.pick([0, beyond])


def test_a_header_without_its_vocabulary_says_all_else(gguf: Path) -> None:
    header = read_header(gguf)
    small = header.without_vocabulary()
    assert set(header.metadata) - set(small.metadata) == {"tokenizer.ggml.tokens"}
    assert (small.tensors, small.places, small.architecture) == (header.tensors, header.places, "llama")
