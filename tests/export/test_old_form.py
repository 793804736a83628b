"""What transformers 5 saves otherwise than llama.cpp's converter reads thinks, as a GGUF, what its source thinks."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers

from fieldlm.core.errors import InputError
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import open_checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import CORPUS, PROSE
from fieldlm_compiler.compile.assemble import draft_manifest
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import gates as proof
from tests.support import tiny_models
from tests.verify.test_architectures import SHAPE

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_d_head": 16, "mamba_expand": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "granitemoehybrid": MAMBA | {
        "num_local_experts": 0, "num_experts_per_tok": 0,
        "layer_types": ["linear_attention", "full_attention"], "shared_intermediate_size": 128,
        "position_embedding_type": "nope",
    },
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512},
    "gpt_neox": {"num_key_value_heads": 4},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 2048},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 64, "decoder_sparse_step": 1},
}  # fmt: skip


def save(kind: str, folder: Path, shape: dict[str, Any]) -> Path:
    """Write a random model of the family `kind` to `folder`, as transformers 5 does."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape), dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def with_tokenizer(folder: Path) -> Path:
    tiny_models.copy_tokenizer(folder)
    return folder


def prove(folder: Path, profile: Profile, stages: Stages) -> set[str]:
    checkpoint = open_checkpoint(str(folder))
    full = lower(checkpoint, "gguf", stages)
    return {
        gate.name for gate in proof.prove(draft_manifest(checkpoint, profile), full, checkpoint, profile, stages)[0]
    }


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_whose_configuration_was_renamed_thinks_what_its_source_thinks(
    kind: str, tmp_path: Path, stages: Stages, profile: Profile
) -> None:
    shape = {name: value for name, value in SHAPE.items() if kind != "gpt2" or "hidden" not in name}
    folder = with_tokenizer(save(kind, tmp_path / kind, shape | FAMILIES[kind]))
    assert "mean-kl" in prove(folder, profile, stages)


def sentencepiece_born(folder: Path, size: int, *, prefix: bool) -> Path:
    """Write a tokenizer.json as it is made of a sentencepiece model, and a token past the `size` that a model has."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    kept = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=kept, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *PROSE] * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(f"<reserved-{n}>") for n in range(tokenizer.get_vocab_size(), size + 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("kind", "prefix"), [("llama", True), ("gemma3_text", False)])
def test_a_vocabulary_that_was_born_as_sentencepiece_is_read_out_of_tokenizer_json(
    kind: str, prefix: bool, tmp_path: Path, stages: Stages, profile: Profile
) -> None:
    """transformers 5 saves no tokenizer.model, and Gemma 3's tokenizer.json has one token more than the model."""
    folder = save(kind, tmp_path / kind, SHAPE | {"vocab_size": 900, "head_dim": 32, "query_pre_attn_scalar": 32})
    assert "tokens-equal" in prove(sentencepiece_born(folder, 900, prefix=prefix), profile, stages)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gemma2", r"no tokenizer\.model, .*: copy the one of the model it was trained"),
        ("glm4", r"tokenizer has no token <\|user\|>, .*: copy the tokenizer's files of the model it was trained"),
    ],
)
def test_a_tokenizer_that_is_not_the_familys_is_refused_by_name(
    kind: str, message: str, tmp_path: Path, stages: Stages
) -> None:
    folder = with_tokenizer(save(kind, tmp_path / kind, SHAPE | {"head_dim": 32}))
    with pytest.raises(InputError, match=message):
        lower(open_checkpoint(str(folder)), "gguf", stages)


def test_experts_that_transformers_cannot_put_together_again_are_refused_by_name(
    tmp_path: Path, stages: Stages
) -> None:
    shape = SHAPE | EXPERTS | {"head_dim": 32, "decoder_sparse_step": 1}
    full = lower(open_checkpoint(str(with_tokenizer(save("qwen3_moe", tmp_path / "moe", shape)))), "gguf", stages)
    with pytest.raises(InputError, match=r"cannot make a checkpoint of model\.gguf, a qwen3moe, again; name the model"):
        open_checkpoint(str(full.base), stages)
