import json
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.cluster import cluster, main
from fieldlm_compiler.learn.communities import communities, joined
from fieldlm_compiler.learn.curated import CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.embed import Embedder
from fieldlm_compiler.learn.shapes import without_values
from fieldlm_compiler.learn.tasks import (
    TASKS,
    Round,
    Task,
    assign_ids,
    digest,
    members_of,
    packed,
    past_of,
    read_round,
    retire,
    telling_words,
    words_of_most,
)


def task(name: str, requests: list[str], **fields: str) -> Task:
    centre = packed(np.eye(4, dtype=np.float32)[0])
    members = members_of(digest(request, ()) for request in requests)
    return msgspec.structs.replace(
        Task(id=name, name=name, size=len(requests), cohesion=1.0, example="", centre=centre, members=members), **fields
    )


def requests(kind: str, count: int) -> list[str]:
    return [f"{kind} {number}" for number in range(count)]


def matched(groups: list[list[str]], earlier: Round) -> tuple[list[str], list[Task]]:
    """Return the ids of groups of requests, and the tasks that are retired; centres say nothing."""
    said = [request for group in groups for request in group]
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    past = past_of([digest(request, ()) for request in said], earlier)
    centres = np.eye(4, dtype=np.float32)[1 : len(groups) + 1]
    ids = assign_ids(labels, past, centres, earlier)
    tasks = [task(name, group) for name, group in zip(ids, groups, strict=True)]
    return ids, retire(tasks, labels, past, earlier)


def test_of_a_task_that_splits_the_larger_part_keeps_the_id() -> None:
    tea = requests("tea", 30)
    ids, retired = matched([tea[:10], tea[10:]], Round(tasks=[task("task-tea", tea)]))
    assert ids[1] == "task-tea"
    assert ids[0] != "task-tea"
    assert retired == []


def test_of_tasks_that_are_joined_the_largest_keeps_its_id_and_the_other_is_noted_as_merged() -> None:
    tea, coffee = requests("tea", 30), requests("coffee", 10)
    ids, (gone,) = matched([[*coffee, *tea]], Round(tasks=[task("task-tea", tea), task("task-coffee", coffee)]))
    assert ids == ["task-tea"]
    assert (gone.id, gone.merged_into) == ("task-coffee", "task-tea")


def test_a_task_that_is_absent_waits_with_its_id_and_gets_it_back() -> None:
    tea, coffee = requests("tea", 30), requests("coffee", 10)
    first = Round(tasks=[task("task-tea", tea), task("task-coffee", coffee)])
    ids, retired = matched([tea], first)
    assert (ids, [(one.id, one.merged_into) for one in retired]) == (["task-tea"], [("task-coffee", "")])
    ids, _ = matched([coffee, tea], Round(tasks=[task("task-tea", tea)], retired=retired))
    assert ids == ["task-coffee", "task-tea"]


def test_what_was_never_asked_before_has_an_id_of_its_own() -> None:
    tea = requests("tea", 30)
    ids, _ = matched([tea, requests("coffee", 10)], Round(tasks=[task("task-tea", tea)]))
    assert ids[0] == "task-tea"
    assert ids[1] not in ("task-tea", "")


def test_a_few_strays_of_an_absent_task_do_not_carry_its_id_away() -> None:
    tea = requests("tea", 100)
    ids, _ = matched([[*tea[:1], *requests("coffee", 60)]], Round(tasks=[task("task-tea", tea)]))
    assert ids != ["task-tea"]


def test_a_file_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    old = {"id": "task-1", "name": "tea", "size": 9, "cohesion": 0.5, "example": "a tea", "centre": [0.5, 0.25]}
    (tmp_path / TASKS).write_text(json.dumps({"format": "fieldlm.tasks/1", "tasks": [old], "retired": []}))
    (found,) = read_round(tmp_path / TASKS).tasks
    assert found.vector().tolist() == [0.5, 0.25]
    assert found.digests() == []
    (tmp_path / TASKS).write_text("{")
    with pytest.raises(InputError, match="remove it"):
        read_round(tmp_path / TASKS)


def test_telling_words_are_those_that_other_classes_have_not() -> None:
    lamp, taxi = ["please dim the lamp", "dim it please"], ["please call a taxi", "a taxi please", "taxi"]
    texts = [[(text, f"s{number}") for number, text in enumerate(those)] for those in (lamp, taxi)]
    assert telling_words(texts, 1) == [["dim"], ["taxi"]]
    assert telling_words(texts, 8, 3) == [[], ["taxi"]]


def test_words_that_half_the_classes_say_tell_nothing_unless_a_class_has_no_others() -> None:
    said = (["the lamp now please"] * 5, ["a taxi to the door"] * 5 + ["now"], ["the the now please"] * 5)
    texts = [[(text, f"s{number}") for number, text in enumerate(those)] for those in said]
    common = words_of_most(texts)
    assert common == {"the", "now", "please"}
    assert [words[:1] for words in telling_words(texts, 2, common=common)] == [["lamp"], ["door"], ["please"]]
    assert telling_words(texts, 8, common=common)[0] == ["lamp"]
    strays = [*texts[:2], [(f"music {number}", f"s{number}") for number in range(100)] + [("lamp", "x")]]
    assert "lamp" not in words_of_most(strays)
    assert words_of_most(texts[:1]) == frozenset()


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        (
            "play some Jazz in the attic",
            {"genre": "jazz", "house_place": "attic"},
            "play some genre in the house place",
        ),
        ("wake me at 7", {"time": 7}, "wake me at time"),
        ("buy tea and milk", {"item": ["tea", "milk"]}, "buy item and item"),
        ("a steak, not tea", {"item": "tea"}, "a steak, not item"),
        ("new york city", {"place": "york", "city": "new york"}, "city city"),
        ("nothing here", {"place": "", "deep": {"a": 1}}, "nothing here"),
    ],
)
def test_values_give_way_to_their_arguments_names(text: str, arguments: dict[str, object], told: str) -> None:
    assert without_values(text, arguments) == told


def test_groups_that_are_alike_are_one_of_the_level_above() -> None:
    dice = np.random.default_rng(0)
    families = np.repeat(np.arange(4), 4)
    centres = (np.eye(8)[families] + 0.1 * dice.standard_normal((16, 8))).astype(np.float32)
    assert joined(centres).tolist() == families.tolist()
    assert joined(centres[:5]).tolist() == [0] * 5


def test_points_that_are_there_often_count_as_often_towards_the_least_size() -> None:
    dice = np.random.default_rng(0)
    kinds = np.tile(np.arange(2), 20)
    points = (np.eye(4)[kinds] + 0.05 * dice.standard_normal((40, 4))).astype(np.float32)
    few = np.vstack([points, np.tile([0, 0, 0, 1.0], (4, 1)) + 0.05 * dice.standard_normal((4, 4))]).astype(np.float32)
    assert len(set(communities(few, [""] * 44, seed=0, least=8))) == 2
    assert len(set(communities(few, [""] * 44, seed=0, least=8, counts=[1] * 40 + [5] * 4))) == 3


def said(texts: list[str], sessions: list[str]) -> list[CuratedExample]:
    return [
        CuratedExample(
            messages=[{"role": "user", "content": text}], answer="", label_source="none", session=session,
            response=f"r{number}", split="train", device="d",
        )
        for number, (text, session) in enumerate(zip(texts, sessions, strict=True))
    ]  # fmt: skip


def two_kinds(folder: Path) -> Path:
    """Lamps are asked for by many people, one person's secret by themselves."""
    texts = [f"please dim the lamp in room {number}" for number in range(20)]
    texts += [f"my password is swordfish {number}" for number in range(20)]
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(folder / "examples.jsonl", said(texts, [*(f"s{n}" for n in range(20)), *["one"] * 20]))
    return folder


def test_a_task_of_too_few_customers_shows_no_word_that_was_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(two_kinds(tmp_path)), "--least-sessions", "3", "--json"]) == 0
    shown = capsys.readouterr().out + (tmp_path / TASKS).read_text()
    assert "lamp" in shown
    assert "swordfish" not in shown
    assert "password" not in shown
    assert "dim the lamp in room 7" not in shown, "one customer alone said 7"
    hidden = next(task for task in read_round(tmp_path / TASKS).tasks if not task.description)
    assert (hidden.name, hidden.description, hidden.size) == (hidden.id, "", 20)


def test_prompts_without_labels_have_tasks_with_names_descriptions_and_scenarios(tmp_path: Path) -> None:
    cluster(two_kinds(tmp_path), embedder=Embedder())
    found = read_round(tmp_path / TASKS)
    assert Counter(e.task for e in read_examples(tmp_path)) == Counter({task.id: task.size for task in found.tasks})
    (lamp,) = (task for task in found.tasks if "lamp" in task.name)
    assert lamp.description.startswith("people say ")
    assert {task.scenario for task in found.tasks} == {scenario.id for scenario in found.scenarios}
    assert sum(scenario.size for scenario in found.scenarios) == 40
