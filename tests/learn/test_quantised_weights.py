"""What quantisation-aware tuning computes with is what the compiler writes, to the last bit."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from fieldlm.core.errors import InputError
from fieldlm_compiler.checkpoints.checkpoint import open_checkpoint
from fieldlm_compiler.checkpoints.dequantize import dequantize
from fieldlm_compiler.checkpoints.merge import merge_folder
from fieldlm_compiler.export.ggml import Kind, kind
from fieldlm_compiler.export.gguf import export_f16
from fieldlm_compiler.export.quantize import quantize
from fieldlm_compiler.learn.tune import TrainingRecipe, main, tune
from fieldlm_compiler.learn.tuning.quantised_weights import BlockTypes, hold_as_blocks, rounded
from fieldlm_compiler.pipeline.child import call
from tests.support.tiny_models import conversations, logits, tiny_adapter, tiny_llama, write_lines

MATRICES = 2 * 7  # of two layers; the table is another


@dataclass(frozen=True)
class Made:
    """A base, its Q4_0 file, and a LoRA on all its linear layers."""

    folder: Path
    base: Path
    blocks: Path
    adapter: Path


def written(checkpoint: Path, out: Path) -> Path:
    """Convert and quantise as `fieldlm compile --quant Q4_0` does."""
    whole = out.with_suffix(".f16.gguf")
    export_f16(open_checkpoint(str(checkpoint)), whole)
    quantize(whole, out, "Q4_0")
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("blocks")
    base = tiny_llama(folder / "base")
    adapter = tiny_adapter(folder / "adapter", base, target_modules="all-linear")
    return Made(folder, base, written(base, folder / "base.gguf"), adapter)


def test_it_computes_with_what_the_compiler_writes(made: Made) -> None:
    call(merge_folder, what="merge")(base=made.base, adapter=made.adapter, into=made.folder / "merged")
    file = written(made.folder / "merged", made.folder / "merged.gguf")
    (made.folder / "served").mkdir()
    call(dequantize, what="unpack")(path=file, folder=made.folder / "served")
    model: Any = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(model, str(made.adapter), is_trainable=True).eval()
    held = hold_as_blocks(model, BlockTypes(made.blocks))
    assert held == {"Q4_0": MATRICES, "Q8_0": 1}
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        told = model(input_ids=torch.arange(0, rows, 50)[None]).logits[0]
    wanted = torch.from_numpy(logits(made.folder / "served"))
    torch.testing.assert_close(told, wanted, rtol=1e-4, atol=1e-4)
    whole = torch.from_numpy(logits(made.base, adapter=made.adapter))
    assert float((whole - wanted).abs().max()) > 0.1, "rounding to blocks must show, or this proves nothing"


class Everything(BlockTypes):
    """Holds whatever it is asked for in one type."""

    def __init__(self, to: Kind) -> None:
        self._to = to

    def of(self, module: str, weight: torch.Tensor) -> Kind:
        del module, weight
        return self._to


def test_gradients_go_straight_through_the_rounding() -> None:
    to = kind("Q4_0")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 8))
    model: Any = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=["0", "1"]))  # pyright: ignore[reportArgumentType]
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(own) == 4
    for parameter in own.values():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 32, requires_grad=True)
    assert hold_as_blocks(model, Everything(to)) == {"Q4_0": 2}
    told = model(x)
    found = torch.autograd.grad(told.square().sum(), [x, *own.values()])

    value = x
    for layer in model.get_base_model():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        merged = layer.base_layer.weight + 2.0 * (b @ a)
        held = merged + (rounded(merged, to) - merged).detach()
        value = linear(value, held, layer.base_layer.bias)
    torch.testing.assert_close(told, value)
    wanted = torch.autograd.grad(value.square().sum(), [x, *own.values()])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for name in ("train", "eval"):
        write_lines(tmp_path / f"{name}.jsonl", conversations(8))
    return tmp_path


def test_tune_says_what_it_held_and_lowers_the_loss(made: Made, dataset: Path) -> None:
    recipe = TrainingRecipe(rank=4, epochs=8)
    told = tune(made.base, dataset, dataset / "adapter", recipe, blocks=made.blocks)
    assert told["blocks"] == {"Q4_0": MATRICES, "Q8_0": 1}
    assert told["precision"] == "float32"
    assert told["eval_loss_after"] < told["eval_loss_before"]
    plain = tune(made.base, dataset, dataset / "plain", recipe)
    assert plain["blocks"] == {}
    assert plain["eval_loss_before"] != told["eval_loss_before"]


def test_the_file_of_another_model_is_refused(made: Made, tmp_path: Path) -> None:
    other = written(tiny_llama(tmp_path / "other", intermediate_size=96), tmp_path / "other.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(model, str(made.adapter), is_trainable=True)
    with pytest.raises(InputError, match=r"has model\.layers\.0\.mlp\.\w+ as \(.*made from this model"):
        hold_as_blocks(model, BlockTypes(other))


def test_what_is_no_gguf_is_refused_before_any_work(made: Made, dataset: Path) -> None:
    words = [str(made.base), "--dataset", str(dataset), "--out", str(dataset / "a")]
    with pytest.raises(InputError, match=r"'none\.gguf' is no .gguf file and no bundle with one"):
        main([*words, "--quant-aware", "none.gguf"])


def test_dora_for_blocks_is_refused_before_any_work(
    made: Made, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldlm_compiler.learn.tune.prepare", lambda: pytest.fail("it begins to load PyTorch"))
    words = [str(made.base), "--dataset", str(dataset), "--out", str(tmp_path / "a"), "--lora", "dora"]
    with pytest.raises(InputError, match=r"^--quant-aware cannot train DoRA's magnitudes; leave it out"):
        main([*words, "--quant-aware", str(made.blocks)])


def test_preferences_are_learned_through_the_blocks(made: Made, tmp_path: Path) -> None:
    rows = [
        row | {"rejected": {"role": "assistant", "content": f"no {row['messages'][0]['content']}"}}
        for row in conversations(8)
    ]
    for name in ("train", "eval"):
        write_lines(tmp_path / f"{name}.jsonl", rows)
    recipe = TrainingRecipe(rank=4, epochs=8, preference_weight=1.0)
    told = tune(made.base, tmp_path, tmp_path / "adapter", recipe, blocks=made.blocks)
    assert told["blocks"] == {"Q4_0": MATRICES, "Q8_0": 1}
    found = told["preferences"]
    assert found["pairs"] == {"train": 8, "eval": 8}
    assert found["eval_log_odds_after"] > found["eval_log_odds_before"]
