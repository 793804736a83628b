"""Early stopping: what is held out is asked after every pass, and the best pass is what is kept."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fieldlm_compiler.learn.tokenized import read_examples
from fieldlm_compiler.learn.tune import tune
from fieldlm_compiler.learn.tuning.answer_loss import Measured
from fieldlm_compiler.learn.tuning.early_stopping import EarlyStopping
from fieldlm_compiler.learn.tuning.recipe import TrainingRecipe
from fieldlm_compiler.learn.tuning.tuning_state import TuningRun
from tests.learn.test_answer_loss import BASE, checkpoint_of
from tests.support.tiny_models import write_lines

WORDS = ("tea", "latte", "mocha", "cocoa", "juice", "water")


def line(said: str, right: str, task: Any = "") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": right}], "task": task}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(**BASE))


def recipe(**more: Any) -> TrainingRecipe:
    return TrainingRecipe(rank=8, batch=3, learning_rate=5e-3, precision="float32", device="cpu", **more)


@pytest.mark.parametrize(
    ("passes", "is_over"),
    [
        ([], False),
        ([(0.5, 1.0)], False),
        ([(0.5, 1.0), (0.4, 0.5)], False),
        ([(0.5, 1.0), (0.4, 0.5), (0.4, 0.4)], True),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.8)], False),
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], True),
        ([(0.5, 1.0), (0.4, 0.5), (0.6, 2.0)], False),
        ([(0.5, float("nan")), (0.5, float("nan")), (0.5, float("nan"))], True),
    ],
)
def test_it_is_over_when_no_pass_was_better_for_long_enough(
    passes: list[tuple[float, float]], is_over: bool, checkpoint: Path, tmp_path: Path
) -> None:
    run = TuningRun(tmp_path, {}, 60.0)
    run.passes = [{"steps": 1, "exact_match": exact, "loss": loss} for exact, loss in passes]
    write_lines(tmp_path / "eval.jsonl", [line("a tea", "tea")])
    held_out = read_examples(tmp_path / "eval.jsonl", checkpoint, 512).examples
    assert EarlyStopping(run, held_out, recipe(patience=2), 1).is_over == is_over
    assert not EarlyStopping(run, held_out, recipe(), 1).is_over, "without patience"
    assert not EarlyStopping(run, (), recipe(patience=2), 1).is_over, "with nothing held out"


def test_a_large_task_does_not_hide_a_small_one() -> None:
    found = Measured(loss=1.0, exact={"large": (90, 100), "small": (0, 2)}, preferred=None, log_odds=None)
    assert found.exact_match == pytest.approx(0.45)
    assert Measured(loss=None, exact={}, preferred=None, log_odds=None).exact_match is None


def test_it_ends_when_what_is_held_out_gets_worse_and_the_best_pass_is_what_is_kept(
    checkpoint: Path, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    write_lines(tmp_path / "train.jsonl", [line(f"a {word}", f"order {word}") for word in WORDS])
    # What is trained contradicts it: the longer the worse.
    write_lines(tmp_path / "eval.jsonl", [line(f"a {word}", f"NO {word[::-1]}!") for word in WORDS])
    told = tune(checkpoint, tmp_path, tmp_path / "adapter", recipe(epochs=60, patience=3))
    losses = [each["loss"] for each in told["passes"]]
    assert told["steps"] == 2 * len(losses) < 120
    assert len(losses) - 1 - losses.index(min(losses)) == 3
    assert min(losses) < losses[-1]
    assert told["eval_loss_after"] == pytest.approx(min(losses), abs=1e-3)
    assert "later none was better" in logged.text
    assert json.loads((tmp_path / "adapter" / "tune.json").read_bytes())["recipe"]["patience"] == 3


def test_right_to_the_token_is_what_greedy_decoding_gives(checkpoint: Path, tmp_path: Path) -> None:
    tasks = ("a", "a", "b", "b", 3, "")
    rows = [line(f"a {word}", f"order {word}", task) for word, task in zip(WORDS, tasks, strict=True)]
    for split in ("train", "eval"):
        write_lines(tmp_path / f"{split}.jsonl", rows)
    told = tune(checkpoint, tmp_path, tmp_path / "adapter", recipe(epochs=25))
    assert told["passes"] == [], "nobody asked to look"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        model: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    right: dict[str, list[bool]] = {}
    for example in read_examples(tmp_path / "eval.jsonl", checkpoint, 512).examples:
        said = list(example.tokens[: example.answer_at])
        with torch.no_grad():
            while len(said) < len(example.tokens):
                said.append(int(model(input_ids=torch.tensor([said])).logits[0, -1].argmax()))
        right.setdefault(example.task, []).append(tuple(said) == example.tokens)
    assert told["eval_exact_after"] == {task: (sum(hits), len(hits)) for task, hits in sorted(right.items())}
    assert told["eval_exact_before"] == {"": (0, 1), "3": (0, 1), "a": (0, 2), "b": (0, 2)}
    assert sum(hits for hits, _ in told["eval_exact_after"].values()) > 0, "or this test shows little"
