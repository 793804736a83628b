"""QLoRA: the base is in 4 bits while it is tuned, and what comes of it goes onto the full weights."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fieldlm.cli.main import main as fieldlm
from fieldlm.core.errors import InputError
from fieldlm_compiler.checkpoints.checkpoint import open_checkpoint
from fieldlm_compiler.checkpoints.merge import merge_folder
from fieldlm_compiler.checkpoints.peft_adapter import check_mergeable, check_shippable, open_adapter
from fieldlm_compiler.export.gguf import export_f16
from fieldlm_compiler.learn.tokenized import TokenizedExample, read_examples
from fieldlm_compiler.learn.tune import main, tune
from fieldlm_compiler.learn.tuning.adapted_model import with_adapter
from fieldlm_compiler.learn.tuning.answer_loss import AnswerLoss, choose_loss
from fieldlm_compiler.learn.tuning.four_bits import base_bytes, four_bit_layers, load_options
from fieldlm_compiler.learn.tuning.recipe import NF4, TrainingRecipe, alpha_of
from fieldlm_compiler.pipeline.child import call
from tests.support import tiny_models

KINDS = ("lora", "rslora", "dora")
LAYERS = 2 * 7  # two of a Llama, each with seven linear ones
RECIPE = TrainingRecipe(
    rank=4, epochs=40, batch=4, learning_rate=3e-3, precision="float32", device="cpu", base_weights=NF4
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.to_tune(tmp_path_factory.mktemp("four-bits"))


@pytest.fixture(scope="module")
def examples(folder: Path) -> tuple[TokenizedExample, ...]:
    return tuple(read_examples(folder / "data" / "train.jsonl", folder / "checkpoint", 512).examples)


@pytest.fixture(scope="module")
def tuned(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what tune.json says of an adapter of each kind; they lie in folders of those names."""
    recipes = {kind: replace(RECIPE, kind=kind, alpha=alpha_of(4, kind)) for kind in KINDS}
    return {kind: tune(folder / "checkpoint", folder / "data", folder / kind, recipes[kind]) for kind in KINDS}


def in_four_bits(folder: Path) -> Any:
    """Return the checkpoint as transformers itself loads it in 4 bits, with nothing of ours."""
    options = load_options("cpu", torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)


def in_memory(count: int) -> int:
    """Return the bytes of `count` weights: half of one each, a scale for 64, one of those for 256, and tables."""
    scales = -(-count // 64)
    return count // 2 + scales + 4 * (-(-scales // 256) + 16 + 256 + 1)


def learning(model: Any) -> dict[str, Any]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def test_the_weights_of_the_base_take_four_bits_in_memory(folder: Path) -> None:
    whole: Any = with_adapter(folder / "checkpoint", replace(RECIPE, base_weights="whole"))
    small: Any = with_adapter(folder / "checkpoint", RECIPE)
    assert not four_bit_layers(whole)
    layers = four_bit_layers(small)
    assert len(layers) == LAYERS
    for layer in layers:
        weight = layer.weight
        assert weight.dtype == torch.uint8
        assert weight.numel() * weight.element_size() == layer.in_features * layer.out_features // 2
        assert weight.quant_state.quant_type == NF4
        assert weight.quant_state.nested, "the scales are quantised once more"
        assert weight.quant_state.absmax.dtype == torch.uint8
    saved = base_bytes(whole) - base_bytes(small)
    assert saved == sum(
        4 * each - in_memory(each) for each in (layer.in_features * layer.out_features for layer in layers)
    )
    assert {each.dtype for each in learning(small).values()} == {torch.float32}


def test_the_loss_is_that_of_transformers_on_the_same_four_bits(
    folder: Path, examples: tuple[TokenizedExample, ...]
) -> None:
    loss = choose_loss(with_adapter(folder / "checkpoint", RECIPE), examples, 4)
    assert loss.is_packed
    own = in_four_bits(folder / "checkpoint")
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for example in examples[:4]:
            tokens = torch.tensor([example.tokens])
            shares = own(input_ids=tokens).logits[0].log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[:, 0]
            losses += [-shares[example.answer_at - 1 :]]
        told = float(loss.mean(examples[:4]))
    assert told == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


def test_the_check_before_the_first_step_is_made_in_float32(
    folder: Path, examples: tuple[TokenizedExample, ...]
) -> None:
    model: Any = with_adapter(folder / "checkpoint", replace(RECIPE, precision="bfloat16"))
    seen = set[Any]()
    layers = four_bit_layers(model)

    def look(layer: Any, _: Any) -> None:
        seen.add(layer.compute_dtype)

    hooks = [each.register_forward_pre_hook(look) for each in layers]
    assert choose_loss(model, examples, 4).is_packed
    for hook in hooks:
        hook.remove()
    assert seen == {torch.float32}
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_gradients_go_through_the_four_bits_after_it_was_measured(
    folder: Path, examples: tuple[TokenizedExample, ...]
) -> None:
    """Bitsandbytes lays weights out anew on some processors when asked without gradients, and has none after that."""
    torch.manual_seed(0)
    small: Any = with_adapter(folder / "checkpoint", RECIPE)
    plain: Any = with_adapter(folder / "checkpoint", replace(RECIPE, base_weights="whole"))
    library: Any = import_module("bitsandbytes")
    held = {name: each for name, each in small.named_modules() if each in set(four_bit_layers(small))}
    with torch.no_grad():
        for name, module in plain.named_modules():
            if name in held:
                weight = held[name].weight
                module.weight.copy_(library.functional.dequantize_4bit(weight.data, weight.quant_state))
        for name, each in learning(small).items():
            each.normal_(std=0.1)
            learning(plain)[name].copy_(each)
    gradients: list[dict[str, torch.Tensor]] = []
    for model in (small, plain):
        loss = AnswerLoss(model, is_packed=False)
        assert loss.measure(examples, 4).loss is not None
        loss.mean(examples[:4]).backward()
        gradients.append({name: each.grad for name, each in learning(model).items()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_beside_four_bits(tuned: dict[str, dict[str, Any]], folder: Path, kind: str) -> None:
    document = tuned[kind]
    assert document["eval_loss_after"] < 0.9 * document["eval_loss_before"]
    assert document["recipe"]["base_weights"] == NF4
    assert "| the frozen base while it was tuned | 4 bits, NF4" in (folder / kind / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_goes_onto_the_full_weights(tuned: dict[str, dict[str, Any]], folder: Path, kind: str) -> None:
    checkpoint = open_checkpoint(str(folder / "checkpoint"))
    adapter = open_adapter(folder / kind, checkpoint)
    check_mergeable(adapter)
    if kind != "dora":
        check_shippable(adapter)
    assert "quantization_config" not in json.loads((folder / kind / "adapter_config.json").read_bytes())
    merged = folder / f"merged-{kind}"
    call(merge_folder, what="merge")(base=folder / "checkpoint", adapter=folder / kind, into=merged)
    assert {each.dtype for each in AutoModelForCausalLM.from_pretrained(merged).parameters()} == {torch.float32}
    export_f16(open_checkpoint(str(merged)), folder / f"{kind}.gguf")
    # What was learned beside 4 bits holds beside the weights that they stand for.
    again = tune(
        folder / "checkpoint",
        folder / "data",
        folder / f"again-{kind}",
        replace(RECIPE, base_weights="whole", kind=kind, alpha=alpha_of(4, kind), epochs=0.5),
        start=folder / kind,
    )
    assert again["eval_loss_before"] < 0.95 * tuned[kind]["eval_loss_before"]


# An interruption between opening a file and the block that closes it leaves that to Python, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_run_goes_on_where_it_was(
    folder: Path, tmp_path: Path, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldlm_compiler.learn.tuning.tuning_state import TuningRun

    whole = tune(folder / "checkpoint", folder / "data", tmp_path / "whole", RECIPE)
    kept = TuningRun.keep

    def stop(self: TuningRun, model: Any, optimiser: Any) -> None:
        kept(self, model, optimiser)
        if len(self.losses) == whole["steps"] // 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TuningRun, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(folder / "checkpoint", folder / "data", tmp_path / "stopped", RECIPE, keep_every_s=0.0)
    assert not (tmp_path / "stopped").exists()
    then = tune(folder / "checkpoint", folder / "data", tmp_path / "stopped", RECIPE)
    assert then["losses"] == whole["losses"]
    assert f"going on after step {whole['steps'] // 2}" in logged.text


def test_blocks_cannot_be_learned_beside_four_bits(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--quant-aware rounds the full weights .* and --qlora has none; leave one"):
        tune(folder / "checkpoint", folder / "data", tmp_path / "a", RECIPE, blocks=tmp_path / "base.gguf")


@pytest.mark.parametrize("command", ["tune", "round"])
def test_a_missing_library_is_one_line_before_any_work(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setattr("fieldlm_compiler.learn.tune.prepare", lambda: pytest.fail("it begins to load PyTorch"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    asked = {
        "tune": [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(tmp_path / "a")],
        "round": [str(tmp_path), "--base", "smollm2", "--out", str(tmp_path / "rounds"), "--consent", "yes"],
    }
    assert fieldlm([command, *asked[command], "--qlora"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fieldlm {command}: --qlora needs bitsandbytes; ")


def test_the_command_says_what_the_base_takes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(tmp_path / "a")]
    assert main([*asked, "--qlora", "--rank", "2", "--epochs", "1"]) == 0
    document = json.loads((tmp_path / "a" / "tune.json").read_bytes())
    assert f"the base in 4 bits and {document['base_mb']:g} MB" in capsys.readouterr().out


def test_a_library_that_is_installed_says_nothing_where_it_is_not_asked_for(folder: Path, tmp_path: Path) -> None:
    """PEFT imports it with every adapter, and on some processors it warns of what it would fetch."""
    argv = [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(tmp_path / "a")]
    command = [sys.executable, "-m", "fieldlm", "tune", *argv, "--rank", "2", "--epochs", "1", "--device", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "kernels" not in ran.stderr
    assert all(line.startswith("  ") for line in ran.stderr.splitlines()), ran.stderr
