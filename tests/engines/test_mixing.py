"""Which answers share a step where llama.cpp can mix adapters."""

from typing import Any, cast

from fieldlm.engines.prompt_lookup import MOST_ROWS
from fieldlm.engines.sequences.mixing import MIXED, Group, mixed
from fieldlm.engines.sequences.slots import Slot


class _Asked:
    """A request of which `count` tokens were said."""

    def __init__(self, count: int) -> None:
        self.count = count


BARISTA, WAITER = cast(Any, object()), cast(Any, object())


def slot(sequence: int, *, said: int = 1, pending: int = 1) -> Slot:
    return Slot(sequence, pending=[0] * pending, request=cast(Any, _Asked(said)))


def test_answers_with_several_adapters_share_a_step() -> None:
    groups: dict[Group, list[Slot]] = {
        (BARISTA, None): [slot(0), slot(1, pending=3)],
        (WAITER, None): [slot(2)],
        (None, None): [slot(3)],
    }
    assert mixed(groups) == {MIXED: [each for slots in groups.values() for each in slots]}


def test_prompts_stay_with_their_adapter() -> None:
    prompt = slot(3, said=0, pending=200)
    groups: dict[Group, list[Slot]] = {(BARISTA, None): [slot(0), prompt], (WAITER, None): [slot(1)]}
    found = mixed(groups)
    assert [each.sequence for each in found.pop(MIXED)] == [0, 1]
    assert found == {(BARISTA, None): [prompt]}


def test_what_is_computed_alone_stays_alone() -> None:
    alone = slot(2)
    groups: dict[Group, list[Slot]] = {(BARISTA, None): [slot(0)], (WAITER, 2): [alone]}
    assert mixed(groups) == groups
    groups[(None, None)] = [slot(1)]
    assert mixed(groups)[(WAITER, 2)] == [alone]


def test_no_more_tokens_come_together_than_a_step_has_rows() -> None:
    groups: dict[Group, list[Slot]] = {(BARISTA, None): [slot(0, pending=MOST_ROWS)], (WAITER, None): [slot(1)]}
    assert mixed(groups) == groups
