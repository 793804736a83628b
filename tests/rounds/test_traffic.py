"""Which task a request belongs to, what a task costs, and when a round is due."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.cluster import cluster
from fieldlm_compiler.learn.curate import curate
from fieldlm_compiler.learn.curated import CuratedExample, read_examples
from fieldlm_compiler.rounds.state import Exact, Mark, TaskCost
from fieldlm_compiler.rounds.traffic import Traffic, look, risen_tasks, seen
from tests.support.usage import CONSENT, Usage, sentences


def take(task: str, start: int, stop: int) -> list[tuple[str, str]]:
    return [(said, task) for said in itertools.islice(sentences(task), start, stop)]


def begun(folder: Path) -> tuple[Usage, list[CuratedExample]]:
    """Fill a store with three tasks and return what they are found to be."""
    made = Usage(folder / "store")
    said = [each for task in ("order", "book", "hours") for each in take(task, 0, 40)]
    made.customers(random.Random(1).sample(said, len(said)), prefix="a")
    curate(folder / "store", folder / "out", consents=(CONSENT,))
    cluster(folder / "out")
    return made, read_examples(folder / "out")


def looked(
    folder: Path, examples: Sequence[CuratedExample], since: Sequence[Mark] = (), consents: Sequence[str] = (CONSENT,)
) -> Traffic:
    with open_sink(str(folder / "store"), read_only=True) as sink:
        return look(sink, examples, consents, since=since)


def marks(folder: Path) -> list[Mark]:
    with open_sink(str(folder / "store"), read_only=True) as sink:
        return seen(sink)


def test_requests_that_nobody_labelled_go_to_the_task_they_sound_like(tmp_path: Path) -> None:
    made, examples = begun(tmp_path)
    since = marks(tmp_path)
    made.customers(take("order", 40, 70), prefix="b", corrected=False, answer='{"name": "order"}', route="large")
    found = looked(tmp_path, examples, since)
    of = {example.task for example in examples if '"order"' in example.answer}
    assert found.requests == 30
    assert found.unknown <= 5
    assert sum(found.costs[task].large for task in of) >= 25


def test_a_new_kind_of_request_belongs_to_no_task(tmp_path: Path) -> None:
    made, examples = begun(tmp_path)
    since = marks(tmp_path)
    made.customers(take("lights", 0, 40), prefix="b", answer='{"name": "order"}', corrected=False)
    assert looked(tmp_path, examples, since).unknown >= 36, "though the model takes it for an order"


def test_costs_are_counted_by_who_answered(tmp_path: Path) -> None:
    made, examples = begun(tmp_path)
    since = marks(tmp_path)
    for route in ("", "kiosk", "large", "Escalated", "cloud"):
        made.customers(take("book", 40, 44), prefix=f"b{route}", route=route, prompt_tokens=10, completion_tokens=3)
    (cost,) = looked(tmp_path, examples, since).costs.values()
    assert cost == TaskCost(
        calls=20, prompt_tokens=200, completion_tokens=60, small=8, large=4, escalated=8, corrected=20
    )


def test_corrections_whose_words_are_not_there_are_counted(tmp_path: Path) -> None:
    made, examples = begun(tmp_path)
    since = marks(tmp_path)
    made.customers(take("book", 40, 44), prefix="b", worded=False)
    (cost,) = looked(tmp_path, examples, since).costs.values()
    assert (cost.calls, cost.corrected) == (4, 4)


def test_words_without_a_listed_term_are_counted_and_not_read(tmp_path: Path) -> None:
    made, examples = begun(tmp_path)
    made.customers(take("lights", 0, 10), prefix="b", consent="other")
    made.customers(take("lights", 10, 14), prefix="c", prompt="")
    found = looked(tmp_path, examples, marks(tmp_path)[:0])
    assert (found.requests, found.unread, found.read) == (134, 14, 120)
    assert looked(tmp_path, examples, consents=()).read == 0


def test_a_task_has_risen_when_it_is_corrected_more_than_it_was_wrong() -> None:
    costs = {"a": TaskCost(calls=100, corrected=30), "b": TaskCost(calls=100, corrected=6), "c": TaskCost(calls=9)}
    found = Traffic(requests=209, unread=0, unknown=0, costs=costs)
    foreseen = {"a": Exact(right=48, total=50), "b": Exact(right=48, total=50)}
    risen = risen_tasks(found, foreseen, {"a": "order"})
    assert risen == {"a": "order: 30 of 100 corrected, 2 of 50 were wrong on held-out examples"}
