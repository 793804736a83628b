"""One adapter or several: what decides, and a round in which each group of tasks gets its own."""

import json
import random
from pathlib import Path

import pytest

from fieldlm.core.files import canonical_json
from fieldlm.formats.bundle import open_bundle
from fieldlm.formats.confidence import Confidence
from fieldlm.inference.router import task_adapter_of
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.rounds.groups import ALL, GENTLER, TaskGroup, compared, sure_of
from fieldlm_compiler.rounds.state import GroupMatch, read_rounds
from tests.rounds.test_rounds import Life, take
from tests.support.material import tiny_bundle
from tests.support.task_bundles import loras, several
from tests.support.usage import Usage, base_model

GROUPS = [
    TaskGroup(id="s1", name="bar", names={"t1": "tea", "t2": "milk"}, trained=40),
    TaskGroup(id="s2", name="desk", names={"t3": "bill"}, trained=20),
]
ASKED = [
    CuratedExample(
        messages=[{"role": "user", "content": f"{task} {number}"}], answer="yes", label_source="correction",
        session=f"s{number}", response=f"{task}-{number}", split="train", task=task,
    )
    for task in ("t1", "t2", "t3")
    for number in range(10)
]  # fmt: skip


def match(one: dict[str, int], several: dict[str, int], *, always: bool = False) -> dict[str, GroupMatch]:
    """Return what is found where the first so many of each task are right."""
    right = [[int(each.response.rpartition("-")[2]) < counts[each.task] for each in ASKED] for counts in (one, several)]
    return {each.id: each for each in compared(GROUPS, ASKED, *right, always=always)}


def test_a_group_that_gains_more_than_chance_explains_has_its_own_adapter() -> None:
    found = match({"t1": 5, "t2": 5, "t3": 9}, {"t1": 10, "t2": 10, "t3": 10})
    assert (found["s1"].is_taken, found["s2"].is_taken) == (True, False)
    assert (found["s1"].gained, found["s1"].lost) == (10, 0)
    assert found["s1"].reason == "better: 20 watched examples, 10 gained, 0 lost, p = 0.00098"
    assert found["s2"].reason.startswith("not shown to be better: 10 watched examples, 1 gained, 0 lost")
    assert [(str(each.one), str(each.own)) for each in found["s1"].tasks] == [("50% (5/10)", "100% (10/10)")] * 2


def test_one_that_loses_or_stays_as_it_is_answers_nothing() -> None:
    found = match({"t1": 10, "t2": 10, "t3": 5}, {"t1": 2, "t2": 4, "t3": 5})
    assert [each.is_taken for each in found.values()] == [False, False]


def test_a_gain_that_chance_explains_among_so_many_groups_is_none() -> None:
    """Five of five alone would be p = 0.03; of two groups that are looked at, the better one has to have 0.025."""
    found = match({"t1": 5, "t2": 0, "t3": 5}, {"t1": 5, "t2": 0, "t3": 10})
    assert not found["s2"].is_taken


def test_who_asks_for_an_adapter_for_each_group_gets_it() -> None:
    found = match({"t1": 10, "t2": 10, "t3": 5}, {"t1": 2, "t2": 4, "t3": 5}, always=True)
    assert [each.is_taken for each in found.values()] == [True, True]
    assert found["s1"].reason.startswith("taken as asked for: 20 watched examples, 0 gained, 14 lost")


def calibration(*held: tuple[float, int, int], n: int = 0, right: int = 0) -> bytes:
    return canonical_json(Confidence(held=held, n=n or sum(row[1] for row in held), right=right))


def test_what_a_bundle_is_sure_of_counts_the_answers_of_all_its_adapters(tmp_path: Path) -> None:
    own = {ALL: calibration((0.5, 10, 5), (0.9, 20, 19)), "tea": calibration((0.9, 30, 30)), "bill": calibration(n=4)}
    made = several(tmp_path / "bundle", loras(tmp_path / "loras", *own), confidence=own)
    assert sure_of(made) == [(0.0, 4, 0), (0.5, 10, 5), (0.9, 50, 49)]
    alone = tiny_bundle(tmp_path / "alone", confidence=calibration((0.9, 30, 30)))
    assert sure_of(alone) == [(0.9, 30, 30)]
    assert sure_of(tiny_bundle(tmp_path / "unfit", confidence=calibration(n=4))) == []
    assert sure_of(tiny_bundle(tmp_path / "none")) == []


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("groups")
    base_model(folder / "base")
    life = Life(folder, Usage(folder / "store"))
    said = [each for task in ("order", "hours", "book") for each in take(task, 0, 60)]
    life.usage.customers(random.Random(2).sample(said, len(said)), prefix="first")
    for name in ("groups", "again", "one", "best"):
        life.run(name, "--from", "fresh", "--adapters", "groups" if name == "again" else name)
    return life


def _rate(adapter: Path) -> float:
    return json.loads((adapter / "tune.json").read_bytes())["recipe"]["learning_rate"]


def test_each_group_gets_an_adapter_of_its_own_and_the_exam_asks_as_a_device_does(life: Life) -> None:
    told = life.told["groups"]
    assert told.code == 0, told.answer["reasons"]
    bundle = open_bundle(life.rounds / "0001" / "bundle")
    names = {row["id"]: row["name"].partition(":")[0] for row in told.answer["tasks"]}
    first, *others = bundle.manifest.task_adapters
    assert (first.name, first.tasks) == (ALL, ())
    assert {each.name: each.tasks for each in others} == {task: (task,) for task in names}, "of one scenario, the tasks"
    said = {"order": "please bring a tea now", "hours": "say sunday hours", "book": "book a table"}
    for task, name in names.items():
        assert task_adapter_of(bundle, [{"role": "user", "content": said[name]}]) == task
    assert told.answer["this"]["share"] > 0.9
    kept = life.rounds / "0001"
    assert {path.name for path in (kept / "adapters").iterdir()} == set(names)
    for path in (kept / "adapters").iterdir():
        assert _rate(path) == pytest.approx(GENTLER * _rate(kept / "adapter"))
    assert "with an adapter of its own" in (kept / "report.html").read_text()
    assert [each["is_taken"] for each in told.answer["groups"]] == [True] * 3


def test_the_same_choice_is_nothing_new_and_another_one_is(life: Life) -> None:
    assert "nothing is new since round 1" in life.told["again"].log
    assert life.told["again"].stages == life.told["groups"].stages
    one = life.told["one"].answer
    assert (one["number"], one["groups"], one["chosen"]) == (2, [], "")
    assert open_bundle(life.rounds / "0002" / "bundle").manifest.task_adapters == ()


def test_what_was_made_for_one_choice_is_not_made_again_for_another(life: Life) -> None:
    best = life.told["best"]
    assert {name for name in best.stages if name.startswith(("tune-", "part-"))} == {
        name for name in life.told["groups"].stages if name.startswith(("tune-", "part-"))
    }
    taken = {each["id"] for each in best.answer["groups"] if each["is_taken"]}
    for each in best.answer["groups"]:
        assert each["is_taken"] == each["reason"].startswith("better")
    last = read_rounds(life.rounds)[-1]
    found = {each.name for each in open_bundle(last.bundle).manifest.task_adapters} - {ALL}
    assert found == taken
    assert Path(last.folder / "adapters").is_dir() == bool(taken)
