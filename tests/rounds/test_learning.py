"""How a round tunes: from the last adapter, afresh, or whichever is better; and once for the same inputs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.learn.quality.held_out import HeldOutFrom
from fieldlm_compiler.learn.tune import tune
from fieldlm_compiler.learn.tuning.recipe import PREFERENCE_WEIGHT, TrainingRecipe
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.rounds import command, learning
from fieldlm_compiler.rounds.wish import Begin, RoundWish
from tests.support import tiny_models


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "eval"):
        tiny_models.write_lines(folder / f"{split}.jsonl", tiny_models.conversations(8))
    (folder / "dataset.json").write_text(json.dumps({"id": "0123456789abcdef"}))
    return folder


@pytest.fixture(scope="module")
def start(tiny: Checkpoint, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that knows the task already."""
    out = tmp_path_factory.mktemp("start") / "adapter"
    tune(tiny.folder, data, out, TrainingRecipe(epochs=20, learning_rate=3e-3, precision="float32"))
    return out


@pytest.fixture
def wish(profile: Profile, key: Ed25519PrivateKey) -> Callable[[Begin], RoundWish]:
    recipe = TrainingRecipe(epochs=1, learning_rate=1e-4, precision="float32")

    def made(begin: Begin) -> RoundWish:
        return RoundWish(
            store="", base="", profile=profile, out=Path(), key=key, consents=(), recipe=recipe, begin=begin
        )

    return made


def test_the_better_of_two_beginnings_is_taken_and_nothing_is_tuned_twice(
    wish: Callable[[Begin], RoundWish], tiny: Checkpoint, data: Path, start: Path, tmp_path: Path
) -> None:
    stages = Stages(tmp_path)
    losses: dict[str, float] = {}
    document: dict[str, Any] = {}
    begins: tuple[Begin, ...] = ("fresh", "last", "best")
    for begin in begins:
        folder, document = learning.adapter(wish(begin), tiny, data, start, stages)
        losses[begin] = document["eval_loss_after"]
        assert (folder / "adapter_model.safetensors").is_file()
    assert losses["best"] == losses["last"] < losses["fresh"]
    assert document["began_at"] == "last"
    assert [made.cached for made in stages.made] == [False, False, True, True]
    assert not list((tmp_path / "tuning").glob("*"))


def test_without_an_adapter_to_begin_at_it_begins_afresh(
    wish: Callable[[Begin], RoundWish], tiny: Checkpoint, data: Path, tmp_path: Path
) -> None:
    _, document = learning.adapter(wish("last"), tiny, data, None, Stages(tmp_path))
    assert (document["began_at"], document["start_sha256"]) == ("fresh", "")


def test_preferences_are_learned_where_the_round_is_asked_for_them(
    wish: Callable[[Begin], RoundWish], tiny: Checkpoint, tmp_path: Path
) -> None:
    rows = [row | {"rejected": "no"} for row in tiny_models.conversations(8)]
    for split in ("train", "eval"):
        tiny_models.write_lines(tmp_path / f"{split}.jsonl", rows)
    (tmp_path / "dataset.json").write_text(json.dumps({"id": "0123456789abcdef"}))
    plain = wish("fresh")
    asked = replace(plain, recipe=replace(plain.recipe, preference_weight=0.25))
    stages = Stages(tmp_path / "stages")
    found = [learning.adapter(each, tiny, tmp_path, None, stages)[1]["preferences"] for each in (plain, asked)]
    assert found[0] is None
    assert (found[1]["weight"], found[1]["pairs"]) == (0.25, {"train": 8, "eval": 8})
    assert [made.cached for made in stages.made] == [False, False], "they are two adapters"


def test_what_was_not_asked_for_is_as_in_rounds_from_before_it_could_be(wish: Callable[[Begin], RoundWish]) -> None:
    facts = wish("fresh").facts()
    assert "preference_weight" not in facts["recipe"]
    assert not {"check_labels", "held_out_from", "adapters", "bases", "deferral"} & facts.keys()
    assert facts["names"] == "learned", "names were looked for otherwise"
    assert "names" not in replace(wish("fresh"), names="listed").facts()


def test_the_command_passes_on_what_it_is_asked_for(profile: Profile, tmp_path: Path) -> None:
    words = ["store", "--base", "model", "--out", str(tmp_path / "rounds"), "--keys", str(tmp_path / "keys")]
    parser = command._parser()  # pyright: ignore[reportPrivateUsage]
    args = parser.parse_args(
        [*words, "--consent", "yes", "--preferences", "--held-out-from", "0.1", "--names", "listed"]
    )
    made = command._wish(args, profile)  # pyright: ignore[reportPrivateUsage]
    assert made.recipe.preference_weight == PREFERENCE_WEIGHT
    assert (made.base, made.bases, made.names) == ("model", (), "listed")
    both = parser.parse_args([*words, "--base", "other", "--base", "model", "--consent", "yes"])
    several = command._wish(both, profile)  # pyright: ignore[reportPrivateUsage]
    assert (several.base, several.bases, several.names) == ("model", ("other",), "learned")
    assert made.held_out_from == HeldOutFrom(share=0.1)
    assert made.facts()["held_out_from"] == {"at_ms": 0, "share": 0.1}
    asked = parser.parse_args([*words, "--consent", "yes", "--deferral", "best"])
    better = command._wish(asked, profile)  # pyright: ignore[reportPrivateUsage]
    assert better.facts()["deferral"] == better.deferral == "best"
