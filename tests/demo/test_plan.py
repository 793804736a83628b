"""How long the story is said to take."""

from dataclasses import asdict, replace

import pytest

from fieldlm_compiler.demo.plan import PRODUCTS, MachineSpeed, foresee, measure
from fieldlm_compiler.demo.size import QUICK, StorySize
from fieldlm_compiler.demo.story import Story

SPEED = MachineSpeed(plain=100.0, tuning=100.0)


def test_every_stage_is_foreseen() -> None:
    seconds = foresee(asdict(StorySize()), 1700, SPEED, is_compiled=True)
    assert {*seconds} == {"compile", "before", "traffic", "home", "learn", "tune", "adapter", "update", "after"}
    assert all(each > 0 for each in seconds.values())
    assert set(seconds) <= set(Story.tell.__code__.co_consts), "these are the names of the stages"


def test_half_the_speed_is_twice_the_time_and_bfloat16_is_for_products_of_tuning() -> None:
    size = asdict(StorySize())
    one, slow = (foresee(size, 1700, each, is_compiled=True) for each in (SPEED, MachineSpeed(plain=50.0, tuning=50.0)))
    assert slow == {name: 2 * seconds for name, seconds in one.items()}
    fast = foresee(size, 1700, replace(SPEED, tuning=400.0), is_compiled=True)
    assert fast == one | {"tune": pytest.approx(one["tune"] * (1 - PRODUCTS + PRODUCTS / 4))}


def test_less_to_do_takes_less() -> None:
    whole = foresee(asdict(StorySize()), 1700, SPEED, is_compiled=False)
    assert sum(foresee(asdict(QUICK), 340, SPEED, is_compiled=True).values()) < sum(whole.values()) / 3
    twice = foresee(asdict(StorySize(epochs=2 * StorySize.epochs)), 1700, SPEED, is_compiled=False)
    assert twice["tune"] > 1.9 * whole["tune"]


def test_a_machine_is_measured() -> None:
    speed = measure()
    assert speed.tuning >= speed.plain > 0.0
