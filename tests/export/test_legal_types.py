"""What our quantiser leaves alone is what llama.cpp's own leaves alone, asked of the build that is installed."""

import numpy as np
import pytest

from fieldlm.formats.gguf import read_header
from fieldlm_compiler.export import quantize
from fieldlm_compiler.export.legal_types import is_quantizable
from fieldlm_compiler.pipeline.child import call

MATRIX = (4, 32)
# Every name in tensor_allows_quantization, and its neighbours that are quantised.
KEPT = (
    "blk.0.attn_norm.weight", "blk.0.ssm_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_tid2eid.weight",
    "altup_proj.weight", "blk.0.laurel_l.weight", "per_layer_model_proj.weight", "position_embd.weight",
    "token_types.weight", "blk.0.ssm_conv1d.weight", "blk.0.ssm_conv1d_q.weight", "blk.0.shortconv.conv.weight",
    "blk.0.indexer.k_proj.weight", "blk.0.indexer.q_proj.weight", "enc.blk.0.attn_rel_b.weight",
    "v.position_embd.weight", "v.sam.pos_embd.weight", "v.sam.neck.0.weight", "v.sam.net_2.weight",
    "v.blk.0.attn.rel_pos_h.weight", "v.patch_embd.weight", "mm.patch_merger.weight", "a.rvq.codebook.0.weight",
    "mm.a.code_embd.weight", "blk.0.ssm_a", "blk.0.attn_q.bias",
    *(
        f"blk.0.time_mix_{part}.weight"
        for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2",
                     "lerp_fused")
    ),
)  # fmt: skip
QUANTISED = (
    "token_embd.weight", "output.weight", "per_layer_token_embd.weight", "blk.0.attn_q.weight", "blk.0.ssm_in.weight",
    "blk.0.shortconv.in_proj.weight", "blk.0.ffn_down_exps.weight", "blk.0.indexer.proj.weight",
    "blk.0.indexer.attn_k.weight", "cls.token_types.weight", "blk.0.time_mix_key.weight", "blk.0.hc_attn_fn.weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Return for every name whether llama.cpp leaves its tensor as it is when asked for Q8_0."""
    from gguf import GGUFWriter

    folder = tmp_path_factory.mktemp("names")
    writer = GGUFWriter(folder / "f16.gguf", "llama")
    for add in (writer.add_block_count, writer.add_head_count):
        add(1)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(32)
    writer.add_layer_norm_rms_eps(1e-5)
    for name in (*KEPT, *QUANTISED):
        writer.add_tensor(name, np.zeros(MATRIX, np.float16))
    writer.add_tensor("blk.0.attn_k.weight", np.zeros((1, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    call(quantize.quantize_file, what="quantise")(
        source=folder / "f16.gguf", target=folder / "q.gguf", ftype=quantize.QUANTS["Q8_0"], threads=1, imatrix=None
    )
    before, after = (read_header(folder / name).tensors for name in ("f16.gguf", "q.gguf"))
    return {name: tensor.type == before[name].type for name, tensor in after.items()}


@pytest.mark.parametrize(("names", "is_left"), [(KEPT, True), (QUANTISED, False)])
def test_tensors_that_llama_cpp_leaves_alone_are_left_alone(
    left: dict[str, bool], names: tuple[str, ...], is_left: bool
) -> None:
    assert {name for name in names if left[name] is not is_left} == set()
    assert {name for name in names if is_quantizable(name, MATRIX[::-1], "llama") is is_left} == set()


def test_a_matrix_of_one_row_is_a_vector_to_ggml(left: dict[str, bool]) -> None:
    assert left["blk.0.attn_k.weight"]
    assert not is_quantizable("blk.0.attn_k.weight", (32, 1), "llama")
    assert is_quantizable("blk.0.attn_k.weight", (32, 1, 4), "llama")


def test_a_family_has_names_of_its_own() -> None:
    for name in ("blk.0.indexer.proj.weight", "blk.0.hc_attn_fn.weight", "blk.0.attn_k_b.weight"):
        assert is_quantizable(name, MATRIX, "llama")
        assert not is_quantizable(name, MATRIX, "glm5-next")
