"""A round with a classifier beside the model: it is taken where it loses nothing, shipped, and asked in the exam."""

import random
from dataclasses import dataclass

import pytest

from fieldlm.formats.bundle import open_bundle
from fieldlm.inference.classifiers.closed_answers import classify
from fieldlm_compiler.rounds.classifiers import LEAST_WATCHED, WatchedAnswer, compare
from fieldlm_compiler.rounds.state import read_rounds
from tests.rounds.test_rounds import Life, take
from tests.support.usage import Usage, base_model, call


@dataclass(frozen=True)
class Case:
    """How many of the watched answers are right of the classifier alone, of both, and of the model alone."""

    gained: int
    both: int
    lost: int

    def watched(self) -> list[WatchedAnswer]:
        kinds = [(True, False)] * self.gained + [(True, True)] * self.both + [(False, True)] * self.lost
        return [WatchedAnswer(task="t1", right=right, model_right=model_right) for right, model_right in kinds]


@pytest.mark.parametrize(
    ("case", "is_taken", "verdict"),
    [
        (Case(2, 10, 0), True, "taken"),
        (Case(0, LEAST_WATCHED, 0), True, "taken"),
        (Case(1, 10, 1), True, "taken"),
        (Case(1, 10, 2), False, "the model is better"),
        (Case(0, LEAST_WATCHED - 1, 0), False, "too few to tell"),
        (Case(0, 0, 0), False, "too few to tell"),
    ],
)
def test_it_is_taken_where_it_loses_no_more_than_it_gains(case: Case, is_taken: bool, verdict: str) -> None:
    found = compare("t1", "lights", 4, case.watched(), ms=0.31, model_ms=210.4)
    assert (found.is_taken, found.given) == (is_taken, len(case.watched()))
    assert found.reason.startswith(f"{verdict}: 4 answers; of {len(case.watched())} watched request")
    assert found.reason.endswith("0.3 ms, the model 210 ms")
    assert (found.right, found.model_right) == (case.gained + case.both, case.both + case.lost)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("closed")
    base_model(folder / "base")
    life = Life(folder, Usage(folder / "store"))
    said = [each for task in ("order", "hours", "book") for each in take(task, 0, 70)]
    # Of these customers six to watch and more ask for each task.
    life.usage.customers(random.Random(2).sample(said, len(said)), prefix="one")
    for name in ("best", "none"):
        life.run(name, "--from", "fresh", "--classifiers", name)
    return life


def test_tasks_with_one_answer_each_get_a_classifier_and_the_bundle_has_it(life: Life) -> None:
    told = life.told["best"]
    assert told.code == 0, told.answer["reasons"]
    bundle = open_bundle(life.rounds / "0001" / "bundle")
    made = bundle.classifier
    assert made is not None, told.answer["classified"]
    taken = {each["id"] for each in told.answer["classifiers"] if each["is_taken"]}
    assert made.tasks == taken
    assert taken, told.answer["classifiers"]
    names = {row["id"]: row["name"].partition(":")[0] for row in told.answer["tasks"]}
    said = {"order": "please bring a latte again", "hours": "say sunday hours now", "book": "book a table please"}
    found = [classify(bundle, [{"role": "user", "content": said[names[task]]}]) for task in sorted(taken)]
    assert [each.answer.text for each in found if each] == [call(names[task]) for task in sorted(taken)]
    assert told.answer["this"]["share"] > 0.9, "the exam asks the classifier, too"
    assert told.answer["classified"].startswith(f"answers {len(taken)} task")


def test_the_report_and_the_terminal_say_what_came_of_it(life: Life) -> None:
    (first, second) = read_rounds(life.rounds)
    page = (first.folder / "report.html").read_text()
    assert "A classifier beside the model" in page
    assert first.document.classified in page
    assert (second.document.classified, second.document.classifiers) == ("", [])
    assert "A classifier beside the model" not in (second.folder / "report.html").read_text()


def test_what_was_made_for_one_choice_is_not_made_again_for_the_other(life: Life) -> None:
    tuned = [{name for name in life.told[run].stages if name.startswith("tune-")} for run in ("best", "none")]
    assert tuned[0] == tuned[1]
    assert open_bundle(life.rounds / "0002" / "bundle").classifier is None
