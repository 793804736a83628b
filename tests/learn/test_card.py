"""The data card beside a data set, and the near copies that it counts."""

import json
from pathlib import Path

import msgspec
import pytest

from fieldlm.cli.main import main
from fieldlm.core.files import canonical_json
from fieldlm_compiler.learn.curated import CuratedExample, write_examples
from fieldlm_compiler.learn.dataset import dataset, without_sessions
from fieldlm_compiler.learn.quality.near_copies import near_copies
from fieldlm_compiler.learn.task_edits.edits import TaskEdit, TaskEdits, write_edits
from fieldlm_compiler.learn.tasks import TASKS, Round, Task, write_round


def example(text: str, session: str, split: str, task: str) -> CuratedExample:
    made = CuratedExample(
        messages=[{"role": "user", "content": text}], answer="ok", label_source="correction", session=session,
        response=f"{session} {text}", split="train", consent="kiosk-2026", generation="g1", task=task,
    )  # fmt: skip
    return msgspec.structs.replace(made, split=split)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    said = [example(f"bring a tea to table {number}", f"s{number}", "train", "task-1") for number in range(6)]
    said += [example(f"what is the weather in town {number}", f"w{number}", "train", "task-2") for number in range(2)]
    said += [example("play a song", "s1", "train", "task-3")]
    said += [example("bring a tea to table 3!", "e1", "eval", "task-1"), example("is it hot", "e2", "eval", "task-2")]
    (tmp_path / "examples").mkdir()
    write_examples(tmp_path / "examples" / "examples.jsonl", said)
    tasks = [
        Task(id=f"task-{number}", name=name, size=1, cohesion=1.0, example="")
        for number, name in enumerate(("tea | <b>", "weather", "music"), 1)
    ]
    write_round(tmp_path / "examples" / TASKS, Round(tasks=tasks))
    write_edits(tmp_path / "examples", TaskEdits([TaskEdit(kind="exclude", task="task-3")]))
    curated = {"dropped": {"no consent": 7}, "redacted": {"name": 2}}
    (tmp_path / "examples" / "curate.json").write_bytes(canonical_json(curated))
    return tmp_path / "examples"


def test_the_card_says_what_is_in_a_data_set_and_what_is_not(folder: Path, tmp_path: Path) -> None:
    assert main(["dataset", str(folder), "--out", str(tmp_path / "sets"), "--licence", "CC BY 4.0"]) == 0
    (made,) = (tmp_path / "sets").iterdir()
    facts = json.loads((made / "card.json").read_bytes())
    assert facts["dataset"] == made.name
    assert facts["examples"] == {"train": 8, "eval": 2}
    assert facts["customers"] == {"train": 8, "eval": 2}
    assert facts["customers_in_both"] == 0
    assert facts["near_copies_across"] == 1
    assert facts["tasks"][0] == {"id": "task-1", "name": "tea | <b>", "train": 6, "eval": 1}
    assert 0.8 < facts["balance"] < 0.82, "entropy of 6 and 2 in bits"
    assert facts["consents"] == {"kiosk-2026": 10}
    assert (facts["dropped"], facts["redacted"]) == ({"no consent": 7}, {"name": 2})
    assert facts["left_out"] == ["music"]
    text = (made / "card.md").read_text()
    assert r"| task-1 | tea \| \<b\> | 6 | 1 |" in text
    assert "Licence: CC BY 4.0." in text
    assert "| no consent | 7 |" in text
    assert "table 3" not in text


def test_the_card_of_a_data_set_without_who_is_forgotten_keeps_what_was_known(folder: Path, tmp_path: Path) -> None:
    made = without_sessions(dataset(folder, tmp_path / "sets", licence="ours"), {"s1"})
    assert made is not None
    facts = json.loads((made / "card.json").read_bytes())
    assert facts["examples"] == {"train": 7, "eval": 2}
    assert facts["tasks"][0]["name"] == "tea | <b>"
    assert (facts["licence"], facts["dropped"], len(facts["replaces"])) == ("ours", {"no consent": 7}, 1)


def test_what_is_known_to_be_nothing_is_told_apart_from_what_nobody_knows(folder: Path, tmp_path: Path) -> None:
    (folder / "curate.json").write_bytes(canonical_json({"dropped": {}, "redacted": {}}))
    text = (dataset(folder, tmp_path / "known") / "card.md").read_text()
    assert "and why\n\nNone.\n" in text
    assert "Nothing is known" not in text
    (folder / "curate.json").unlink()
    made = dataset(folder, tmp_path / "unknown")
    assert (made / "card.md").read_text().count("Nothing is known of it.") == 2
    assert json.loads((made / "card.json").read_bytes())["dropped"] is None


def test_examples_that_were_never_clustered_have_no_task_and_no_balance(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_examples(folder / "examples.jsonl", [example(f"tea {number}", "s", "train", "") for number in range(9)])
    assert main(["dataset", str(folder), "--out", str(tmp_path / "sets")]) == 0
    assert "9 train, 0 eval, no tasks found yet" in capsys.readouterr().out
    (made,) = (tmp_path / "sets").iterdir()
    facts = json.loads((made / "card.json").read_bytes())
    assert (facts["tasks"], facts["without_task"], facts["balance"]) == ([], 9, None)
    assert json.loads((made / "dataset.json").read_bytes())["tasks"] == {}
    text = (made / "card.md").read_text()
    assert "No tasks found yet" in text
    assert "Balance" not in text


def test_of_a_task_that_people_left_out_no_data_set_is_made_and_the_way_back_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("music", "task-3"):
        assert main(["dataset", str(folder), "--out", str(tmp_path / "sets"), "--task", word]) == 2
        told = capsys.readouterr().err
        assert f"{word} is left out of all data sets by people" in told
        assert f"fieldlm tasks {folder} --include task-3" in told


def test_no_two_tasks_have_the_same_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("music", "task-3"):
        assert main(["tasks", str(folder), "--rename", "weather", name]) == 2
        assert f"task-3 has the name {name!r} already" in capsys.readouterr().err
    assert main(["tasks", str(folder), "--rename", "weather", "weather"]) == 0


def test_a_task_goes_by_the_same_words_in_tasks_and_dataset(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = Round(tasks=[
        Task(id=f"task-{number}", name=name, size=1, cohesion=1.0, example="")
        for number, name in enumerate(("tea", "tea", "music"), 1)
    ])  # fmt: skip
    write_round(folder / TASKS, tasks)
    for word, why in (
        ("tea", "'tea' is the name of 2 tasks; use an id: task-1, task-2"),
        ("task-11", f"there is no task 'task-11', did you mean 'task-1'? list them: fieldlm tasks {folder}"),
        ("zzz", f"there is no task 'zzz'; list them: fieldlm tasks {folder}"),
    ):
        for asked in (["dataset", str(folder), "--out", str(tmp_path / "sets"), "--task", word],
                      ["tasks", str(folder), "--merge", word, "music"]):  # fmt: skip
            assert main(asked) == 2
            assert why in capsys.readouterr().err
    assert main(["tasks", str(folder), "--include", "task-1"]) == 2
    said = capsys.readouterr().err
    assert "task-1 is not left out" in said
    assert "already" not in said
    assert main(["tasks", str(folder), "--merge", "music", "task-1"]) == 0


def test_near_copies_are_those_with_most_of_their_letters_in_common() -> None:
    said = ["Please play some jazz in the kitchen", "please play soem jazz in the kitchen tonight", "dim the lamp", ""]
    others = ["please play some jazz in the  kitchen", "call a taxi to the station"]
    assert near_copies(said, others) == [True, False, False, False]
    assert near_copies([f"{others[1]} now"], others) == [True]
    assert near_copies(["x"], []) == [False]
