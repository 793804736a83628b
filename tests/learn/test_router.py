"""A router fitted to examples: it knows its tasks in other words, and what is none of them."""

from itertools import product
from pathlib import Path

import pytest

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.router import fit_router, write_router


def said(*parts: str) -> list[str]:
    """Return every way to go on from each of the first part's phrases with each of the next one's."""
    return [" ".join(phrases) for phrases in product(*(part.split(", ") for part in parts))]


ORDERS = said("i want, give me, could i have", "one, two, three", "tea, coffee, cake, water")
BILLS = said(
    "how much is, what do i owe for, bring me the bill for, i would pay",
    "this, my table, the drinks, all of us, everything, table four, lunch, dinner, both",
)
HOURS = said(
    "are you open, when do you close, until when can we come",
    "on sunday, today, tomorrow, on monday, at night, in summer, on holidays, this week",
)
TASKS = {"order": ORDERS, "bill": BILLS, "hours": HOURS}
TEXTS = [text for texts in TASKS.values() for text in texts]
NAMES = [task for task, texts in TASKS.items() for _ in texts]


def test_it_knows_its_tasks_in_other_words() -> None:
    router = fit_router(TEXTS, NAMES, {"order": "take an order"})
    asked = {"two coffees for me": "order", "what do we owe you": "bill", "do you close on friday": "hours"}
    assert {text: router.tasks[int(router.chances(text).argmax())] for text in asked} == asked
    assert router.name("order") == "take an order"
    assert router.name("bill") == "bill"


def test_most_known_requests_are_known_and_strange_ones_are_not() -> None:
    router = fit_router(TEXTS, NAMES, {})
    assert sum(router.task(text) is None for text in TEXTS) / len(TEXTS) < 0.15
    strange = ["sing a song about whales", "42 + 17", "el tiempo en Madrid", "reboot yourself", "asdf qwer"]
    assert [router.task(text) for text in strange] == [None] * len(strange)


def test_the_same_examples_give_the_same_bytes() -> None:
    assert fit_router(TEXTS, NAMES, {}).packed() == fit_router(TEXTS, NAMES, {}).packed()


def test_two_tasks_are_enough_and_one_is_not() -> None:
    router = fit_router(ORDERS + BILLS, ["order"] * len(ORDERS) + ["bill"] * len(BILLS), {})
    assert router.task("two teas please, i want two tea") == "order"
    with pytest.raises(InputError, match="two tasks"):
        fit_router(ORDERS, ["order"] * len(ORDERS), {})


def test_where_nothing_is_to_be_told_apart_no_router_is_left(tmp_path: Path) -> None:
    path = tmp_path / "router.npz"
    assert write_router(path, TEXTS, NAMES, {})
    assert path.exists()
    assert not write_router(path, ORDERS, ["order"] * len(ORDERS), {})
    assert not path.exists()
