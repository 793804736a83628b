"""Whose turn it is: nobody starves, and who gives way costs the others little."""

from collections import Counter

from fieldlm.engines.fair_share import STEPS, STEPS_AHEAD, STEPS_BEHIND, FairShare


def served(groups: dict[str, bool], steps: int) -> list[str]:
    turns = FairShare[str]()
    return [turns.next(groups) for _ in range(steps)]


def test_one_group_has_every_step() -> None:
    assert served({"base": False}, 100) == ["base"] * 100
    assert served({"base": True}, 100) == ["base"] * 100


def test_equals_take_turns_of_several_steps() -> None:
    rounds = served({"one": False, "two": False, "three": False}, 6 * STEPS)
    assert rounds == (["one"] * STEPS + ["two"] * STEPS + ["three"] * STEPS) * 2


def test_who_gives_way_comes_on_and_costs_the_others_little() -> None:
    steps = 10 * (STEPS_AHEAD + STEPS_BEHIND)
    rounds = served({"people": False, "probe": True}, steps)
    assert Counter(rounds) == {"people": 10 * STEPS_AHEAD, "probe": 10 * STEPS_BEHIND}
    longest = max(len(run) for run in "".join("x" if who == "probe" else " " for who in rounds).split())
    assert longest == STEPS_BEHIND


def test_two_that_give_way_both_come_on() -> None:
    rounds = served({"people": False, "probe": True, "measured": True}, 10 * (STEPS_AHEAD + STEPS_BEHIND))
    assert Counter(rounds)["probe"] == Counter(rounds)["measured"] == 5 * STEPS_BEHIND


def test_two_adapters_of_people_both_come_on_beside_who_gives_way() -> None:
    count = Counter(served({"one": False, "two": False, "probe": True}, 30 * (STEPS_AHEAD + STEPS_BEHIND)))
    assert count["probe"] == 30 * STEPS_BEHIND
    assert abs(count["one"] - count["two"]) <= STEPS_AHEAD


def test_who_comes_first_again_does_not_wait_for_the_turn_of_one_that_gives_way() -> None:
    turns = FairShare[str]()
    for _ in range(STEPS):
        turns.next({"probe": True})
    assert turns.next({"probe": True, "people": False}) == "people"
