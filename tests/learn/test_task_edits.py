"""What people make of the tasks that were found holds over rounds: with more requests, other words, an absent task."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fieldlm.cli.main import main
from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.cluster import cluster
from fieldlm_compiler.learn.curated import CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.dataset import dataset
from fieldlm_compiler.learn.embed import Embedder
from fieldlm_compiler.learn.task_edits.edits import FILE, TaskEdit, TaskEdits, read_edits, write_edits
from fieldlm_compiler.learn.task_edits.view import ShownTask, ShownTasks
from fieldlm_compiler.learn.tasks import TASKS, read_round
from fieldlm_compiler.rounds.task_command import page

WHAT = {
    "lamp": ("dim the lamp in the {}", "switch the light in the {} off", "make it brighter in the {}"),
    "music": ("play some jazz in the {}", "play my favourite song in the {}", "turn the radio up in the {}"),
    "taxi": ("call a taxi to the {}", "order a cab to the {}", "i need a ride to the {}"),
    "weather": ("will it rain at the {}", "what is the weather like at the {}", "is it sunny at the {} tomorrow"),
}
WHERE = ("kitchen", "station", "garden", "office", "museum", "attic", "harbour", "library", "school", "market", "hotel")
POLITE = ("{}", "please {}", "{} now", "could you {}", "hey, {}", "{} thanks")
Said = list[tuple[str, str]]


def sentences(kind: str, start: int, stop: int) -> Said:
    """Return distinct requests of a kind; polite words change from one stretch to the next."""
    every = (
        (form.format(said.format(where)), kind) for form, where, said in itertools.product(POLITE, WHERE, WHAT[kind])
    )
    return list(itertools.islice(every, start, stop))


def kinds(start: int, stop: int, *, without: str = "") -> Said:
    return [said for kind in WHAT if kind != without for said in sentences(kind, start, stop)]


@dataclass
class Folder:
    """A folder of examples, clustered anew in each round."""

    path: Path
    embedder: Embedder
    said: Said

    def round(self, said: Said) -> None:
        self.said = said
        examples = [
            CuratedExample(
                messages=[{"role": "user", "content": text}], answer=json.dumps({"name": kind}),
                label_source="correction", session=f"s{number // 3}", response=f"r{number}", split="train", device="d",
            )
            for number, (text, kind) in enumerate(said)
        ]  # fmt: skip
        write_examples(self.path / "examples.jsonl", examples)
        cluster(self.path, embedder=self.embedder)

    def ids(self) -> dict[str, Counter[str]]:
        """Return the tasks of each kind."""
        found: dict[str, Counter[str]] = {kind: Counter() for kind in WHAT}
        for example, (_, kind) in zip(read_examples(self.path), self.said, strict=True):
            found[kind][example.task] += 1
        return found

    def id(self, kind: str) -> str:
        ((task, count),) = self.ids()[kind].most_common(1)
        assert count > 0.9 * self.ids()[kind].total()
        return task

    def edit(self, *asked: str) -> None:
        assert main(["tasks", str(self.path), *asked]) == 0


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def folder(tmp_path: Path, embedder: Embedder) -> Folder:
    made = Folder(tmp_path / "examples", embedder, [])
    made.path.mkdir()
    made.round(kinds(0, 40))
    assert len({made.id(kind) for kind in WHAT}) == 4, "without edits each kind is a task"
    return made


# ── three rounds more: more requests, other words, one task absent ───────────────────────────────────────────────────

ROUNDS: tuple[Callable[[], Said], ...] = (
    lambda: kinds(0, 80),
    lambda: kinds(70, 150),
    lambda: kinds(70, 150, without="taxi"),
    lambda: kinds(100, 180),
)


def test_a_merged_task_stays_merged_and_comes_apart_when_it_is_undone(folder: Folder) -> None:
    lamp, taxi = folder.id("lamp"), folder.id("taxi")
    folder.edit("--merge", taxi, lamp)
    for said in ROUNDS:
        folder.round(said())
        ids = folder.ids()
        assert set(ids["lamp"] + ids["taxi"]) == {lamp}
        assert lamp not in ids["music"] + ids["weather"]
        assert len(ids["music"]) == len(ids["weather"]) == 1
    (gone,) = [task for task in read_round(folder.path / TASKS).retired if task.id == taxi]
    assert gone.merged_into == lamp
    folder.edit("--undo")
    folder.round(kinds(100, 180))
    assert (folder.id("lamp"), folder.id("taxi")) == (lamp, taxi)


def test_a_merge_is_undone_beside_other_edits_of_the_same_task(folder: Folder) -> None:
    lamp, taxi = folder.id("lamp"), folder.id("taxi")
    folder.edit("--rename", lamp, "Lights")
    folder.edit("--merge", taxi, lamp)
    folder.round(kinds(0, 60))
    folder.edit("--undo")
    folder.round(kinds(0, 60))
    assert (folder.id("lamp"), folder.id("taxi")) == (lamp, taxi)


def test_a_split_task_stays_split_by_what_was_said_and_what_is_near(folder: Folder) -> None:
    folder.round(kinds(0, 60))
    lamp, music = folder.id("lamp"), folder.id("music")
    # Two kinds that a person made one task are what a person parts again.
    folder.edit("--merge", music, lamp)
    folder.round(folder.said)
    folder.edit("--split", lamp)
    for said in ROUNDS:
        folder.round(said())
        assert folder.id("lamp") != folder.id("music")
        assert lamp in (folder.id("lamp"), folder.id("music"))
    parts = (folder.id("lamp"), folder.id("music"))
    folder.round(kinds(0, 70))
    assert (folder.id("lamp"), folder.id("music")) == parts, "of all that is said now nothing was said last time"


def test_a_split_within_one_task_is_kept_and_leaves_the_others_alone(folder: Folder) -> None:
    taxi = folder.id("taxi")
    others = {kind: folder.id(kind) for kind in ("lamp", "music", "weather")}
    folder.edit("--split", taxi)
    folder.round(kinds(0, 40))
    first = {text: example.task for example, (text, kind) in zip(read_examples(folder.path), folder.said, strict=True)
             if kind == "taxi"}  # fmt: skip
    assert len(set(first.values())) > 1
    assert taxi in first.values()
    for said in ROUNDS[:2]:
        folder.round(said())
        now = {example.utterance: example.task for example in read_examples(folder.path)}
        assert {text: now[text] for text in first if text in now} == {t: k for t, k in first.items() if t in now}
        assert {kind: folder.id(kind) for kind in others} == others


def test_no_name_is_made_of_what_everybody_says_and_a_split_renames_no_other_task(folder: Folder) -> None:
    before = {task.id: task.name for task in read_round(folder.path / TASKS).tasks}
    words = [word for name in before.values() for word in name.partition(": ")[2].split()]
    assert words
    assert not {"the", "please", "in"} & set(words)
    weather = folder.id("weather")
    folder.edit("--split", weather)
    cluster(folder.path, embedder=folder.embedder)
    after = {task.id: task.name for task in read_round(folder.path / TASKS).tasks}
    assert len(after) > len(before)
    assert {id_: name for id_, name in after.items() if id_ in before and id_ != weather} == {
        id_: name for id_, name in before.items() if id_ != weather
    }


def test_a_name_stays_and_outlives_a_round_without_its_task(folder: Folder) -> None:
    taxi = folder.id("taxi")
    folder.edit("--rename", taxi, "  Rides to   town ")
    for said in ROUNDS:
        folder.round(said())
        names = {task.id: task.name for task in read_round(folder.path / TASKS).every}
        assert names[taxi] == "Rides to town"
        assert len(set(names.values())) == len(names)


def test_an_excluded_task_is_in_no_data_set_whatever_is_said_until_it_is_included(
    folder: Folder, tmp_path: Path
) -> None:
    taxi = folder.id("taxi")
    folder.edit("--exclude", taxi)
    assert "taxi" not in text_of(dataset(folder.path, tmp_path / "at once"))
    for number, said in enumerate(ROUNDS):
        folder.round(said())
        text = text_of(dataset(folder.path, tmp_path / str(number)))
        assert not any(word in text for word in ("taxi", " cab ", "a ride"))
        assert text.count("play") > 20
        assert [task.id for task in read_round(folder.path / TASKS).tasks if task.excluded] in ([taxi], [])
    folder.edit("--include", taxi)
    folder.round(kinds(0, 80))
    assert "taxi" in text_of(dataset(folder.path, tmp_path / "again"))


def test_a_data_set_has_the_edits_that_are_not_applied_yet_all_of_them(folder: Folder, tmp_path: Path) -> None:
    lamp, music, taxi, weather = (folder.id(kind) for kind in WHAT)
    folder.edit("--merge", music, lamp)
    folder.edit("--rename", lamp, "At home")
    folder.edit("--split", weather)
    folder.edit("--exclude", taxi)
    made = dataset(folder.path, tmp_path / "at once")
    facts = json.loads((made / "card.json").read_bytes())
    names = {task["id"]: task["name"] for task in facts["tasks"]}
    assert (names[lamp], music in names, taxi in names, len(names) > 2) == ("At home", False, False, True)
    cluster(folder.path, embedder=folder.embedder)
    assert dataset(folder.path, tmp_path / "applied").name == made.name


def test_no_data_set_has_an_edit_that_was_undone(folder: Folder, tmp_path: Path) -> None:
    folder.edit("--merge", folder.id("music"), folder.id("lamp"))
    cluster(folder.path, embedder=folder.embedder)
    folder.edit("--undo")
    with pytest.raises(InputError, match=f"undone.*run: fieldlm cluster {folder.path}"):
        dataset(folder.path, tmp_path / "sets")


def text_of(made: Path) -> str:
    return (made / "train.jsonl").read_text()


def test_without_edits_or_with_all_undone_the_tasks_are_as_if_there_had_been_none(folder: Folder) -> None:
    folder.round(kinds(0, 60))
    before = (folder.path / TASKS).read_bytes()
    music = folder.id("music")
    folder.edit("--merge", folder.id("taxi"), music)
    folder.edit("--exclude", music)
    folder.round(kinds(0, 60))
    assert (folder.path / TASKS).read_bytes() != before
    folder.edit("--undo")
    folder.edit("--undo")
    assert not (folder.path / FILE).exists()
    folder.round(kinds(0, 60))
    assert (folder.path / TASKS).read_bytes() == before


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def told(folder: Folder, capsys: pytest.CaptureFixture[str], *asked: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["tasks", str(folder.path), *asked, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_edits_are_seen_before_they_are_applied(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    lamp, taxi = folder.id("lamp"), folder.id("taxi")
    found = told(folder, capsys, "--merge", taxi, lamp)
    assert found["pending"]
    assert {task["id"]: task["examples"] for task in found["tasks"]}[lamp] == 80
    assert [task["state"] for task in found["tasks"] if task["id"] == taxi] == [f"merged into {lamp}"]
    found = told(folder, capsys, "--split", lamp)
    sizes = [task["examples"] for task in found["tasks"] if task["examples"]]
    assert len(sizes) > 3
    assert sum(sizes) == 160
    folder.round(folder.said)
    after = told(folder, capsys)
    assert not after["pending"]
    assert {t["id"]: t["examples"] for t in after["tasks"]} == {t["id"]: t["examples"] for t in found["tasks"]}


def test_a_task_goes_by_its_name_as_well_and_what_is_wrong_is_one_line(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    taxi = folder.id("taxi")
    folder.edit("--rename", taxi, "rides")
    assert told(folder, capsys, "--exclude", "rides")["edits"] == [f"{taxi} is called 'rides'", f"{taxi} is left out"]
    for asked, why in (
        (["--exclude", "rides"], "is left out already"),
        (["--merge", "rides", taxi], "cannot be merged into itself"),
        (["--rename", "nosuch", "x"], "there is no task 'nosuch'"),
        (["--rename", taxi, " "], "is no name"),
    ):
        assert main(["tasks", str(folder.path), *asked]) == 2
        assert why in capsys.readouterr().err
    empty = folder.path.parent / "empty"
    empty.mkdir()
    assert main(["tasks", str(empty)]) == 2
    assert "holds neither tasks nor rounds" in capsys.readouterr().err


def test_no_word_of_few_customers_is_on_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"please dim the lamp in room {number}" for number in range(20)]
    texts += ["please dim the lamp for swordfish"]
    texts += [f"my password is swordfish {number}" for number in range(20)]
    sessions = [*(f"s{number}" for number in range(21)), *["one"] * 20]
    examples = [
        CuratedExample(
            messages=[{"role": "user", "content": text}], answer="Done.", label_source="correction", session=session,
            response=f"r{number}", split="train", device="d",
        )
        for number, (text, session) in enumerate(zip(texts, sessions, strict=True))
    ]  # fmt: skip
    write_examples(tmp_path / "examples.jsonl", examples)
    cluster(tmp_path)
    drawn = tmp_path / "page.html"
    assert main(["tasks", str(tmp_path), "--page", str(drawn)]) == 0
    assert "swordfish" in drawn.read_text()
    capsys.readouterr()
    assert main(["tasks", str(tmp_path), "--least-sessions", "3", "--page", str(drawn)]) == 0
    shown = drawn.read_text() + capsys.readouterr().out
    assert "lamp" in shown
    assert not any(word in shown for word in ("swordfish", "password"))
    cluster(tmp_path, least_sessions=3)
    assert main(["tasks", str(tmp_path), "--page", str(drawn)]) == 0
    assert "swordfish" not in drawn.read_text() + capsys.readouterr().out, "a larger K of cluster counts"


def test_what_customers_said_is_text_on_the_page() -> None:
    hostile = "<script>alert(1)</script>"
    task = ShownTask(
        id="task-1", name=hostile, description=hostile, example=hostile, scenario=hostile, examples=9, share=1.0,
        customers=3, state="",
    )  # fmt: skip
    drawn = page(ShownTasks(tasks=[task], edits=[hostile], pending=True, least_sessions=2))
    assert "<script" not in drawn
    assert drawn.count("&lt;script&gt;") >= 5
    assert "fewer than 2 customers" in drawn


def test_a_bar_on_the_page_is_a_share_of_the_whole() -> None:
    tasks = [
        ShownTask(
            id=f"task-{number}", name="tea", description="", example="", scenario="", examples=9, share=share,
            customers=3, state="",
        )
        for number, share in enumerate((0.2, 0.1))
    ]  # fmt: skip
    drawn = page(ShownTasks(tasks=tasks, edits=[], pending=False, least_sessions=1))
    assert re.findall(r'<rect[^>]* width="([\d.]+)"', drawn) == ["20.00", "10.00"]


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def edits(*each: Sequence[str]) -> TaskEdits:
    return TaskEdits([TaskEdit(kind=kind, task=task, into=into) for kind, task, into in each])  # type: ignore[arg-type]


def test_edits_come_in_their_order() -> None:
    chained = edits(("exclude", "a", ""), ("merge", "a", "b"), ("merge", "b", "c"))
    assert chained.resolve("a") == chained.resolve("b") == "c"
    assert not chained.leaves_out("a"), "what is merged is as what it is merged into"
    assert chained.held == {"c"}
    assert edits(("exclude", "a", ""), ("include", "a", ""), ("exclude", "a", "")).leaves_out("a")


def test_a_new_name_decides_nothing_that_is_learnt() -> None:
    named, split = edits(("rename", "a", "")), edits(("rename", "a", ""), ("exclude", "a", ""))
    assert (named.digest is None, named.deciding_digest) == (False, None)
    assert split.deciding_digest == edits(("exclude", "a", "")).digest


def test_a_file_that_is_none_is_said_so(tmp_path: Path) -> None:
    write_edits(tmp_path, edits(("exclude", "a", "")))
    assert read_edits(tmp_path).excluded == {"a"}
    (tmp_path / FILE).write_text('{"format": "fieldlm.task-edits/9"}')
    with pytest.raises(InputError, match="update fieldlm-compiler"):
        read_edits(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(InputError, match="remove it"):
        read_edits(tmp_path)
