import math
import random

import pytest

from fieldlm_compiler.rounds.advice import advise, wanted
from fieldlm_compiler.rounds.gate import TOGETHER, EarlierTask, chance, compare_tasks, compare_whole, reasons, rejected
from fieldlm_compiler.rounds.state import Exact

PUBLISHED = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
]  # fmt: skip


def task(lost: int, gained: int, same: int, *, changed: int = 0) -> EarlierTask:
    return EarlierTask(
        name="order", pairs=[(True, False)] * lost + [(False, True)] * gained + [(True, True)] * same, changed=changed
    )


def test_the_chance_of_losses_is_that_of_a_coin() -> None:
    assert chance(5, 0) == pytest.approx(1 / 32)
    assert chance(7, 1) == pytest.approx(9 / 256)
    assert chance(0, 0) == 1.0


def test_many_tests_at_once_are_held_to_the_published_rule() -> None:
    """Benjamini and Hochberg 1995, section 3.2: fifteen tests of a trial, of which the first four are rejected."""
    assert rejected({str(at): p for at, p in enumerate(PUBLISHED)}) == {"0", "1", "2", "3"}
    assert rejected({}) == set()


def test_a_task_that_lost_what_chance_does_not_explain_is_named() -> None:
    tests = compare_tasks({"a": task(9, 0, 20), "b": task(2, 3, 40)})
    assert {test.task: test.verdict for test in tests} == {"a": "worse", "b": "held", TOGETHER: "worse"}
    better = compare_whole([(False, True)] * 20)
    (why,) = reasons(tests, better)
    assert why.startswith("a (order) got worse: -31.0 points on 29 held-out examples (9 lost, 0 gained, p = 0.002)")


def test_a_loss_of_less_than_a_point_is_none_however_sure() -> None:
    (test,) = compare_tasks({"a": task(9, 0, 991)})
    assert test.verdict == "held"
    assert test.p < 0.01


def test_few_examples_prove_nothing_alone_but_many_such_tasks_do_together() -> None:
    tests = compare_tasks({str(at): task(2, 0, 2) for at in range(6)})
    assert {test.verdict for test in tests[:-1]} == {"too few to tell"}
    assert (tests[-1].task, tests[-1].verdict, tests[-1].lost) == (TOGETHER, "worse", 12)


def test_a_task_that_is_let_go_by_id_or_name_refuses_nothing() -> None:
    for word in ("a", "order"):
        tests = compare_tasks({"a": task(9, 0, 20)}, let_go=frozenset({word}))
        assert [test.verdict for test in tests] == ["let go"]
    tests = compare_tasks({"a": task(9, 0, 20), "b": task(0, 0, 30)}, let_go=frozenset({"a"}))
    assert {test.task: test.verdict for test in tests} == {"a": "let go", "b": "held", TOGETHER: "held"}


def test_a_task_whose_answers_all_changed_is_not_judged_and_says_so() -> None:
    (test,) = compare_tasks({"a": task(0, 0, 0, changed=12)})
    assert (test.verdict, test.changed, test.examples) == ("too few to tell", 12, 0)


def test_rounds_in_which_nothing_got_worse_are_rarely_refused_however_many_tasks_there_are() -> None:
    rng = random.Random(7)

    def noise() -> EarlierTask:
        """Two generations that are right nine times in ten, each on its own."""
        return EarlierTask(name="", pairs=[(rng.random() < 0.9, rng.random() < 0.9) for _ in range(60)])

    refused = sum(
        any(test.verdict == "worse" for test in compare_tasks({str(at): noise() for at in range(30)}))
        for _ in range(150)
    )
    assert refused <= 0.05 * 150 + 4


def test_the_whole_has_to_be_better_and_not_by_chance() -> None:
    assert compare_whole([(False, True)] * 4 + [(True, True)] * 50).verdict == "held"
    assert compare_whole([(False, True)] * 5 + [(True, True)] * 50).verdict == "better"
    (why,) = reasons([], compare_whole([(True, True)] * 50))
    assert "the whole is not shown to be better" in why


def test_who_takes_a_task_is_told_by_the_ends_of_the_interval() -> None:
    assert advise(Exact(right=20, total=20))[0] == "small"
    assert advise(Exact(right=10, total=20))[0] == "large"
    assert advise(Exact(right=14, total=20))[0] == "large"
    few, why = advise(Exact(right=18, total=20))
    assert few == "too few"
    assert why.startswith("too few examples yet (20 of 62 held out)")
    assert advise(Exact(right=0, total=0))[1].startswith("too few examples yet (0 of 16 held out)")


@pytest.mark.parametrize(("right", "total"), [(0, 0), (18, 20), (9, 10), (5, 5)])
def test_so_many_examples_as_are_wanted_would_do(right: int, total: int) -> None:
    share = right / total if total else 1.0
    count = wanted(Exact(right=right, total=total), 0.8)
    assert count > total
    assert Exact(right=math.ceil(share * count), total=count).score.interval[0] >= 0.8
