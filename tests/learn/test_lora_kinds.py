"""LoRA, rsLoRA and DoRA: each learns, says what it is, and is shipped as it can be."""

import json
from pathlib import Path
from typing import Any

import pytest

from fieldlm.cli.main import main as fieldlm
from fieldlm.core.errors import InputError
from fieldlm_compiler.checkpoints.checkpoint import open_checkpoint
from fieldlm_compiler.checkpoints.peft_adapter import check_mergeable, check_shippable, open_adapter
from fieldlm_compiler.learn.tune import TrainingRecipe, main, tune
from fieldlm_compiler.learn.tuning.recipe import alpha_of
from tests.support import tiny_models

KINDS = ("lora", "rslora", "dora")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.to_tune(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def tuned(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what tune.json says of an adapter of each kind; they lie in folders of those names."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        recipe = TrainingRecipe(rank=4, alpha=alpha_of(4, kind), epochs=8, precision="float32", kind=kind)
        found[kind] = tune(folder / "checkpoint", folder / "data", folder / kind, recipe)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_and_says_what_it_is(tuned: dict[str, dict[str, Any]], folder: Path, kind: str) -> None:
    document = tuned[kind]
    assert document["eval_loss_after"] < document["eval_loss_before"]
    config = json.loads((folder / kind / "adapter_config.json").read_bytes())
    assert (config["use_rslora"], config["use_dora"]) == (kind == "rslora", kind == "dora")
    # What was tuned before there was a choice is the same recipe.
    assert document["recipe"].get("kind", "lora") == kind
    assert ("kind" in document["recipe"]) is (kind != "lora")


def test_what_no_adapter_file_can_carry_is_merged(tuned: dict[str, dict[str, Any]], folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder / "checkpoint"))
    for kind in tuned:
        adapter = open_adapter(folder / kind, checkpoint)
        check_mergeable(adapter)
        if kind == "dora":
            with pytest.raises(InputError, match="uses DoRA, which no GGUF adapter can carry; use --merge"):
                check_shippable(adapter)
        else:
            check_shippable(adapter)


def test_one_goes_on_from_its_own_kind_alone(tuned: dict[str, dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    asked = [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(tmp_path / "next")]
    # Of this rank both have the alpha 8.
    assert alpha_of(4, "lora") == alpha_of(4, "rslora") == 8
    with pytest.raises(InputError, match="is of kind rslora, asked for is lora; go on with --lora rslora"):
        main([*asked, "--rank", "4", "--from", str(folder / "rslora")])
    assert main([*asked, "--rank", "4", "--lora", "rslora", "--from", str(folder / "rslora"), "--epochs", "1"]) == 0


def test_the_scale_of_rslora_is_that_of_lora_at_the_usual_rank() -> None:
    usual = TrainingRecipe().rank
    assert alpha_of(usual, "rslora") / usual**0.5 == alpha_of(usual, "lora") / usual == 2


def test_a_round_ships_adapters_and_takes_none_that_must_be_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["round", str(tmp_path / "store"), "--base", "smollm2", "--out", str(tmp_path / "rounds")]
    assert fieldlm([*asked, "--consent", "yes", "--lora", "dora"]) == 2
    assert "DoRA can only be merged: --lora lora or rslora" in capsys.readouterr().err
