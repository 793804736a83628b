"""How fast a generation is beside the one before, on a machine that is not left alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from fieldlm.engines import DEFAULT_TERMS, RunningAnswer, Sampling, Schedule, Timings
from fieldlm.formats.bundle import Bundle
from fieldlm.updates.gates import (
    AGREE,
    MOST_ROUNDS,
    ROUNDS,
    SPEED_TOKENS,
    UnhealthyError,
    check_speed,
    compare,
    is_same_model,
)
from tests.support.update_simulators import EngineSimulator, OneWord, ServingSimulator, several_adapters


class Measured(EngineSimulator):
    """Answers at the speeds that it is told, one after the other; the last one stays."""

    def __init__(self, *speeds: float, first_s: Sequence[float] = (0.1,)) -> None:
        self.speeds = list(speeds)
        self.first_s = list(first_s)
        self.asked = 0

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
    ) -> RunningAnswer:
        answer = OneWord("yes")
        speed = self.speeds[min(self.asked, len(self.speeds) - 1)]
        first_s = self.first_s[min(self.asked, len(self.first_s) - 1)]
        self.asked += 1
        answer.timings = Timings(prefill_s=first_s, completion_tokens=SPEED_TOKENS, decode_s=(SPEED_TOKENS - 1) / speed)
        return answer


Judge = Callable[[Measured, Measured], None]


@pytest.fixture
def judge(base_bundle: Bundle) -> Judge:
    def judge(after: Measured, before: Measured) -> None:
        pair = compare(ServingSimulator(base_bundle, after), ServingSimulator(base_bundle, before))
        assert pair
        check_speed(*pair)

    return judge


def test_three_rounds_are_enough_for_a_machine_that_is_left_alone(judge: Judge) -> None:
    after, before = Measured(60, 61, 60), Measured(74, 73, 74)
    judge(after, before)
    assert after.asked == before.asked == ROUNDS


def test_a_neighbour_that_slows_the_first_rounds_of_one_side_makes_no_release_slow(judge: Judge) -> None:
    judge(Measured(20, 28, 12, 70, 71), Measured(74, 73, 74))


def test_a_neighbour_that_slows_the_first_token_of_the_first_rounds_makes_no_release_slow(judge: Judge) -> None:
    judge(Measured(74, first_s=(0.9, 0.7, 0.42, 0.13, 0.13)), Measured(74, first_s=(0.13,)))
    with pytest.raises(UnhealthyError, match="the first token takes 690 ms, before 130 ms"):
        judge(Measured(74, first_s=(0.9, 0.7, 0.69)), Measured(74, first_s=(0.13,)))


def test_a_slow_release_stays_slow_whatever_the_neighbour_does(judge: Judge) -> None:
    with pytest.raises(UnhealthyError, match=r"21.0 tokens/s, before it were 74.0"):
        judge(Measured(8, 20, 12, 21, 20), Measured(50, 60, 30, 73, 74))


def test_another_map_of_tasks_or_another_router_is_another_model(tmp_path: Path) -> None:
    replace = msgspec.structs.replace
    one = several_adapters(tmp_path / "one", {"all": "all", "tea": "tea"}).manifest
    first, tea = one.task_adapters
    assert is_same_model(one, replace(one, system_prompt="Be brief.", notes={"made": "anew"}))
    assert not is_same_model(one, replace(one, adapters=(first, replace(tea, tasks=("another",)))))
    assert not is_same_model(one, replace(one, adapters=msgspec.UNSET))
    others = [replace(file, sha256="0" * 64) if file.role == "router" else file for file in one.files]
    assert not is_same_model(one, replace(one, files=tuple(others)))
    turned = several_adapters(tmp_path / "turned", {"tea": "tea", "all": "all"}).manifest
    assert not is_same_model(one, turned), "another one answers the rest"


def test_rounds_that_never_agree_come_to_an_end(judge: Judge) -> None:
    restless = Measured(*(10 * (1.1 / AGREE) ** number for number in range(MOST_ROUNDS)))
    with pytest.raises(UnhealthyError):
        judge(restless, Measured(1000))
    assert restless.asked == MOST_ROUNDS
