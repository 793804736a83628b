import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from fieldlm.core.errors import InputError, MissingDependencyError
from fieldlm_compiler.learn.tokenized import TokenizedExample, read_examples
from fieldlm_compiler.learn.tune import TrainingRecipe, main, tune
from fieldlm_compiler.learn.tuning import tuning_state
from fieldlm_compiler.learn.tuning.adapted_model import with_adapter
from fieldlm_compiler.learn.tuning.answer_loss import AnswerLoss
from fieldlm_compiler.learn.tuning.lessons import Lessons
from fieldlm_compiler.learn.tuning.packing import ATTENTION_OF_ROWS, pack
from fieldlm_compiler.learn.tuning.tuning_state import ThreadChoice
from tests.support.checkpoints import VOCABULARY, save_bytes_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama with a byte-level vocabulary."""
    folder = tmp_path_factory.mktemp("tiny")
    save_bytes_tokenizer(folder, TEMPLATE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    def row(word: str) -> dict[str, list[dict[str, str]]]:
        said = (("system", "count"), ("user", word), ("assistant", str(len(word))))
        return {"messages": [{"role": role, "content": content} for role, content in said]}

    rows = [row(word) for word in ("tea", "latte", "mocha", "espresso", "cake", "pie", "juice", "water")]
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return tmp_path


def test_one_packed_row_has_the_loss_and_the_gradients_of_separate_rows(checkpoint: Path, dataset: Path) -> None:
    examples = read_examples(dataset / "train.jsonl", checkpoint, 512).examples
    torch.manual_seed(1)
    model: Any = with_adapter(checkpoint, TrainingRecipe(rank=4, targets=("q_proj", "down_proj"), precision="float32"))
    model.get_base_model().set_attn_implementation(ATTENTION_OF_ROWS)
    packed = AnswerLoss(model, is_packed=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)

    def step(groups: list[list[TokenizedExample]]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        count = sum(len(e.tokens) - e.answer_at for e in examples)
        total = 0.0
        for group in groups:
            logits, targets = packed.logits(group)
            loss = cross_entropy(logits, targets, reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    loss_packed, gradient_packed = step([[*examples]])
    loss_apart, gradient_apart = step([[example] for example in examples])
    assert loss_packed == pytest.approx(loss_apart, rel=1e-5)
    torch.testing.assert_close(gradient_packed, gradient_apart, rtol=1e-3, atol=1e-6)


def test_the_loss_counts_answers_only(checkpoint: Path, dataset: Path) -> None:
    examples = read_examples(dataset / "train.jsonl", checkpoint, 512).examples
    row = pack(examples)
    assert bytes(row.targets.tolist()[:4]) != b""
    assert len(row.targets) == sum(len(e.tokens) - e.answer_at for e in examples)
    assert row.tokens.shape[1] < sum(len(e.tokens) for e in examples), "the common beginning is laid once"


def test_tuning_lowers_the_loss_and_leaves_a_peft_folder(checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = TrainingRecipe(rank=8, epochs=30, batch=4, learning_rate=3e-2, precision="float32")
    document = tune(checkpoint, dataset, tmp_path / "adapter", recipe)
    assert document["eval_loss_after"] < 0.7 * document["eval_loss_before"]
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tune.json",
    }


def test_tuning_goes_on_where_an_adapter_ended(checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = TrainingRecipe(rank=8, alpha=16, epochs=10, batch=4, learning_rate=3e-2, precision="float32")
    first = tune(checkpoint, dataset, tmp_path / "first", recipe)
    then = tune(checkpoint, dataset, tmp_path / "then", recipe, start=tmp_path / "first")
    assert then["eval_loss_before"] == first["eval_loss_after"] < first["eval_loss_before"]
    assert (first["start_sha256"], len(then["start_sha256"])) == ("", 64)
    with pytest.raises(InputError, match="has rank 8 and alpha 16, asked for are 4 and 8"):
        tune(checkpoint, dataset, tmp_path / "other", replace(recipe, rank=4, alpha=8), start=tmp_path / "first")
    fewer = replace(recipe, targets=("q_proj",))
    with pytest.raises(InputError, match="which this model or recipe does not"):
        tune(checkpoint, dataset, tmp_path / "other", fewer, start=tmp_path / "first")
    assert not (tmp_path / "other").exists()


def test_the_same_seed_gives_the_same_losses(checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = TrainingRecipe(rank=4, epochs=2, batch=4, precision="float32")
    losses = [tune(checkpoint, dataset, tmp_path / name, recipe)["losses"] for name in ("a", "b")]
    assert losses[0] == losses[1]


def test_later_passes_leave_out_what_was_known() -> None:
    lessons = Lessons(6, TrainingRecipe(batch=2, known=0.1))
    first = [lessons.take() for _ in range(3)]
    assert sorted(chain(*first)) == [0, 1, 2, 3, 4, 5]
    for taken in first:
        lessons.saw(taken, [0.5 if each in (1, 4) else 0.05 for each in taken])
    assert sorted(lessons.take()) == [1, 4]
    lessons.saw([1, 4], [0.05, 0.05])
    assert sorted(chain(*(lessons.take() for _ in range(3)))) == [0, 1, 2, 3, 4, 5], "all again where all are known"


def test_without_that_every_pass_has_every_example() -> None:
    lessons = Lessons(4, TrainingRecipe(batch=4))
    for _ in range(3):
        taken = lessons.take()
        assert sorted(taken) == [0, 1, 2, 3]
        lessons.saw(taken, [0.0] * 4)


# An interruption between opening a file and the block that closes it leaves that to Python, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("known", [0.0, 0.5])
def test_an_interrupted_run_goes_on_where_it_was_and_ends_as_if_nothing_had_been(
    checkpoint: Path, dataset: Path, tmp_path: Path, logged: pytest.LogCaptureFixture, known: float
) -> None:
    recipe = TrainingRecipe(rank=4, epochs=100, batch=4, precision="float32", known=known)
    whole = tune(checkpoint, dataset, tmp_path / "whole", recipe)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, whole["seconds"] / 2)
    try:
        with pytest.raises(KeyboardInterrupt):
            tune(checkpoint, dataset, tmp_path / "stopped", recipe, keep_every_s=0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not (tmp_path / "stopped").exists()
    assert tune(checkpoint, dataset, tmp_path / "stopped", recipe)["losses"] == whole["losses"]
    assert "going on after step" in logged.text
    assert not list(tmp_path.glob(".stopped*")), "what it took to go on is gone when it is done"


def test_an_adapter_that_is_finished_is_not_tuned_again(
    checkpoint: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapter"
    command = [str(checkpoint), "--dataset", str(dataset), "--out", str(out), "--rank", "2", "--epochs", "1"]
    assert main(command) == 0
    mark = out / "mark"  # a folder that is written anew has none
    mark.touch()
    capsys.readouterr()
    assert main(command) == 0
    assert f"{out} holds this adapter already" in capsys.readouterr().out
    assert mark.exists()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "tune.json").read_bytes())
    # Of another recipe, or of other data, it is another adapter.
    assert main([*command, "--batch", "2"]) == 0
    assert not mark.exists()
    mark.touch()
    rows = (dataset / "eval.jsonl").read_text().splitlines()
    (dataset / "eval.jsonl").write_text("\n".join(rows[1:]) + "\n")
    assert main([*command, "--batch", "2"]) == 0
    assert not mark.exists()


def test_threads_are_as_many_as_are_faster_now_and_that_is_looked_at_again() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        choice = ThreadChoice(look_s=3600.0)
        used: list[int] = []
        with choice.restored():
            for _ in range(2):
                with choice.step(1) as count:
                    used.append(count)
            assert used == [1, 2], "each is tried once"
            for slower, wanted in ((2, 1), (1, 2)):
                choice.took(slower, 2.0)
                choice.took(3 - slower, 1.0)
                with choice.step(1) as count:
                    assert count == wanted == torch.get_num_threads()
            eager = ThreadChoice(look_s=0.0)
            for count, seconds in ((1, 1.0), (2, 2.0)):
                eager.took(count, seconds)
            with eager.step(1) as count:
                assert count == 2, "the slower one is tried again"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_looks_that_find_far_slower_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(tuning_state.time, "monotonic", lambda: now_s)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        choice = ThreadChoice(look_s=10.0)
        looked_s: list[float] = []
        with choice.restored():
            while now_s < 600:
                with choice.step(1) as count:
                    now_s += 5.0 if count == 2 else 1.0
                looked_s += [now_s] if count == 2 else []
        between_s = [later - earlier for earlier, later in pairwise(looked_s)]
        assert between_s == sorted(between_s)
        assert between_s[0] < between_s[1] < between_s[-2] == between_s[-1]
        choice.took(2, 1.1)
        assert choice._look_s == 10.0, "one that is near is looked at as often as ever"  # pyright: ignore[reportPrivateUsage]
    finally:
        torch.set_num_threads(before)


def test_measuring_takes_as_many_threads_as_are_faster(checkpoint: Path, dataset: Path) -> None:
    """Beside a busy neighbour two threads are several times slower than one, there as in a step of the training."""
    examples = read_examples(dataset / "train.jsonl", checkpoint, 512).examples
    model: Any = with_adapter(checkpoint, TrainingRecipe(rank=4, precision="float32"))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    used: list[int] = []

    class Watched(AnswerLoss):
        def logits(self, examples: Sequence[TokenizedExample]) -> tuple[torch.Tensor, torch.Tensor]:
            used.append(torch.get_num_threads())
            return super().logits(examples)

    try:
        loss = Watched(model, is_packed=False, measuring=ThreadChoice(look_s=3600.0))
        loss.measure(examples[:2], 1)
        assert used == [1, 2], "each is tried once"
        loss.measuring.took(1, 1.0)
        loss.measuring.took(2, 5.0)
        loss.measure(examples[:2], 1)
        assert used[2:] == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_evaluating_nothing_gives_nothing() -> None:
    assert AnswerLoss(None, is_packed=True).evaluate([], 4) is None


def test_a_missing_dataset_says_how_to_make_one(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fieldlm dataset"):
        read_examples(tmp_path / "train.jsonl", checkpoint, 512)


def test_a_folder_that_is_no_checkpoint_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere has no tokenizer\.json"):
        read_examples(dataset / "train.jsonl", tmp_path / "nowhere", 512)


def test_a_row_moves_whole(checkpoint: Path, dataset: Path) -> None:
    row = pack(read_examples(dataset / "train.jsonl", checkpoint, 512).examples, "meta")
    held = [value for value in vars(row).values() if isinstance(value, torch.Tensor)]
    assert len(held) == 7
    assert {tensor.device.type for tensor in held} == {"meta"}


def test_a_gpu_that_pytorch_does_not_see_is_said(
    checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(MissingDependencyError, match=r"--device cuda: PyTorch .* or take --device cpu"):
        tune(checkpoint, dataset, tmp_path / "adapter", TrainingRecipe(device="cuda"))
