"""ONNX export, the steps that run in a process of their own: `export.onnx` starts them."""

import logging
import tempfile
from pathlib import Path
from typing import Any, cast

import onnx

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json
from fieldlm.engines.onnx import FORMAT, METADATA
from fieldlm_compiler.export import onnx_graph
from fieldlm_compiler.export.onnx_graph import Attention

# The rotary tables are written out per position; 32,768 of them are 16 MB and more than a small device holds keys for.
MAX_CONTEXT = 32768
# Families whose attention is what the fused operator computes, and nothing more.
FUSED_FAMILIES = {"llama", "mistral", "qwen2"}
# Kinds of rotary scaling that are one table, whatever the length of the prompt.
FIXED_ROTARY = {"default", "linear", "llama3", "yarn"}
BODY_BITS = 4
HEAD = "/lm_head/MatMul"


def trace(checkpoint: Path, out: Path, stops: list[int]) -> dict[str, Any]:
    """Export `checkpoint` with the toolchain's Optimum and Transformers, then make the graph follow the contract."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(checkpoint)
    with tempfile.TemporaryDirectory(prefix=".traced-", dir=out.parent) as traced:
        _optimum(checkpoint, traced, config.model_type)
        model = onnx.load(Path(traced) / "model.onnx")
    parameters = onnx_graph.count_floats(model)
    onnx_graph.keep_last_logits(model)
    attention = _attention(config)
    is_fused = attention is not None and onnx_graph.fuse_attention(model, attention)
    onnx_graph.join_products(model)
    onnx_graph.share_constants(model)
    about: dict[str, Any] = {
        "format": FORMAT,
        "kv": "shared" if is_fused else "grown",
        "context": min(config.max_position_embeddings, MAX_CONTEXT),
        "stop_tokens": stops,
    }
    onnx.helper.set_model_props(model, {METADATA: canonical_json(about).decode()})
    _save(model, out)
    return {"parameters": parameters, "fused": is_fused}


def _optimum(checkpoint: Path, into: str, family: str) -> None:
    from optimum.exporters.onnx import main_export  # pyright: ignore  (only the toolchain has it)

    try:
        main_export(
            checkpoint,
            into,
            task="text-generation-with-past",
            dtype="fp32",
            device="cpu",
            library_name="transformers",
            local_files_only=True,
            # Optimum's own check takes as long as the export; the fidelity gate compares whole answers instead.
            do_validation=False,
        )
    except (KeyError, ValueError, NotImplementedError) as error:
        raise InputError(f"Optimum cannot export {family}: {str(error).strip().splitlines()[0]}") from error


def _attention(config: Any) -> Attention | None:
    """Return what the fused attention needs, or None when `config` asks for something it does not compute."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    scaling = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", "default")
    if config.model_type not in FUSED_FAMILIES or slides or kind not in FIXED_ROTARY:
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    places = torch.arange(min(config.max_position_embeddings, MAX_CONTEXT))[None]
    # Both halves of a head turn by the same angles; the operator wants them once.
    cosines, sines = (part[0, :, : width // 2].numpy() for part in LlamaRotaryEmbedding(config)(torch.zeros(1), places))
    return Attention(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        scale=width**-0.5,
        cosines=cosines,
        sines=sines,
    )


def round_weights(fp32: Path, out: Path, block_size: int, accuracy_level: int, head_bits: int) -> dict[str, Any]:
    """Replace every matrix product's weights by blocks of int4, the head's by `head_bits`; a tied one stays tied."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.disable(logging.INFO)
    model = onnx.load(fp32 / "model.onnx")
    parameters = onnx_graph.count_floats(model)
    width = onnx_graph.untie_head(model)
    products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    body = [name for name in products if name != HEAD]
    for bits, left in ((head_bits, body), (BODY_BITS, [])):
        rounding = MatMulNBitsQuantizer(
            model,
            bits=bits,
            block_size=block_size,
            is_symmetric=True,
            accuracy_level=accuracy_level,
            nodes_to_exclude=left,
        )
        rounding.process()
        model = cast(Any, rounding.model).model
    if width and width % block_size == 0:
        onnx_graph.tie_embedding(model, bits=head_bits, block_size=block_size)
    _save(model, out)
    fused = any(node.op_type == "GroupQueryAttention" for node in model.graph.node)
    return {"parameters": parameters, "fused": fused}


def _save(model: onnx.ModelProto, out: Path) -> None:
    """Write the graph and, beside it, its weights, so that a graph of any size is one small file and one large."""
    onnx.save(
        model,
        out / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    # onnx makes the weights readable for their owner alone, which a service user on the device is not.
    (out / "model.onnx.data").chmod((out / "model.onnx").stat().st_mode)
