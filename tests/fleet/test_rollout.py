"""Waves, and the test that stops them."""

import itertools
import math
import random

import pytest

from fieldlm.formats.release import place
from fieldlm_compiler.fleet.waves import (
    HARMS,
    WAVES,
    DeviceVitals,
    EvidenceBlock,
    JudgedCount,
    Rollout,
    RolloutPlan,
    Trouble,
    judge,
    log_e,
)

DEVICES = [f"device-{number}" for number in range(20_000)]


def block(updated: tuple[int, int], control: tuple[int, int]) -> EvidenceBlock:
    """Return a block of (devices, of them in trouble) in each group."""
    made = EvidenceBlock()
    for count, (devices, bad) in ((made.updated, updated), (made.control, control)):
        for number in range(devices):
            count.add("errors" if number < bad else "fine")
    return made


def test_a_wave_holds_its_share_of_each_profile_and_no_control() -> None:
    plan = RolloutPlan(salt="7", sizes={"pi": len(DEVICES), "rare": 50})
    for wave, share in enumerate(WAVES[:-1]):
        groups = [plan.group(device, "pi", wave) for device in DEVICES]
        assert groups.count("updated") / len(DEVICES) == pytest.approx(share, rel=0.4)
        assert groups.count("control") > 0
    assert plan.share("rare", 0) == 0.5
    assert {plan.group(device, "pi", len(WAVES)) for device in DEVICES} == {"updated"}


def test_a_wave_is_compared_with_devices_that_none_was_compared_with_before() -> None:
    plan = RolloutPlan(salt="7", sizes={"pi": len(DEVICES)})
    waves = [
        {device for device in DEVICES if plan.group(device, "pi", wave) == "control"} for wave in range(len(WAVES))
    ]
    assert len(set[str]().union(*waves)) == sum(map(len, waves)) == pytest.approx(0.05 * len(DEVICES), rel=0.2)
    assert len(waves[0]) == pytest.approx(0.025 * len(DEVICES), rel=0.2)


def test_nobody_leaves_a_wave_again() -> None:
    plan = RolloutPlan(salt="7", sizes={"pi": len(DEVICES)})
    for device in DEVICES[:500]:
        seen = [plan.group(device, "pi", wave) == "updated" for wave in range(len(WAVES) + 1)]
        assert seen == sorted(seen)


def test_another_release_has_other_first_devices() -> None:
    first = {salt: sorted(DEVICES, key=lambda device: place(device, salt))[:100] for salt in ("1", "2")}
    assert len(set(first["1"]) & set(first["2"])) < 10


@pytest.mark.parametrize(
    ("after", "is_rolled_back", "trouble"),
    [
        (DeviceVitals(errors=0.01, tokens_per_s=6.0), False, "fine"),
        (DeviceVitals(errors=0.01, tokens_per_s=4.4), False, "slow"),
        (DeviceVitals(errors=0.07, tokens_per_s=10.0), False, "errors"),
        (DeviceVitals(errors=0.00, tokens_per_s=10.0), True, "rolled-back"),
        (None, False, "silent"),
        (None, True, "rolled-back"),
    ],
)
def test_a_device_is_judged_against_itself(after: DeviceVitals | None, is_rolled_back: bool, trouble: Trouble) -> None:
    assert judge(DeviceVitals(errors=0.01, tokens_per_s=10.0), after, is_rolled_back=is_rolled_back) == trouble


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("usual", [0.01, 0.3])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 7), (9, 3)])
def test_without_harm_the_expected_evidence_is_at_most_one(harm: float, usual: float, sizes: tuple[int, int]) -> None:
    for true, relief in itertools.product((0.0, 0.01, 0.1, 0.5, 1.0), (0.0, 0.3)):
        updates, controls = sizes
        worth = 0.0
        for u, c in itertools.product(range(updates + 1), range(controls + 1)):
            chance = _binomial(updates, u, true * (1 - relief)) * _binomial(controls, c, true)
            worth += chance * math.exp(log_e(block((updates, u), (controls, c)), usual, harm))
        assert worth <= 1 + 1e-9


def _binomial(count: int, hits: int, share: float) -> float:
    return math.comb(count, hits) * share**hits * (1 - share) ** (count - hits)


def test_a_harmless_release_reaches_everybody() -> None:
    plan = RolloutPlan(salt="7", sizes={"pi": 1000, "jetson": 1000})
    rollout = Rollout(plan)
    actions = [
        rollout.see({"pi": block((100, 2), (100, 3)), "jetson": block((100, 1), (100, 0))}, is_wave_over=True).action
        for _ in range(len(WAVES) + 1)
    ]
    assert actions == ["advance"] * len(WAVES) + ["done"]


def test_a_release_that_is_bad_for_one_profile_is_paused_there_with_the_evidence() -> None:
    rollout = Rollout(RolloutPlan(salt="7", sizes={"pi": 1000, "jetson": 1000}))
    decision = rollout.see({"pi": block((10, 0), (50, 1)), "jetson": block((10, 8), (50, 1))}, is_wave_over=False)
    assert (decision.action, decision.wave, decision.revert) == ("pause", 0, ("jetson",))
    (bad,) = [each for each in decision.evidence if each.is_harm]
    assert (bad.updated, bad.updated_bad, bad.control, bad.control_bad) == (10, 8, 50, 1)
    assert bad.troubles == {"errors": 8}
    assert bad.e_value >= bad.limit


def test_devices_that_fall_silent_pause_a_rollout() -> None:
    silent = EvidenceBlock(updated=JudgedCount(20, {"silent": 15}), control=JudgedCount(100, {"silent": 2}))
    assert Rollout(RolloutPlan(salt="7", sizes={"pi": 1000})).see({"pi": silent}, is_wave_over=True).action == "pause"


def test_looking_again_and_again_does_not_make_up_harm() -> None:
    dice = random.Random(7)

    def quiet(usual: float) -> bool:
        rollout = Rollout(RolloutPlan(salt="7", sizes={"pi": 1000}), alpha=0.05)
        return all(
            rollout.see(
                {"pi": block((5, _hits(dice, 5, usual)), (5, _hits(dice, 5, usual)))}, is_wave_over=False
            ).action
            == "wait"
            for _ in range(60)
        )

    paused = sum(not quiet(usual) for usual in (0.01, 0.05, 0.2) for _ in range(60))
    assert paused <= 0.05 * 180


def test_nothing_to_compare_with_is_no_evidence() -> None:
    assert log_e(block((10, 10), (0, 0)), 0.02, 0.5) == log_e(block((0, 0), (10, 10)), 0.02, 0.5) == 0.0


def _hits(dice: random.Random, count: int, share: float) -> int:
    return sum(dice.random() < share for _ in range(count))
