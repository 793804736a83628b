"""Legal quantisation types of a tensor: its shape must be whole blocks, and the device must compute with them fast."""

import re
from collections.abc import Collection

from fieldlm_compiler.export.ggml import Kind, kind

FULL = "F16"
# Linear grids: every build of llama.cpp has vector code for them.
LINEAR = ("Q2_K", "Q3_K", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0", FULL)
# Grids looked up in a table: one shuffle with AVX2 or NEON, a loop over bytes without.
LOOKED_UP = ("IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL")
SHUFFLES = ("avx2", "neon")
# Tensors that llama.cpp leaves alone whatever is asked: tensor_allows_quantization of src/llama-quant.cpp, as in
# llama-cpp-python 0.3.36. Norms, routers, positions, and what is small in recurrent, multimodal and audio models.
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj"
    r"|^position_embd\.weight$|^token_types\.weight$|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight"
    r"|time_mix_(first|w0|w1|w2|v0|v1|v2|a0|a1|a2|g1|g2|decay_w1|decay_w2|lerp_fused)\.weight|attn_rel_b\.weight"
    r"|\.position_embd|sam\.pos_embd|sam\.neck\.|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger"
    r"|a\.rvq\.codebook|mm\.a\.code_embd"
)
KEPT_OF = {
    "glm5-next": re.compile(
        r"hc_|indexer\.(attn_q_b|attn_k|proj)|indexer_compressor_(gate|ape)"
        r"|(ssm_(f_a|f_b|g_a|g_b|beta)|attn_kv_a_mqa|attn_k_b|attn_v_b)\.weight"
    )
}


def is_quantizable(name: str, shape: tuple[int, ...], architecture: str) -> bool:
    """Say whether llama.cpp would quantise the tensor `name`: matrices, but none of those it leaves alone.

    To ggml a matrix of one row is a vector.
    """
    own = KEPT_OF.get(architecture)
    is_kept = KEPT.search(name) or (own and own.search(name))
    return any(size > 1 for size in shape[1:]) and name.endswith("weight") and not is_kept


def legal_types(columns: int, isa: Collection[str]) -> tuple[Kind, ...]:
    """Return the types that rows of `columns` weights may have on a device with `isa`, smallest first."""
    names = LINEAR + (LOOKED_UP if any(each in isa for each in SHUFFLES) else ())
    kinds = [each for each in map(kind, names) if each.holds(columns)]
    return tuple(sorted(kinds, key=lambda each: (each.bits, each.name)))
