"""Preference tuning: the loss is ORPO's, whatever lays the rows, and what a person rejected gets less likely by it."""

import json
import os
import signal
import threading
import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from fieldlm.core import terminal
from fieldlm.engines.hf_tokenizer import HfTokenizer
from fieldlm_compiler.learn.tokenized import TokenizedExample, read_examples
from fieldlm_compiler.learn.tune import main, tune
from fieldlm_compiler.learn.tuning.adapted_model import with_adapter
from fieldlm_compiler.learn.tuning.answer_loss import AnswerLoss, choose_loss
from fieldlm_compiler.learn.tuning.lora_product import join_products
from fieldlm_compiler.learn.tuning.preference_loss import LEAST, log_odds_ratio, preference_loss
from fieldlm_compiler.learn.tuning.recipe import PREFERENCE_WEIGHT, TrainingRecipe, add_recipe, recipe_of
from tests.learn.test_answer_loss import BASE, FAMILIES, checkpoint_of
from tests.support.tiny_models import smollm2, teach, write_lines
from tests.support.waiting import wait_until

WEIGHT = 0.7
DRINKS = ("tea", "latte", "mocha", "cocoa", "juice", "water")


def line(said: str, right: str, rejected: Any = None) -> dict[str, Any]:
    roles = (("system", "answer in one word"), ("user", said), ("assistant", right))
    made: dict[str, Any] = {"messages": [{"role": role, "content": content} for role, content in roles]}
    return made | ({"rejected": {"role": "assistant", "content": rejected}} if isinstance(rejected, str) else {})


LINES = [
    *(line(f"a {drink}, please", f"order {drink}", f"sell {drink} now") for drink in DRINKS[:4]),
    *(line(f"a {drink}, please", f"order {drink}") for drink in DRINKS[4:]),
]
"""Six examples, of which four have a rejected answer."""


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    """With more, sums come out in another order now and then, and beside busy neighbours they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(**BASE))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "eval"):
        write_lines(tmp_path / f"{split}.jsonl", LINES)
    return tmp_path


def pairs_of(folder: Path, checkpoint: Path) -> tuple[TokenizedExample, ...]:
    return read_examples(folder / "train.jsonl", checkpoint, 512, in_pairs=True).examples


def log_p(model: Any, tokens: Sequence[int], answer_at: int) -> torch.Tensor:
    """Return the log-probability of each token of an answer, as transformers computes it."""
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, answer_at - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(tokens[answer_at:])[:, None])[:, 0]


def plain_loss(model: Any, examples: Sequence[TokenizedExample]) -> torch.Tensor:
    """ORPO as trl spells it: the chosen answers' cross-entropy less weight × log σ of the log odds ratio."""
    chosen = [log_p(model, each.tokens, each.answer_at) for each in examples]
    ratios: list[torch.Tensor] = []
    for each, right in zip(examples, chosen, strict=True):
        if each.rejected:
            yes, no = right.mean(), log_p(model, each.rejected, each.answer_at).mean()
            log_odds = (yes - no) - (torch.log1p(-torch.exp(yes)) - torch.log1p(-torch.exp(no)))
            ratios.append(logsigmoid(log_odds))
    return -torch.cat(chosen).mean() - WEIGHT * torch.stack(ratios).sum() / len(examples)


def plain_model(folder: Path, recipe: TrainingRecipe) -> Any:
    """PEFT's own model, without anything of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(base, config)


def gradient(model: Any) -> torch.Tensor:
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return torch.cat([grad.flatten() for _, grad in sorted(found.items()) if grad is not None])


def hold_against_plain(folder: Path, examples: Sequence[TokenizedExample], *, rank: int = 4) -> bool:
    """Hold loss and gradient to those of transformers and PEFT; return whether ours were packed."""
    recipe = TrainingRecipe(rank=rank, alpha=2 * rank, precision="float32", device="cpu")
    ours: Any = with_adapter(folder, recipe)
    join_products(ours)
    torch.manual_seed(1)
    for parameter in ours.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    plain = plain_model(folder, recipe)
    set_peft_model_state_dict(plain, get_peft_model_state_dict(ours))
    loss = choose_loss(ours, examples, len(examples))

    found, worst = loss.mean_and_worst(examples, WEIGHT)
    found.backward()
    wanted = plain_loss(plain.eval(), examples)
    wanted.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    scale = float(gradient(plain).abs().max())
    torch.testing.assert_close(gradient(ours) / scale, gradient(plain) / scale, rtol=1e-3, atol=1e-4)
    assert len(gradient(ours)) == sum(p.numel() for p in plain.parameters() if p.requires_grad)
    assert worst == pytest.approx(loss.mean_and_worst(examples)[1], rel=1e-3), "of the right answers alone"
    return loss.is_packed


@pytest.mark.parametrize("family", ["llama", "mistral, window", "gemma 2, soft caps", "lfm 2, convolution"])
def test_loss_and_gradient_are_those_of_transformers_and_peft(family: str, tmp_path: Path) -> None:
    kind, more, is_packed = FAMILIES[family]
    folder = checkpoint_of(tmp_path, getattr(transformers, kind)(**{**BASE, **more}))
    write_lines(tmp_path / "train.jsonl", LINES)
    assert hold_against_plain(folder, pairs_of(tmp_path, folder)) == is_packed


def test_of_the_real_small_model_as_well(tmp_path: Path) -> None:
    folder = smollm2().folder
    write_lines(tmp_path / "train.jsonl", LINES[2:5])
    assert hold_against_plain(folder, pairs_of(tmp_path, folder), rank=2)


def test_without_pairs_it_is_the_plain_loss(checkpoint: Path, data: Path) -> None:
    model: Any = with_adapter(checkpoint, TrainingRecipe(precision="float32", device="cpu"))
    loss = AnswerLoss(model, is_packed=False)
    alone = [replace(each, rejected=()) for each in pairs_of(data, checkpoint)]
    with torch.no_grad():
        assert float(loss.mean_and_worst(alone, WEIGHT)[0]) == pytest.approx(float(loss.mean(alone)), rel=1e-5)


def test_a_pair_counts_alike_in_whichever_step_it_comes(checkpoint: Path, data: Path) -> None:
    model: Any = with_adapter(checkpoint, TrainingRecipe(precision="float32", device="cpu"))
    loss = choose_loss(model, examples := pairs_of(data, checkpoint), 8)
    pair, *others = examples

    def added(batch: Sequence[TokenizedExample]) -> float:
        with torch.no_grad():
            return float(loss.mean_and_worst(batch, WEIGHT)[0] - loss.mean_and_worst(batch)[0]) * len(batch)

    alone = [replace(each, rejected=()) for each in others[:3]]
    assert added([pair, *alone]) == pytest.approx(added([pair]), rel=1e-2)


def test_in_bfloat16_it_is_the_same_within_its_rounding(checkpoint: Path, data: Path) -> None:
    found: dict[str, torch.Tensor] = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model: Any = with_adapter(checkpoint, TrainingRecipe(precision=precision, device="cpu"))
        loss = choose_loss(model, examples := pairs_of(data, checkpoint), 8)
        mean, _ = loss.mean_and_worst(examples, WEIGHT)
        mean.backward()
        found[precision] = mean.detach()
        assert gradient(model).isfinite().all()
        assert gradient(model).any()
    assert float(found["bfloat16"]) == pytest.approx(float(found["float32"]), rel=0.1)


@pytest.mark.parametrize("losses", [(0.0, 0.0), (0.0, 1e4), (1e4, 0.0), (1e4, 1e4), (1e-9, 1e-9)])
def test_what_is_certain_or_impossible_has_a_finite_loss_and_gradient(losses: tuple[float, float]) -> None:
    chosen, rejected = (torch.full((3,), each, requires_grad=True) for each in losses)
    found = preference_loss([chosen], [rejected])
    found.sum().backward()
    for tensor in (found, chosen.grad, rejected.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


def test_the_log_odds_ratio_is_what_its_name_says() -> None:
    chosen, rejected = torch.tensor([0.2, 0.6]), torch.tensor([1.0])
    p, q = torch.exp(torch.tensor(-0.4)), torch.exp(torch.tensor(-1.0))
    wanted = torch.log(p / (1 - p)) - torch.log(q / (1 - q))
    torch.testing.assert_close(log_odds_ratio([chosen], [rejected]), wanted[None])
    assert LEAST > 0


def log_ratio(checkpoint: Path, adapter: Path, examples: Sequence[TokenizedExample]) -> float:
    """Return the mean of log P(chosen) − log P(rejected) with an adapter, as PEFT loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        model: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    pairs = [each for each in examples if each.rejected]
    with torch.no_grad():
        apart = [
            float(log_p(model, each.tokens, each.answer_at).sum() - log_p(model, each.rejected, each.answer_at).sum())
            for each in pairs
        ]
    return sum(apart) / len(apart)


def test_it_sets_right_and_rejected_answers_further_apart_than_plain_tuning_in_the_same_steps(
    data: Path, tmp_path: Path
) -> None:
    sure = checkpoint_of(tmp_path / "sure", transformers.LlamaConfig(**BASE))
    wrong = [{"messages": [*row["messages"][:-1], row["rejected"]]} for row in LINES if "rejected" in row]
    teach(sure, wrong, steps=80)
    plain = TrainingRecipe(rank=8, epochs=20, batch=3, learning_rate=2e-3, precision="float32", device="cpu")
    without = tune(sure, data, data / "without", plain)
    with_pairs = tune(sure, data, data / "with", replace(plain, preference_weight=PREFERENCE_WEIGHT))
    assert with_pairs["steps"] == without["steps"]
    assert without["preferences"] is None
    examples = pairs_of(data, sure)
    apart = {name: log_ratio(sure, data / name, examples) for name in ("without", "with")}
    assert apart["with"] > apart["without"] + 1.0, apart
    found = with_pairs["preferences"]
    assert found["pairs"] == {"train": 4, "eval": 4}
    assert (found["eval_preferred_before"], found["eval_preferred_after"]) == (0.0, 1.0)
    assert found["eval_log_odds_before"] < 0 < found["eval_log_odds_after"]
    assert with_pairs["eval_loss_after"] < with_pairs["eval_loss_before"], "and the right answers are learned"


def test_one_odd_rejected_answer_stops_nothing_and_costs_its_example_nothing(
    checkpoint: Path, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    odd: list[Any] = [
        "", {"role": "user", "content": "hm"}, {"content": 5}, ["sell"], 7, {"tool_calls": ["x"]},
        "order tea", "very long " * 60, "fine, as text",
    ]  # fmt: skip
    rows = [line("a tea, please", "order tea") | {"rejected": each} for each in odd]
    for split in ("train", "eval"):
        write_lines(tmp_path / f"{split}.jsonl", rows)
    recipe = TrainingRecipe(epochs=1, max_tokens=300, precision="float32", device="cpu", preference_weight=0.25)
    told = tune(checkpoint, tmp_path, tmp_path / "adapter", recipe)
    assert told["examples"] == len(rows)
    assert told["dropped"] == {"train": {}, "eval": {}}
    assert told["preferences"]["pairs"]["train"] == 1
    assert told["preferences"]["dropped"]["train"] == {"same as the right one": 1, "too long": 1, "unreadable": 5}
    assert "train.jsonl: of the rejected answers 1 same as the right one (line 7)" in logged.text


def test_calls_are_rejected_as_a_model_writes_them(checkpoint: Path, tmp_path: Path) -> None:
    call = [{"type": "function", "function": {"name": "goto", "arguments": {"place": "door"}}}]
    row = line("to the window", "I go") | {"rejected": {"role": "assistant", "content": None, "tool_calls": call}}
    write_lines(tmp_path / "train.jsonl", [row])
    (found,) = pairs_of(tmp_path, checkpoint)
    answer = HfTokenizer(checkpoint / "tokenizer.json").decode(list(found.rejected[found.answer_at :]))
    assert ("goto" in answer, "door" in answer, "None" in answer) == (True, True, False)
    assert found.rejected[: found.answer_at] == found.tokens[: found.answer_at]
    (alone,) = read_examples(tmp_path / "train.jsonl", checkpoint, 512).examples
    assert alone.rejected == (), "not read where nobody asks for it"


# An interruption between opening a file and the block that closes it leaves that to Python, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("patience", [0, 200])
def test_an_interrupted_run_ends_as_if_nothing_had_been(
    checkpoint: Path, data: Path, logged: pytest.LogCaptureFixture, patience: int
) -> None:
    recipe = TrainingRecipe(
        rank=4, epochs=30, batch=4, precision="float32", device="cpu", preference_weight=0.25, patience=patience
    )
    whole = tune(checkpoint, data, data / "whole", recipe)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def press() -> None:
        wait_until(lambda: list(data.glob(".stopped.tuning/*.pt")))
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            tune(checkpoint, data, data / "stopped", recipe, keep_every_s=0.0)
    finally:
        presser.join()
        signal.signal(signal.SIGUSR1, before)
    again = tune(checkpoint, data, data / "stopped", recipe)
    assert "going on after step" in logged.text
    assert again["losses"] == whole["losses"]
    assert again["preferences"] == whole["preferences"]
    assert again["passes"] == whole["passes"]
    assert bool(whole["passes"]) == bool(patience)


def test_the_command_says_what_was_preferred_and_so_does_the_adapters_card(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(checkpoint), "--dataset", str(data), "--out", str(data / "adapter"), "--epochs", "1"]
    assert main([*asked, "--precision", "float32", "--preferences"]) == 0
    said = capsys.readouterr().out
    assert "4 corrections held against what was said before: of 4 held out" in said
    told = json.loads((data / "adapter" / "tune.json").read_bytes())
    assert told["recipe"]["preference_weight"] == told["preferences"]["weight"] == PREFERENCE_WEIGHT
    card = (data / "adapter" / "README.md").read_text()
    assert card.startswith("---\n")
    assert f"| preferences | ORPO (arXiv:2403.07691), weight {PREFERENCE_WEIGHT:g}, 4 pairs |" in card
    assert "More Information Needed" not in card
    assert main([*asked[:-3], str(data / "plain"), "--epochs", "1", "--precision", "float32"]) == 0
    assert "held against" not in capsys.readouterr().out
    assert "none: trained on right answers alone" in (data / "plain" / "README.md").read_text()
    assert "preference_weight" not in json.loads((data / "plain" / "tune.json").read_bytes())["recipe"]


def test_where_nothing_is_rejected_it_says_so_and_tunes(
    checkpoint: Path, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "eval"):
        write_lines(tmp_path / f"{split}.jsonl", LINES[4:])
    recipe = TrainingRecipe(epochs=1, precision="float32", device="cpu", preference_weight=0.25)
    told = tune(checkpoint, tmp_path, tmp_path / "adapter", recipe)
    assert "has no rejected answer, so there is nothing to prefer" in logged.text
    assert told["preferences"]["pairs"] == {"train": 0, "eval": 0}
    assert told["preferences"]["eval_preferred_after"] is None


def test_the_flag_sets_the_weight() -> None:
    parser = terminal.parser("tune", "Tune.")
    add_recipe(parser)
    weights = [recipe_of(parser.parse_args(flags)).preference_weight for flags in ([], ["--preferences"])]
    assert weights == [0.0, PREFERENCE_WEIGHT]
