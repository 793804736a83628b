"""Five rounds of a small device's life, really learned: it begins, a task is new, one changes its answer by agreement,
one vanishes with all who asked for it, and at last somebody poisons it. A round is better, or it is not shipped."""

import contextlib
import io
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fieldlm.cli.main import main
from fieldlm.formats.bundle import open_bundle
from fieldlm_compiler.learn.curated import read_examples
from fieldlm_compiler.repository.publish import newest_release
from fieldlm_compiler.rounds.gate import MARGIN, TOGETHER
from fieldlm_compiler.rounds.sealed import words
from tests.support.usage import CONSENT, WORDS, Usage, base_model, sentences

PROFILE = "generic-x86-64-avx2"
AS_CTRL_C = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from fieldlm.__main__ import main; sys.exit(main())"
)
LEADS = ("please", "could you", "i want you to", "hello", "hey", "now", "today", "just")
CHANGED = {"sunday", "times", "close"}
SHIPPED = ("first", "new task", "changed", "vanished")
ENDS = ("now", "today", "again", "for me", "quickly", "please", "and thanks")


@dataclass
class Told:
    """What a run of the command said, how it ended, and which stages were finished then."""

    code: int
    answer: dict[str, Any]
    log: str
    stages: dict[str, int]


@dataclass
class Life:
    """A store, its rounds, and what each run said."""

    folder: Path
    usage: Usage
    told: dict[str, Told] = field(default_factory=dict[str, Told])
    watched: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def rounds(self) -> Path:
        return self.folder / "rounds"

    def command(self, *more: str) -> list[str]:
        folder = self.folder
        asked = [
            "round",
            str(folder / "store"),
            "--base",
            str(folder / "base"),
            "--profile",
            PROFILE,
            "--quant",
            "Q8_0",
        ]
        asked += ["--out", str(self.rounds), "--consent", CONSENT, "--keys", str(folder / "keys"), "--json"]
        asked += ["--epochs", "20", "--learning-rate", "3e-3", "--eval-share", "0.3", "--precision", "float32"]
        return [*asked, *more]

    def run(self, name: str, *more: str) -> Told:
        out, log = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(log):
            code = main(self.command(*more))
        self.told[name] = Told(code, json.loads(out.getvalue()), log.getvalue(), self.stages())
        return self.told[name]

    def stages(self) -> dict[str, int]:
        """Return the finished stages and when each was."""
        return {path.parent.name: path.stat().st_mtime_ns for path in (self.rounds / ".work").glob("*/stage.json")}

    def say(self, said: Sequence[tuple[str, str]], prefix: str, **more: Any) -> None:
        self.usage.customers(random.Random(2).sample(said, len(said)), prefix=prefix, **more)


def take(task: str, start: int, stop: int) -> list[tuple[str, str]]:
    return [(said, task) for said in itertools.islice(sentences(task), start, stop)]


def interrupt(life: Life) -> None:
    """Begin the first round, and press Ctrl-C while it tunes."""
    log = life.folder / "first.log"
    with log.open("w") as file:
        child = subprocess.Popen([sys.executable, "-c", AS_CTRL_C, *life.command()], stdout=file, stderr=file)
    while "▸ tune" not in log.read_text():
        assert child.poll() is None, log.read_text()
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.wait(120) == 130, log.read_text()
    life.told["stopped"] = Told(130, {}, log.read_text(), life.stages())


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    base_model(folder / "base")
    life = Life(folder, Usage(folder / "store"))
    life.say([each for task in ("order", "hours") for each in take(task, 0, 60)], "first")
    life.say(take("book", 0, 60), "booker")
    interrupt(life)
    assert not (life.rounds / "0001").exists()
    life.run("first", "--publish", str(folder / "repository"))
    life.run("again")
    life.say(take("lights", 0, 60), "new")
    life.watched = rounds_command(life)["watch"]
    life.run("new task", "--from", "last")
    # A part of what was said before is answered otherwise now, by more people.
    others = [(said, "music") for said, _ in take("hours", 0, 60) if CHANGED & set(said.split())]
    for crowd in ("other", "third"):
        life.say(others, crowd)
    # Gently: at the usual rate here, how much of it is learned is chance.
    life.run("changed", "--from", "last", "--learning-rate", "1e-3", "--epochs", "40")
    # Nobody books any more, and all who did ask to be forgotten; something else is asked for.
    life.usage.forget(*(f"booker{at}" for at in range(30)))
    life.say(take("music", 0, 60), "player")
    life.run("vanished", "--from", "last")
    # Many people who want to hurt one task, in other wordings, so that nobody has a vote on what they say.
    wordings = [" ".join(each) for each in itertools.product(LEADS, WORDS["order"], ENDS)]
    honest = {said for said, _ in take("order", 0, 70)}
    poison = [(said, "lights") for said in random.Random(4).sample(wordings, 120) if said not in honest]
    life.say(poison, "hostile")
    edit(life, "--rename", by_name(life.told["vanished"])["lights"]["id"], "lights: what is to be dimmed")
    edit(life, "--exclude", by_name(life.told["vanished"])["hours"]["id"])
    life.run("poisoned", "--from", "fresh")
    return life


def edit(life: Life, *asked: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["tasks", str(life.rounds), *asked]) == 0


def rounds_command(life: Life) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["rounds", str(life.rounds), "--store", str(life.folder / "store"), "--json"]) == 0
    return json.loads(out.getvalue())


def by_name(told: Told) -> dict[str, dict[str, Any]]:
    return {row["name"].partition(":")[0]: row for row in told.answer["tasks"]}


def test_the_first_round_learns_and_is_accepted_and_published(life: Life) -> None:
    told = life.told["first"]
    assert told.code == 0
    assert told.answer["decision"] == "accepted"
    assert "base_choice" not in told.answer
    assert told.answer["base"]["share"] < 0.8
    assert told.answer["this"]["share"] > 0.9
    rows = by_name(told)
    assert rows.keys() == {"order", "book", "hours"}
    assert {row["advice"] for row in rows.values()} <= {"small", "too few"}
    assert "small" in {row["advice"] for row in rows.values()}
    for row in rows.values():
        assert row["cost"] == {
            "calls": 60, "prompt_tokens": 1800, "completion_tokens": 480, "small": 60, "large": 0, "escalated": 0,
            "corrected": 60,
        }  # fmt: skip
        assert row["share"] == pytest.approx(1 / 3, abs=1e-3)
    release = newest_release(life.folder / "repository", PROFILE)
    assert release is not None
    assert release.bundle == open_bundle(life.rounds / "0001" / "bundle").id
    assert "fieldlm rollout start" in told.answer["next"]


def test_nobody_else_on_the_machine_sees_into_the_rounds(life: Life) -> None:
    folders = (life.rounds, life.rounds / ".work", life.rounds / "0001")
    assert [path.name for path in folders if path.stat().st_mode & 0o077] == []


def test_a_round_that_was_stopped_goes_on_where_it_was(life: Life) -> None:
    stopped, first = life.told["stopped"], life.told["first"]
    assert "run the same command again to go on" in stopped.log
    assert {name.partition("-")[0] for name in stopped.stages} == {"curate", "tasks", "dataset", "base"}
    assert stopped.stages.items() <= first.stages.items(), "what was finished is not made again"
    assert "base: taken from the cache" in first.log


def test_an_unchanged_store_makes_no_new_round_and_runs_no_stage(life: Life) -> None:
    first, again = life.told["first"], life.told["again"]
    assert "nothing is new since round 1" in again.log
    assert again.stages == first.stages
    assert {name: value for name, value in again.answer.items() if name != "next"} == {
        name: value for name, value in first.answer.items() if name != "next"
    }


def test_every_round_that_is_shipped_is_better_and_no_task_of_it_loses_more_than_one_example(life: Life) -> None:
    for number, name in enumerate(SHIPPED, 1):
        told = life.told[name]
        assert told.code == 0, told.answer["reasons"]
        assert told.answer["decision"] == "accepted"
        before = told.answer.get("previous") or told.answer["base"]
        assert told.answer["this"]["share"] > before["share"] + 0.05
        assert told.answer["parent"] == (number - 1 or None)
        whole, *tasks = told.answer["tests"]
        assert whole["verdict"] == "better"
        assert {test["verdict"] for test in tasks} <= {"held", "too few to tell"}
        # One example of ten is more than a point, and so few as this that no gate tells it from chance.
        alone = [test for test in tasks if test["task"] != TOGETHER]
        assert all(test["lost"] - test["gained"] <= max(1, MARGIN * test["examples"]) for test in alone), tasks


def test_a_new_task_is_learned_and_nothing_is_forgotten(life: Life) -> None:
    told = life.told["new task"]
    assert told.answer["tune"]["began_at"] == "last"
    rows = by_name(told)
    assert rows["lights"]["previous"]["share"] < 0.2
    assert rows["lights"]["this"]["share"] > 0.8
    ids = {name: row["id"] for name, row in by_name(life.told["first"]).items()}
    assert {name: rows[name]["id"] for name in ids} == ids


def test_an_answer_that_people_agree_to_change_is_learned_and_is_no_loss(life: Life) -> None:
    told = life.told["changed"]
    rows = by_name(told)
    assert rows["music"]["this"]["share"] > rows["music"]["previous"]["share"] + 0.5
    tests = {test["name"].partition(":")[0]: test for test in told.answer["tests"]}
    assert tests["hours"]["changed"] > 0, "what people answer otherwise now is no loss"


def test_a_task_that_vanished_waits_with_its_id_and_judges_nothing(life: Life) -> None:
    told = life.told["vanished"]
    book = by_name(life.told["first"])["book"]["id"]
    assert "book" not in by_name(told)
    assert book not in {test["task"] for test in told.answer["tests"]}
    retired = json.loads((life.rounds / "0004" / "examples" / "tasks.json").read_bytes())["retired"]
    assert [task["id"] for task in retired if not task["merged_into"]] == [book]
    assert "booker" not in (life.rounds / "0004" / "examples" / "examples.jsonl").read_text()


def test_what_people_edit_holds_in_the_next_round_and_stands_in_its_report(life: Life) -> None:
    hours, lights = (by_name(life.told["vanished"])[name]["id"] for name in ("hours", "lights"))
    told = life.told["poisoned"]
    rows = {row["id"]: row for row in told.answer["tasks"]}
    assert rows[lights]["name"] == "lights: what is to be dimmed"
    assert (rows[hours]["advice"], rows[hours]["this"]["total"]) == ("left out", 0)
    assert rows[hours]["cost"]["calls"] > 0, "it is still asked for"
    fifth = life.rounds / "0005"
    assert hours not in {each["task"] for each in json.loads((fifth / "held_out.json").read_bytes())}
    lines = [line for path in (fifth / "dataset").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert hours not in {json.loads(line)["task"] for line in lines}
    assert lights in {json.loads(line)["task"] for line in lines}
    report = (fifth / "report.html").read_text()
    assert f"{hours} is left out" in report
    assert "none of its" in report


def test_held_out_customers_stay_held_out_and_their_words_are_never_trained_on(life: Life) -> None:
    splits: dict[str, set[str]] = {}
    for number in range(1, 6):
        examples = read_examples(life.rounds / f"{number:04d}" / "examples")
        for example in examples:
            splits.setdefault(words(example), set()).add(example.split)
        held = {example.session for example in examples if example.split == "eval"}
        lines = (life.rounds / f"{number:04d}" / "dataset").glob("*.jsonl")
        trained = {json.loads(line)["session"] for path in lines for line in path.read_text().splitlines()}
        assert not held & trained
    assert all(len(found) == 1 for found in splits.values())
    assert json.loads((life.rounds / "0003" / "round.json").read_bytes())["sealed"]["held out before, stays so"] > 0


def test_a_poisoned_task_is_refused_by_name_and_everything_is_kept_for_looking(life: Life) -> None:
    told = life.told["poisoned"]
    assert told.code == 1
    assert told.answer["decision"] == "refused"
    order = by_name(life.told["first"])["order"]["id"]
    assert any(why.startswith(f"{order} (order") and "got worse" in why for why in told.answer["reasons"])
    assert not any("lights" in why.partition("got worse")[0].partition(":")[0] for why in told.answer["reasons"])
    kept = {path.name for path in (life.rounds / "0005").iterdir()}
    assert kept >= {"adapter", "bundle", "dataset", "examples", "held_out.json", "report.html", "round.json"}
    assert "next" not in told.answer


def test_a_round_is_due_when_new_kinds_of_requests_come(life: Life) -> None:
    found = life.watched
    assert found["is_due"]
    assert found["unknown"] >= 50, "the new task"
    assert "belong to no known task" in found["why"]
    now = rounds_command(life)
    assert not now["watch"]["is_due"]
    assert [each["decision"] for each in now["rounds"]] == [*["accepted"] * 4, "refused"]


def test_the_same_round_made_again_from_finished_stages_is_the_same_to_the_byte(life: Life, tmp_path: Path) -> None:
    last = life.rounds / "0005"
    before = {path.relative_to(last): path.read_bytes() for path in last.rglob("*") if path.is_file()}
    shutil.move(last, tmp_path / "aside")
    told = life.run("last again", "--from", "fresh")
    assert told.stages == life.told["poisoned"].stages
    assert {path.relative_to(last): path.read_bytes() for path in last.rglob("*") if path.is_file()} == before


def test_another_share_of_held_out_customers_is_refused(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(life.command("--eval-share", "0.2")) == 2
    assert "add --eval-share 0.3" in capsys.readouterr().err


def test_a_task_that_is_let_go_has_to_be_there(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(life.command("--let-go", "nosuch")) == 2
    assert "--let-go 'nosuch': the last accepted round has no such task" in capsys.readouterr().err


def test_words_of_who_is_forgotten_are_found_in_the_rounds_and_taken_out(
    life: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last test: it changes the store and the rounds."""
    store = str(life.folder / "store")
    example = next(each for each in read_examples(life.rounds / "0004" / "examples") if each.split == "train")
    life.usage.forget(example.session)
    assert main(["tainted", store, str(life.rounds), "--rebuild", "--json"]) == 1, "weights cannot be rebuilt"
    found = json.loads(capsys.readouterr().out)["tainted"]
    assert {each["kind"] for each in found} == {"examples", "data set", "adapter", "bundle"}
    sessions = {
        each.session for number in range(1, 6) for each in read_examples(life.rounds / f"000{number}" / "examples")
    }
    assert example.session not in sessions
    left = "".join(path.read_text() for path in life.rounds.rglob("*.jsonl"))
    assert f'"{example.session}"' not in left
    assert len(rounds_command(life)["rounds"]) == 5
