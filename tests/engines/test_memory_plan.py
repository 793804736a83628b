"""Memory is foreseen from a GGUF's header as llama.cpp then takes it, and refused before loading if it is not there."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from fieldlm.core.errors import EngineError
from fieldlm.engines import EngineOptions
from fieldlm.engines.llama import LlamaEngine
from fieldlm.engines.llama_layout import Layout
from fieldlm.engines.llama_scheduler import PREFILL_ALONE
from fieldlm.engines.memory_plan import MemoryPlan, NoRoomError, ensure_caches_fit, ensure_fits, kv_bytes, plan
from fieldlm.formats.gguf import Header, Tensor, read_header
from fieldlm.formats.profile import Accelerator, load_profile
from fieldlm.hardware.facts import read_facts

F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
BATCH = 256


def machine(root: Path, *, available_mb: int, group_mb: int | None = None) -> Path:
    """Write the files of a machine with so much memory left, and a control group that allows `group_mb` more."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 64000000 kB\nMemAvailable: {available_mb * 1_000_000 // 1024} kB\n")
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    if group_mb is not None:
        (root / "sys/fs/cgroup/memory.max").write_text(f"{(group_mb + 50) * 1_000_000}\n")
        (root / "sys/fs/cgroup/memory.current").write_text(f"{50 * 1_000_000}\n")
    return root


def refusal(gguf: Path, root: Path, *, context: int, parallel: int) -> str:
    with pytest.raises(EngineError) as caught:
        ensure_fits(read_header(gguf), gguf, context=context, parallel=parallel, batch=BATCH, root=root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def header(tensors: dict[str, Tensor], **numbers: int) -> Header:
    named = {f"toy.{name.replace('__', '.')}": value for name, value in numbers.items()}
    return Header({"general.architecture": "toy", **named}, tensors)


@pytest.mark.parametrize(("context", "parallel"), [(256, 1), (2048, 1), (1000, 3), (2048, 4), (64, 32)])
def test_what_is_foreseen_is_what_llama_cpp_takes(smollm2_gguf: Path, context: int, parallel: int) -> None:
    engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=context, parallel=parallel))
    taken = engine.memory_mb()
    engine.close()
    foreseen = plan(
        read_header(smollm2_gguf),
        context=context,
        parallel=parallel,
        batch=PREFILL_ALONE + parallel,
        isa=read_facts().isa,
    )
    assert foreseen.total == pytest.approx(sum(taken.values()), rel=0.08)
    assert foreseen.kv == pytest.approx(taken["kv"], rel=0.01)
    assert foreseen.compute == pytest.approx(taken["compute"], rel=0.25)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(key_type=Q8_0, value_type=Q8_0, flash_attention=True),
        Layout(key_type=Q8_0, value_type=F16),
        Layout(flash_attention=False),
        Layout(is_mapped=True),
    ],
    ids=["q8_0", "keys", "no flash attention", "mapped"],
)
@pytest.mark.parametrize(("context", "parallel"), [(256, 1), (2048, 4)])
def test_what_a_profile_asks_for_is_foreseen_too(
    smollm2_gguf: Path, layout: Layout, context: int, parallel: int
) -> None:
    engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=context, parallel=parallel), layout=layout)
    taken = engine.memory_mb()
    engine.close()
    foreseen = plan(
        read_header(smollm2_gguf),
        context=context,
        parallel=parallel,
        batch=PREFILL_ALONE + parallel,
        isa=read_facts().isa,
        layout=layout,
    )
    assert foreseen.total == pytest.approx(sum(taken.values()), rel=0.08)
    assert foreseen.kv == pytest.approx(taken["kv"], rel=0.01)


def test_the_refusal_counts_the_caches_as_they_will_be(smollm2_gguf: Path, tmp_path: Path) -> None:
    root, found = machine(tmp_path, available_mb=300), read_header(smollm2_gguf)
    small = Layout(key_type=Q8_0, value_type=Q8_0, flash_attention=True)
    refusal(smollm2_gguf, root, context=2600, parallel=4)
    assert ensure_fits(found, smollm2_gguf, context=2600, parallel=4, batch=BATCH, root=root, layout=small), (
        "keys and values in 8 bits"
    )


def test_what_a_gpu_has_left_is_what_counts_there(smollm2_gguf: Path, tmp_path: Path) -> None:
    root, found = machine(tmp_path, available_mb=30_000), read_header(smollm2_gguf)
    own = load_profile("laptop-nvidia").accelerators[0]
    shared = load_profile("jetson-orin-nano-8gb").accelerators[0]

    def fits(gpu: Accelerator, free_mb: int, root: Path = root) -> MemoryPlan | None:
        layout = Layout(gpu=gpu)
        return ensure_fits(
            found,
            smollm2_gguf,
            context=2048,
            parallel=4,
            batch=BATCH,
            root=root,
            layout=layout,
            gpu_free_mb=free_mb,
        )

    assert fits(own, 400)
    for gpu in (own, shared):
        with pytest.raises(EngineError, match="and 200 MB are free"):
            fits(gpu, 200)
    busy = machine(tmp_path / "busy", available_mb=200)
    assert fits(own, 400, busy), "its memory is not the machine's"
    with pytest.raises(EngineError, match="and 199 MB are free"):
        fits(shared, 400, busy)


def test_quantised_keys_and_values_take_less(smollm2_gguf: Path) -> None:
    found = read_header(smollm2_gguf)
    assert kv_bytes(found) == 30 * 2 * 3 * 64 * 2, "layers, keys and values, heads, width, F16"
    assert kv_bytes(found, Q8_0, Q8_0) == kv_bytes(found) * 34 // 64
    assert kv_bytes(found, Q8_0, F16) == (kv_bytes(found) + kv_bytes(found, Q8_0, Q8_0)) // 2


def test_only_layers_with_attention_remember() -> None:
    tensors = {
        "blk.0.ssm_in.weight": Tensor((64, 64), F32, 16384),
        "blk.1.attn_k.weight": Tensor((64, 32), F32, 8192),
        "blk.1.attn_v.weight": Tensor((64, 16), F32, 4096),
        "blk.2.attn_k.weight": Tensor((64, 32), F32, 8192),
    }
    assert kv_bytes(header(tensors, block_count=3)) == 2 * (32 + 16) + 2 * (32 + 32)
    assert kv_bytes(header(tensors, block_count=3, attention__shared_kv_layers=1)) == 2 * (32 + 16)


def test_keys_and_values_in_one_tensor_with_the_queries_are_told_apart() -> None:
    fused = {"blk.0.attn_qkv.weight": Tensor((64, 64 + 32), F32, 24576)}
    assert kv_bytes(header(fused, block_count=1, embedding_length=64, attention__head_count=4)) == 2 * 32


def test_an_embedding_that_is_the_head_too_is_held_twice_once_it_is_laid_out_anew() -> None:
    tied = header({"token_embd.weight": Tensor((64, 4000), Q4_0, 144_000)})
    untied = header({**tied.tensors, "output.weight": Tensor((64, 4000), Q4_0, 144_000)})

    def planned(found: Header, *isa: str) -> MemoryPlan:
        return plan(found, context=256, parallel=1, batch=1, isa=isa)

    assert planned(tied).weights == pytest.approx(0.144)
    assert planned(tied, "avx2").weights == pytest.approx(0.288)
    assert planned(tied, "avx2").loading == pytest.approx(0.144)
    assert planned(untied, "avx2").weights == pytest.approx(0.288)


def test_what_fits_is_not_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    root = machine(tmp_path, available_mb=400)
    found = ensure_fits(read_header(smollm2_gguf), smollm2_gguf, context=2048, parallel=4, batch=260, root=root)
    assert found
    assert 280 < found.total < 320


def test_the_refusal_has_the_numbers_and_what_would_fit(smollm2_gguf: Path, tmp_path: Path) -> None:
    said = refusal(smollm2_gguf, machine(tmp_path, available_mb=400), context=8192, parallel=4)
    assert "needs 875 MB (weights 97, keys and values of 4 × 8192 tokens 755, computing 24) and 400 MB" in said
    assert said.endswith("--context 3072 or --parallel 1 would fit")


def test_what_the_advice_says_fits(smollm2_gguf: Path, tmp_path: Path) -> None:
    root, found = machine(tmp_path, available_mb=400), read_header(smollm2_gguf)
    for context, parallel in ((3072, 4), (8192, 1)):
        assert ensure_fits(found, smollm2_gguf, context=context, parallel=parallel, batch=BATCH, root=root)
    refusal(smollm2_gguf, root, context=3072 + 256, parallel=4)


def test_the_control_groups_limit_counts_where_it_is_lower(smollm2_gguf: Path, tmp_path: Path) -> None:
    root = machine(tmp_path, available_mb=30_000, group_mb=200)
    assert "and 200 MB are free" in refusal(smollm2_gguf, root, context=8192, parallel=1)


def test_weights_that_never_fit_are_said_to(smollm2_gguf: Path, tmp_path: Path) -> None:
    said = refusal(smollm2_gguf, machine(tmp_path, available_mb=90), context=8192, parallel=4)
    assert said.endswith("no context fits: free memory or take a smaller model")


def test_a_context_longer_than_the_models_own_is_planned_as_the_models_own(smollm2_gguf: Path, tmp_path: Path) -> None:
    said = refusal(smollm2_gguf, machine(tmp_path, available_mb=100), context=1_000_000, parallel=1)
    assert "1 × 8192 tokens" in said


def test_a_machine_that_does_not_say_is_tried(smollm2_gguf: Path, tmp_path: Path) -> None:
    found = read_header(smollm2_gguf)
    assert ensure_fits(found, smollm2_gguf, context=8192, parallel=64, batch=320, root=tmp_path) is None


def test_caches_that_grow_into_their_memory_are_refused_before_they_do(tmp_path: Path) -> None:
    root = machine(tmp_path, available_mb=1000)

    def check(context: int, parallel: int, root: Path = root) -> None:
        ensure_caches_fit("model.onnx", token_bytes=46_080, context=context, parallel=parallel, root=root)

    check(4096, 4)
    with pytest.raises(NoRoomError) as caught:
        check(8192, 4)
    assert "needs 1510 MB for keys and values of 4 × 8192 tokens and 999 MB are free beside its" in str(caught.value)
    assert str(caught.value).endswith("--context 5376 or --parallel 2 would fit")
    check(5376, 4)
    check(8192, 2)
    check(8192, 64, tmp_path / "does not say")


def test_an_engine_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "huge.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(2**31 - 1)
    writer.add_tensor("blk.0.attn_k.weight", np.ones((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineError, match=r"huge.gguf needs \d+ MB .* would fit"):
        LlamaEngine(tmp_path / "huge.gguf", EngineOptions(threads=1, context=2**31 - 1, parallel=64))
