"""What people's answers say for or against a generation."""

import random
from dataclasses import replace

import pytest

from fieldlm.engines import Timings
from fieldlm.updates.regression_monitor import RegressionMonitor, e_value


def feed(
    watch: RegressionMonitor,
    generation: str,
    *,
    answers: int,
    errors: int = 0,
    speed: float | None = None,
    batch_size: float = 1.0,
) -> None:
    timings = Timings(
        completion_tokens=41 if speed else 1, decode_s=40 / speed if speed else 0.0, batch_size=batch_size
    )
    for number in range(answers):
        outcome = "error" if number < errors else "stop"
        watch.answered(generation, f"{generation}-{number}", outcome, timings)


FORM = Timings(completion_tokens=61, forced_tokens=50, decode_s=1.4)
WORDS = Timings(completion_tokens=61, decode_s=6.0)


def test_three_failed_answers_in_a_row_are_enough_where_none_failed_before() -> None:
    watch = RegressionMonitor()
    feed(watch, "old", answers=50)
    feed(watch, "new", answers=3, errors=3)
    complaint = watch.complaint("new", "old")
    assert complaint
    assert (complaint.reason, complaint.detail[:24]) == ("errors", "3 of 3 answers, before 0")


def test_errors_that_were_usual_before_are_nobodys_fault() -> None:
    watch = RegressionMonitor()
    feed(watch, "old", answers=50, errors=20)
    feed(watch, "new", answers=20, errors=8)
    assert watch.complaint("new", "old") is None


def test_corrections_are_held_against_the_generation_that_was_corrected() -> None:
    watch = RegressionMonitor()
    feed(watch, "old", answers=50)
    feed(watch, "new", answers=10)
    for number in range(5):
        watch.corrected(f"new-{number}")
    watch.corrected("an answer that nobody remembers")
    complaint = watch.complaint("new", "old")
    assert complaint
    assert complaint.reason == "corrections"
    assert watch.complaint("old", "new") is None


@pytest.mark.parametrize(("speed", "reason"), [(9.0, None), (6.0, None), (3.0, "slow")])
def test_people_who_wait_twice_as_long_are_a_complaint(speed: float, reason: str | None) -> None:
    watch = RegressionMonitor()
    feed(watch, "old", answers=20, speed=10.0)
    feed(watch, "new", answers=20, speed=speed)
    complaint = watch.complaint("new", "old")
    assert (complaint.reason if complaint else None) == reason


def test_more_clients_after_an_update_are_not_the_release_s_fault() -> None:
    """Two clients before and eight after: each waits longer, on any release."""
    watch = RegressionMonitor()
    feed(watch, "old", answers=40, speed=48.9, batch_size=1.8)
    feed(watch, "new", answers=200, speed=19.0, batch_size=7.6)
    assert watch.complaint("new", "old") is None
    feed(watch, "new", answers=20, speed=41.0, batch_size=2.1)
    assert watch.complaint("new", "old") is None


def test_a_release_that_is_slow_in_the_same_company_is_found_among_other_answers() -> None:
    watch = RegressionMonitor()
    feed(watch, "old", answers=20, speed=50.0, batch_size=2.0)
    feed(watch, "new", answers=20, speed=12.0, batch_size=2.0)
    feed(watch, "new", answers=200, speed=19.0, batch_size=7.6)
    complaint = watch.complaint("new", "old")
    assert complaint
    assert (complaint.reason, complaint.detail) == ("slow", "12.0 tokens/s for people, before 50.0")


@pytest.mark.parametrize(("before", "after"), [(FORM, WORDS), (WORDS, FORM), (WORDS, replace(FORM, decode_s=5.0))])
def test_what_a_form_forced_is_no_speed(before: Timings, after: Timings) -> None:
    """Sixty tokens, fifty of them the form's: in no time, and at no other speed than sixty words."""
    watch = RegressionMonitor()
    for number in range(8):
        watch.answered("old", f"old-{number}", "stop", before)
        watch.answered("new", f"new-{number}", "stop", after)
    assert watch.complaint("new", "old") is None


def test_a_release_that_is_slow_in_forms_is_found_by_the_tokens_that_it_chose() -> None:
    watch = RegressionMonitor()
    for number in range(8):
        watch.answered("old", f"old-{number}", "stop", FORM)
        watch.answered("new", f"new-{number}", "stop", replace(FORM, forced_tokens=10, decode_s=28.0))
    complaint = watch.complaint("new", "old")
    assert complaint
    assert complaint.detail == "1.8 tokens/s for people, before 7.1"


@pytest.mark.parametrize(("before_c", "after_c", "is_hot"), [(60, 90, True), (90, 91, False), (60, 80, False)])
def test_heat_counts_when_it_came_with_the_generation(before_c: float, after_c: float, *, is_hot: bool) -> None:
    heat_c = [before_c]
    watch = RegressionMonitor(temperature_c=lambda: heat_c[0], throttle_c=80.0)
    watch.begin()
    heat_c[0] = after_c
    complaint = watch.complaint("new", "old")
    assert (complaint is not None and complaint.reason == "hot") is is_hot


def test_a_generation_that_is_no_worse_is_hardly_ever_given_up() -> None:
    dice = random.Random(7)
    given_up = 0
    for _ in range(400):
        hits = 0
        for count in range(1, 200):
            hits += dice.random() < 0.05
            if e_value(hits, count, 0.05) > 1000:
                given_up += 1
                break
    assert given_up <= 2
