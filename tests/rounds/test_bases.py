"""Which of several bases a round tunes: what leaves one out, what decides, and rounds in which there is a choice."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json
from fieldlm.formats.bundle import open_bundle
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import open_checkpoint, said_of
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.tuning.families import find_without
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.rounds.bases import AskedBase, NamedBase, facts_of, open_bases, weigh
from fieldlm_compiler.rounds.state import BaseMatch, RoundDocument, read_rounds
from fieldlm_compiler.rounds.table import text
from fieldlm_compiler.rounds.wish import RoundWish
from tests.rounds.test_rounds import Life, Told, take
from tests.support import tiny_models
from tests.support.material import tiny_bundle
from tests.support.sample_rounds import sample_round
from tests.support.usage import Usage, base_model

TASKS = {"t1": "tea", "t2": "bill"}
WATCHED = [
    CuratedExample(
        messages=[{"role": "user", "content": f"{task} {number}"}], answer="yes", label_source="correction",
        session=f"s{number}", response=f"{task}-{number}", split="train", task=task,
    )
    for task in TASKS
    for number in range(10)
]  # fmt: skip


def asked(name: str, size: int, first: int, second: int) -> AskedBase:
    """Return a base of so many bytes that has the first so many of ten right, of either task."""
    right = [number < count for count in (first, second) for number in range(10)]
    return AskedBase(match=BaseMatch(name=name, reason=""), size=size, right=right)


def weighed(*bases: AskedBase, watched: list[CuratedExample] = WATCHED) -> tuple[str, dict[str, BaseMatch]]:
    taken, matches = weigh(bases, watched, TASKS)
    assert [each.name for each in matches if each.is_taken] == [taken]
    return taken, {each.name: each for each in matches}


@dataclass(frozen=True)
class Case:
    """Bases as (bytes, right of the first task, right of the second), and which one is taken."""

    bases: dict[str, tuple[int, int, int]]
    taken: str


@pytest.mark.parametrize(
    "case",
    [
        Case({"large": (9, 10, 10), "small": (3, 9, 10)}, "small"),
        Case({"large": (9, 10, 10), "small": (3, 4, 5)}, "large"),
        Case({"large": (9, 10, 10), "middle": (5, 10, 9), "small": (3, 2, 2)}, "middle"),
        # Of one task nothing is left: the whole alone would not tell it from chance among so many.
        Case({"large": (9, 10, 3), "small": (3, 0, 10)}, "large"),
        Case({"one": (3, 10, 10), "other": (3, 10, 10)}, "one"),
        Case({"small": (3, 10, 10), "large": (9, 8, 8)}, "small"),
        Case({"only": (3, 0, 0)}, "only"),
    ],
)
def test_the_smallest_is_taken_that_is_not_worse_beyond_chance(case: Case) -> None:
    assert weighed(*(asked(name, *each) for name, each in case.bases.items()))[0] == case.taken


def test_every_base_has_its_reason_with_the_figures() -> None:
    _, found = weighed(asked("large", 9, 10, 10), asked("middle", 5, 10, 9), asked("small", 3, 2, 10))
    assert found["middle"].reason == (
        "taken, the smallest that is not worse beyond chance: 19 of 20 watched examples right, "
        "0 gained and 1 lost beside large, p = 0.5"
    )
    assert found["large"].reason == (
        "not taken, for middle is smaller and not shown to be worse: 20 of 20 watched examples right"
    )
    assert found["small"].reason.startswith(
        "worse beyond chance, in the whole and “tea”: 12 of 20 watched examples right"
    )
    assert [(task.name, str(task.right), task.lost) for task in found["small"].tasks] == [
        ("tea", "20% (2/10)", 8), ("bill", "100% (10/10)", 0),
    ]  # fmt: skip


def test_with_too_few_watched_examples_the_first_that_is_named_is_taken() -> None:
    few = [WATCHED[0], WATCHED[10]]
    bases = [replace(asked(name, size, 0, 0), right=[True, name == "large"]) for name, size in (("large", 9), ("s", 3))]
    taken, found = weighed(*bases, watched=few)
    assert taken == "large"
    assert found["s"].reason.startswith("not taken: too few examples to tell: 1 of 2 watched examples right")


def test_a_family_that_reads_no_text_from_left_to_right_has_no_trainer() -> None:
    assert find_without(["llama", "t5", "nosuch"]) == ["t5", "nosuch"]


def licensed(folder: Path) -> Path:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture
def wish(profile: Profile, key: Ed25519PrivateKey, tmp_path: Path) -> RoundWish:
    return RoundWish(store="", base="", profile=profile, out=tmp_path, key=key, consents=())


def test_one_base_is_named_among_what_a_round_is_made_of_as_it_always_was(
    wish: RoundWish, tiny_folder: Path, stages: Stages
) -> None:
    named = open_bases(replace(wish, base=str(tiny_folder)), stages)
    sha256 = open_checkpoint(str(tiny_folder)).sha256
    assert facts_of(named) == {"base": tiny_folder.name, "base_sha256": sha256}
    other = NamedBase(name="half", checkpoint=None, why="it has no weights")
    assert facts_of([*named, other]) == {
        "bases": [[str(tiny_folder), tiny_folder.name, sha256], ["half", "it has no weights"]]
    }
    assert "bases" not in replace(wish, bases=("other",)).facts()


def test_what_cannot_be_read_and_what_is_there_twice_are_left_out_of_several(
    wish: RoundWish, tiny_folder: Path, stages: Stages, tmp_path: Path
) -> None:
    twin = shutil.copytree(tiny_folder, tmp_path / "twin")
    (tmp_path / "half").mkdir()
    several = replace(wish, base=str(tiny_folder), bases=(str(twin), str(tmp_path / "half")))
    first, second, third = open_bases(several, stages)
    assert first.checkpoint is not None
    assert (second.checkpoint, second.why) == (None, f"is the same model as {tiny_folder}")
    assert third.checkpoint is None
    assert "has no config.json" in third.why


def test_a_base_bundle_has_to_be_of_one_of_the_bases(
    wish: RoundWish, tiny_folder: Path, stages: Stages, tmp_path: Path
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    (tmp_path / "half").mkdir()
    several = replace(wish, base=str(tiny_folder), bases=(str(tmp_path / "half"),), base_bundle=bundle.folder)
    with pytest.raises(InputError, match=r"was made from .*, which is none of the bases; name that with --base"):
        open_bases(several, stages)


def test_a_licence_is_the_catalogues_or_the_models_own(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "own")
    assert said_of(str(folder), open_checkpoint(str(folder))) == ("unknown", "")
    assert said_of(str(licensed(folder)), open_checkpoint(str(folder))) == ("mit", "")
    licence, about = said_of("smollm2", tiny_models.smollm2())
    assert licence == "apache-2.0"
    assert about.startswith("SmolLM2 135M")


def test_a_round_of_one_base_says_nothing_of_a_choice() -> None:
    plain = msgspec.structs.replace(sample_round(str), base_choice=msgspec.UNSET)
    assert b"base_choice" not in canonical_json(plain)
    assert msgspec.json.decode(canonical_json(plain), type=RoundDocument) == plain


@dataclass
class Choosing(Life):
    """A life of rounds that have a choice of bases, by the names of their folders."""

    bases: tuple[str, ...] = ()

    def command(self, *more: str) -> list[str]:
        plain = super().command("--epochs", "12", *more)
        at = plain.index("--base")
        return [
            *plain[:at],
            *(word for name in self.bases for word in ("--base", str(self.folder / name))),
            *plain[at + 2 :],
        ]

    def choose(self, name: str, *bases: str) -> Told:
        self.bases = bases
        return self.run(name)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Choosing:
    folder = tmp_path_factory.mktemp("bases")
    licensed(base_model(folder / "taught"))
    licensed(tiny_models.tiny_llama(folder / "blank", hidden=32, num_hidden_layers=1))
    unlicensed = shutil.copytree(folder / "taught", folder / "unlicensed")
    (unlicensed / "README.md").unlink()
    config = json.loads((unlicensed / "config.json").read_bytes())
    (unlicensed / "config.json").write_text(json.dumps(config | {"note": "another model"}))
    (folder / "half").mkdir()
    (folder / "half" / "config.json").write_text("{}")
    life = Choosing(folder, Usage(folder / "store"))
    life.say([each for task in ("order", "hours", "book") for each in take(task, 0, 60)], "first")
    for name in ("first", "again"):
        life.choose(name, "unlicensed", "blank", "taught", "half")
    life.choose("other", "unlicensed", "blank")
    return life


def test_what_fits_is_tried_and_a_smaller_one_that_is_worse_is_not_taken(life: Choosing) -> None:
    told = life.told["first"]
    assert told.code == 0, told.answer["reasons"]
    matches = {Path(each["name"]).name: each for each in told.answer["base_choice"]["bases"]}
    assert "its licence is not known" in matches["unlicensed"]["reason"]
    assert "has no tokenizer.json" in matches["half"]["reason"]
    assert matches["blank"]["reason"].startswith("worse beyond chance, in the whole")
    taught = matches["taught"]
    assert taught["is_taken"]
    assert told.answer["base_choice"]["chosen"] == f"{taught['name']}: {taught['reason']}"
    assert taught["licence"] == "mit"
    assert taught["ms"] > 0
    assert taught["update_mb"] == taught["bundle_mb"] > matches["blank"]["bundle_mb"]
    assert taught["memory_mb"] > taught["weights_mb"] > 0
    assert {task["name"].partition(":")[0] for task in taught["tasks"]} == {"order", "hours", "book"}
    made_of = told.answer["made_of"]
    assert made_of["base"] == "taught"
    assert made_of["base_sha256"] == open_checkpoint(str(life.folder / "taught")).sha256


def test_the_base_is_chosen_by_customers_to_watch_alone(life: Choosing) -> None:
    (first, _) = read_rounds(life.rounds)
    choice = first.document.base_choice
    assert not isinstance(choice, msgspec.UnsetType)
    totals = {each.right.total for each in choice.bases if each.right}
    assert totals == {first.document.dataset["eval"]}, "whom the data set watches with, and nobody who is held out"
    assert first.document.base.total == len(first.held_out())


def test_the_table_stands_in_the_report_and_in_the_terminal(life: Choosing) -> None:
    (first, second) = read_rounds(life.rounds)
    said = text(first).splitlines()
    head = next(line for line in said if "ms/answer" in line)
    assert {row.id for row in first.document.tasks} <= set(head.split())
    assert sum("mit" in line and "Q8_0" in line for line in said) == 2, "a row for each that was tried"
    choice = first.document.base_choice
    assert not isinstance(choice, msgspec.UnsetType)
    page = (first.folder / "report.html").read_text()
    assert "Which base" in page
    assert choice.chosen in page
    assert "its licence is not known" in page
    assert "fetches a whole new one" in (second.folder / "report.html").read_text()


def test_the_same_bases_are_nothing_new_and_nothing_is_made_again(life: Choosing) -> None:
    assert "nothing is new since round 1" in life.told["again"].log
    assert life.told["again"].stages == life.told["first"].stages
    made = [
        {stage for stage in life.told[name].stages if stage.startswith(("base-", "tune-", "bundle-"))}
        for name in ("first", "other")
    ]
    assert made[0] == made[1], "what was made for a base that was not taken is there when it is"


def test_another_base_than_before_begins_afresh_and_an_update_to_it_ships_it_whole(life: Choosing) -> None:
    told = life.told["other"]
    assert "round 1 tuned another base; this one begins afresh" in told.log
    assert told.answer["tune"]["began_at"] == "fresh"
    taken = next(each for each in told.answer["base_choice"]["bases"] if each["is_taken"])
    assert taken["name"].endswith("blank")
    assert taken["reason"].startswith("taken, the only one that can be")
    assert told.answer["decision"] == "refused", "the gate has the last word"
    weights = open_bundle(life.rounds / "0002" / "bundle").manifest.file("base")
    assert weights is not None
    assert taken["update_mb"] > weights.size / 1e6
    assert told.answer["base_choice"]["ships"] == (
        f"devices have another base, taught: an update to {taken['name']} fetches a whole new one, "
        f"{taken['update_mb']:,.1f} MB"
    )
