"""Small random checkpoints of every family that is promised go through every stage and think what their source thinks.

Each has the marks of its family: Llama 3's stretched rotation, Qwen2.5's biases, Qwen3's norms of queries and keys,
Gemma's windows and soft norms, Phi's fused products and partial rotation, Granite's multipliers. The tokenizer is the
first part of SmolLM2's.
"""

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from fieldlm.formats.bundle import Bundle
from fieldlm_compiler.verify.limits import Limits, SearchRequest
from tests.support import tiny_models

Build = Callable[..., Bundle]
SHAPE: dict[str, Any] = {
    "vocab_size": tiny_models.VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}  # fmt: skip
PHI = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}}),
    "Llama 3": ("llama", {"rope_parameters": LLAMA_3}),
    "Qwen2.5": ("qwen2", {}),
    "Qwen3": ("qwen3", {"head_dim": 32}),
    "Gemma 3": ("gemma3_text", {"head_dim": 32, "sliding_window": 512, "query_pre_attn_scalar": 32}),
    "Phi-4-mini": ("phi3", {"rope_parameters": PHI}),
    "Granite": ("granite", {"embedding_multiplier": 2.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
                            "attention_multiplier": 0.25}),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a checkpoint of each family in turn."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, more = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("families") / request.param.lower().replace(" ", "-")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE | more), dtype=torch.float32)
    model.save_pretrained(folder)
    tiny_models.copy_tokenizer(folder)
    return folder


def held(bundle: Bundle) -> None:
    """Assert that full weights were held against the source, token by token."""
    gates = {gate.name: gate.value for gate in bundle.manifest.gates}
    assert gates["tokens-equal"] > 0
    assert gates["mean-kl"] <= 1e-4
    assert gates["same-top"] >= 0.995


def test_as_gguf_it_thinks_what_its_source_thinks(family: Path, build: Build, tmp_path: Path) -> None:
    held(build(family, tmp_path / "bundle", quants=("Q8_0",)))


def test_a_type_is_found_for_each_of_its_tensors(family: Path, build: Build, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(topics["assignment"][:6000])
    request = SearchRequest(calibration=(text,), limits=Limits(max_bundle_mb=0.55))
    bundle = build(family, tmp_path / "bundle", request=request)
    held(bundle)
    assert bundle.manifest.recipe.quant.startswith("MIX-")


def test_as_onnx_it_thinks_what_its_source_thinks(family: Path, build: Build, tmp_path: Path) -> None:
    held(build(family, tmp_path / "bundle", fmt="onnx"))
