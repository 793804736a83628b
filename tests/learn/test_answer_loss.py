"""The trainer computes the model that it was given, whatever its family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.tokenized import TokenizedExample, read_examples
from fieldlm_compiler.learn.tune import TrainingRecipe, tune
from fieldlm_compiler.learn.tuning.adapted_model import with_adapter
from fieldlm_compiler.learn.tuning.answer_loss import choose_loss
from tests.support.checkpoints import VOCABULARY, save_bytes_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "tie_word_embeddings": True, "pad_token_id": 0,
    "bos_token_id": 257, "eos_token_id": 258,
}  # fmt: skip
# What each family has more than Llama: windows, caps, scales, convolutions, recurrent states, other names of layers.
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("LlamaConfig", {}, True),
    "mistral, window": ("MistralConfig", {"sliding_window": 32}, True),
    "gemma 2, soft caps": (
        "Gemma2Config",
        {"head_dim": 16, "query_pre_attn_scalar": 1, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
         "sliding_window": 24},
        True,
    ),
    "gemma 3, window in one layer": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
        True,
    ),
    "granite, scaled logits": ("GraniteConfig", {"logits_scaling": 8.0, "embedding_multiplier": 12.0}, True),
    "cohere, scaled logits": ("CohereConfig", {"logit_scale": 0.0625}, True),
    "phi 3, fused layers": ("Phi3Config", {}, True),
    "lfm 2, convolution": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, False),
    "gpt-oss, attention sinks": (
        "GptOssConfig",
        {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": 32,
         "layer_types": ["sliding_attention", "full_attention"]},
        False,
    ),
    "granite hybrid, recurrent state": (
        "GraniteMoeHybridConfig",
        {"num_local_experts": 0, "shared_intermediate_size": 128, "layer_types": ["mamba", "attention"],
         "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16},
        False,
    ),
}  # fmt: skip


def write_examples(folder: Path) -> None:
    lines: list[str] = []
    for number in range(6):
        said = f"carry box {number} to the long shelf " * (1 + number % 3)
        answer = json.dumps({"name": "goto", "arguments": {"place": f"aisle {number}"}})
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    for name in ("train", "eval"):
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def checkpoint_of(folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Weights of their usual size hardly say anything: what a layer adds would be lost in the head.
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    save_bytes_tokenizer(folder, TEMPLATE)
    return folder


def transformers_own_loss(folder: Path, examples: tuple[TokenizedExample, ...]) -> float:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            logits = model(torch.tensor([example.tokens])).logits[0, example.answer_at - 1 : -1]
            answer = torch.tensor(example.tokens[example.answer_at :])
            total += float(cross_entropy(logits, answer, reduction="sum"))
            count += len(answer)
    return total / count


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_that_is_trained_is_the_models_own(family: str, tmp_path: Path) -> None:
    kind, more, is_packed = FAMILIES[family]
    folder = checkpoint_of(tmp_path, getattr(transformers, kind)(**{**BASE, **more}))
    write_examples(tmp_path)
    examples = read_examples(tmp_path / "train.jsonl", folder, 512).examples
    model = with_adapter(folder, TrainingRecipe(precision="float32", device="cpu"))
    loss = choose_loss(model, examples, 4)
    assert loss.is_packed == is_packed
    assert loss.evaluate(examples, 4) == pytest.approx(transformers_own_loss(folder, examples), abs=2e-4)
    loss.mean(examples[:4]).backward()
    tuned = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    assert tuned
    assert all(parameter.grad is not None for parameter in tuned)


def test_every_linear_layer_is_tuned_whatever_a_family_calls_it(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, transformers.Phi3Config(**BASE))
    model: Any = with_adapter(folder, TrainingRecipe(precision="float32", device="cpu"))
    tuned = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    assert tuned == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_gpt2_is_tuned_too(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, bos_token_id=257, eos_token_id=258
    )
    folder = checkpoint_of(tmp_path, config)
    write_examples(tmp_path)
    examples = read_examples(tmp_path / "train.jsonl", folder, 512).examples
    loss = choose_loss(with_adapter(folder, TrainingRecipe(precision="float32", device="cpu")), examples, 4)
    assert loss.evaluate(examples, 4) == pytest.approx(transformers_own_loss(folder, examples), abs=2e-4)


def test_a_module_that_a_family_has_not_is_named(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, transformers.LlamaConfig(**BASE))
    with pytest.raises(InputError, match="no module c_attn to tune"):
        with_adapter(folder, TrainingRecipe(targets=("c_attn",), device="cpu"))


def test_a_base_in_bfloat16_is_the_same_after_the_check(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, transformers.LlamaConfig(**BASE))
    write_examples(tmp_path)
    examples = read_examples(tmp_path / "train.jsonl", folder, 512).examples
    model: Any = with_adapter(folder, TrainingRecipe(precision="bfloat16", device="cpu"))
    before = {name: (parameter.dtype, parameter.clone()) for name, parameter in model.named_parameters()}
    assert choose_loss(model, examples, 4).is_packed
    assert all(before[name][0] == p.dtype and torch.equal(before[name][1], p) for name, p in model.named_parameters())


def test_a_model_in_several_files_is_tuned_and_what_it_learned_is_said(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, transformers.LlamaConfig(**BASE))
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="100KB")
    assert not (folder / "model.safetensors").exists()
    write_examples(tmp_path)
    document = tune(folder, tmp_path, tmp_path / "adapter", TrainingRecipe(epochs=1, precision="float32", device="cpu"))
    assert (document["examples"], document["packed"]) == (6, True)
