"""A sweep tunes each combination of values as it would be tuned alone, and keeps the best on what is held out."""

import json
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm_compiler.learn import tune
from fieldlm_compiler.learn.tune import TrainingRecipe, main
from fieldlm_compiler.learn.tuning.recipe import add_recipe, recipe_of
from fieldlm_compiler.learn.tuning.sweep import MOST, recipes, sweep, swept
from tests.support import tiny_models

USUAL = TrainingRecipe()


def test_every_combination_is_tried_and_alpha_follows_the_rank() -> None:
    found = recipes(USUAL, [swept("rank=8,32"), swept("learning-rate=1e-3,3e-4,1e-3")])
    assert [(each.rank, each.alpha, each.learning_rate) for each in found] == [
        (8, 16, 1e-3), (8, 16, 3e-4), (32, 64, 1e-3), (32, 64, 3e-4)
    ]  # fmt: skip
    assert {each.epochs for each in found} == {USUAL.epochs}
    assert recipes(USUAL, []) == [USUAL]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rank", "rank"),
        ("rank=", "whole number"),
        ("rank=8,many", "'many'; want a whole number"),
        ("ranks=8", "did you mean 'rank'"),
        ("precision=float32", "names: rank, epochs, batch, learning-rate, seed"),
        ("epochs=0", "more than 0"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_what_can(text: str, why: str) -> None:
    with pytest.raises(ArgumentTypeError, match=why):
        swept(text)


def test_a_name_twice_and_too_many_adapters_are_refused() -> None:
    with pytest.raises(InputError, match="--sweep rank is there twice"):
        recipes(USUAL, [swept("rank=8"), swept("rank=16")])
    seeds = ",".join(map(str, range(MOST + 1)))
    with pytest.raises(InputError, match=f"asks for {MOST + 1} adapters, {MOST} are the most"):
        recipes(USUAL, [swept(f"seed={seeds}")])


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed 12345678", "--seed 12345679"],
        ["--rank 8", "--rank 16"],
        ["--learning-rate 0.00123456", "--learning-rate 0.001234561"],
        ["--epochs 2", "--epochs 2.5"],
        ["--learning-rate 1e-05", "--learning-rate 0.0003"],
    ],
)
def test_each_recipe_is_called_by_flags_that_make_it(flags: list[str], tmp_path: Path) -> None:
    name = flags[0].split()[0].removeprefix("--")
    tried = recipes(USUAL, [swept(f"{name}={','.join(flag.split()[1] for flag in flags)}")])

    def make(recipe: TrainingRecipe, out: Path) -> dict[str, Any]:
        out.mkdir()
        return FOUND[8]

    document = sweep(tried, tmp_path / "adapter", make)
    assert [each["recipe"] for each in document["sweep"]["trials"]] == flags


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--rank 16", "rank=8,32"),
        ("--epochs 2", "epochs=1,2"),
        ("--batch 4", "batch=8"),
        ("--learning-rate 0.001", "learning-rate=0.01,0.001"),
        ("--seed 0", "seed=0,1"),
    ],
)
def test_a_flag_beside_a_sweep_of_it_is_refused(flag: str, values: str, tmp_path: Path) -> None:
    asked = [str(tmp_path), "--dataset", str(tmp_path), "--out", str(tmp_path / "adapter"), *flag.split()]
    with pytest.raises(InputError, match=f"^{flag} does nothing beside --sweep {values}; leave one of them out"):
        main([*asked, "--sweep", values])


def test_without_a_flag_its_value_is_the_recipes_and_the_help_says_it() -> None:
    parser = terminal.parser("tune", "Tune.")
    add_recipe(parser)
    assert recipe_of(parser.parse_args([])) == USUAL
    given = recipe_of(parser.parse_args(["--rank=8", "--epochs=3", "--batch=4", "--learning-rate=1e-4", "--seed=5"]))
    assert given == TrainingRecipe(rank=8, alpha=16, epochs=3, batch=4, learning_rate=1e-4, seed=5)
    told = " ".join(parser.format_help().split())
    for words in ("rank (default: 16)", "(default: 2.0)", "step (default: 8)", "(default: 0.001)", "(default: 0)"):
        assert words in told


FOUND: dict[int, dict[str, Any]] = {
    4: {"eval_exact_after": {"a": (9, 10), "b": (0, 10)}, "eval_loss_after": 0.1, "seconds": 1.0},
    8: {"eval_exact_after": {"a": (6, 10), "b": (6, 10)}, "eval_loss_after": 0.4, "seconds": 2.0},
    16: {"eval_exact_after": {"a": (5, 10), "b": (7, 10)}, "eval_loss_after": 0.3, "seconds": 3.0},
    32: {"eval_exact_after": {"a": (5, 10), "b": (7, 10)}, "eval_loss_after": 0.3, "seconds": 4.0},
}


def fake(recipe: TrainingRecipe, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True)
    (out / "weights").write_text(str(recipe.rank))
    return FOUND[recipe.rank]


def test_the_best_over_tasks_is_kept_of_equals_the_one_of_less_loss_and_then_the_first(tmp_path: Path) -> None:
    document = sweep(recipes(USUAL, [swept("rank=4,8,16,32")]), tmp_path / "adapter", fake)
    assert (tmp_path / "adapter" / "weights").read_text() == "16"
    assert [each["is_taken"] for each in document["sweep"]["trials"]] == [False, False, True, False]
    assert [each["recipe"] for each in document["sweep"]["trials"]] == [f"--rank {rank}" for rank in (4, 8, 16, 32)]
    assert json.loads((tmp_path / "adapter" / "tune.json").read_bytes())["sweep"]["trials"][1]["exact_match"] == 0.6
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "nothing is left beside"


def test_one_that_was_stopped_goes_on_with_those_that_are_missing(tmp_path: Path) -> None:
    tried = recipes(USUAL, [swept("rank=4,8")])
    made: list[int] = []

    def make(recipe: TrainingRecipe, out: Path) -> dict[str, Any]:
        if out.exists():  # what `fieldlm tune` does with an adapter that is there
            return FOUND[recipe.rank]
        if made == [4]:
            made.append(0)
            raise KeyboardInterrupt
        made.append(recipe.rank)
        return fake(recipe, out)

    with pytest.raises(KeyboardInterrupt):
        sweep(tried, tmp_path / "adapter", make)
    assert not (tmp_path / "adapter").exists()
    sweep(tried, tmp_path / "adapter", make)
    assert made == [4, 0, 8]
    assert (tmp_path / "adapter" / "weights").read_text() == "8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.to_tune(tmp_path_factory.mktemp("sweep"))


def command(folder: Path, out: str, *more: str) -> list[str]:
    asked = [str(folder / "checkpoint"), "--dataset", str(folder / "data"), "--out", str(folder / out)]
    return [*asked, "--precision", "float32", "--epochs", "8", *more]


def test_what_learns_is_taken_and_asked_again_it_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = command(folder, "adapter", "--sweep", "learning-rate=1e-9,1e-2", "--json")
    assert main(asked) == 0
    document = json.loads(capsys.readouterr().out)
    first, second = document["sweep"]["trials"]
    assert (first["is_taken"], second["is_taken"]) == (False, True)
    assert second["loss"] < first["loss"]
    assert document["recipe"]["learning_rate"] == 1e-2
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out) == document
    assert main(command(folder, "adapter", "--learning-rate", "1e-2")) == 0
    assert "holds this adapter already" in capsys.readouterr().out
    read: list[Path] = []

    def base_sha256(checkpoint: Path) -> str:
        read.append(checkpoint)
        return weights_sha256(checkpoint)

    def stopped(*_: Any, **__: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    weights_sha256 = tune._base_sha256  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(tune, "_base_sha256", base_sha256)
    monkeypatch.setattr(tune, "tune", stopped)
    assert main(asked) == 0
    assert len(read) == 1, "the weights are read once, whichever recipe was taken"
    for more in (["--sweep", "learning-rate=1e-9,1e-2,1e-1"], ["--learning-rate", "2e-2"]):
        with pytest.raises(KeyboardInterrupt):
            main(command(folder, "adapter", *more))
    assert len(read) == 1, "what tune.json knows to be another is not compared"


TOO_LONG = {"messages": [{"role": "user", "content": "tea " * 300}, {"role": "assistant", "content": "yes"}]}
NO_ANSWER = {"messages": [{"role": "user", "content": "tea"}]}


@pytest.mark.parametrize(
    ("held_out", "why"),
    [
        ([], r"eval\.jsonl has no examples, so --sweep cannot say"),
        ([TOO_LONG, TOO_LONG], r"eval\.jsonl holds no example for this model: 2 too long .*--max-tokens"),
        ([NO_ANSWER], r"line 1 of .*eval\.jsonl is no conversation with its answer at the end"),
        (None, r"eval\.jsonl does not exist"),
    ],
)
def test_where_nothing_is_held_out_nothing_is_tuned(
    held_out: list[Any] | None, why: str, folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_bytes((folder / "data" / "train.jsonl").read_bytes())
    if held_out is not None:
        tiny_models.write_lines(data / "eval.jsonl", held_out)
    asked = [str(folder / "checkpoint"), "--dataset", str(data), "--out", str(tmp_path / "other")]
    with pytest.raises(InputError, match=why):
        main([*asked, "--sweep", "rank=2,4", "--max-tokens", "64"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "nothing is begun"
