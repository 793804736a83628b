"""A hundred thousand simulated devices take a release that is bad for one kind of them: how many does it reach?

    .venv/bin/python benchmarks/rollout.py [--devices 100000] [--harm 0.5] [--rollouts 20] [--json]

The fleet has ten profiles, the largest with a third of the devices, the smallest with one in two hundred. Between 1 and
4 % of the devices are silent, slow or wrong on any release, and go on being so. The release is bad on one profile: a
share `harm` of its devices that take it roll back, fall silent, fail or crawl. Devices are heard of in a random order,
a tenth of a wave between two looks. Each rollout has its own salt and its own bad profile; in half of them none is bad.
"""

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass

from fieldlm_compiler.fleet.waves import Decision, EvidenceBlock, Group, Rollout, RolloutPlan, Trouble

SHARES = (0.335, 0.2, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01, 0.005)
USUAL = (0.01, 0.04)  # devices in trouble whatever they run, by profile
LOOKS = 10  # during each wave
TROUBLES: tuple[Trouble, ...] = ("rolled-back", "silent", "errors", "slow")


@dataclass(frozen=True)
class Device:
    name: str
    profile: str
    is_weak: bool  # in trouble on any release


@dataclass(frozen=True)
class Result:
    """How one rollout ended; `affected` are the devices of the bad profile that took the release."""

    bad: str
    action: str
    wave: int
    affected: int
    wave_size: int
    falsely_reverted: int


def fleet(count: int, seed: int) -> list[Device]:
    dice = random.Random(seed)
    names = [f"profile-{number}" for number in range(len(SHARES))]
    usual = {name: dice.uniform(*USUAL) for name in names}
    profiles = dice.choices(names, SHARES, k=count)
    return [Device(f"device-{at}", each, dice.random() < usual[each]) for at, each in enumerate(profiles)]


def simulate(devices: list[Device], bad: str, harm: float, seed: int) -> Result:
    """Roll one release out until it is everywhere or paused."""
    dice = random.Random(seed)
    sizes = dict.fromkeys(sorted({device.profile for device in devices}), 0)
    for device in devices:
        sizes[device.profile] += 1
    rollout = Rollout(RolloutPlan(salt=str(seed), sizes=sizes))
    taken = dict.fromkeys(sizes, 0)
    updated = set[str]()
    while True:
        groups: list[tuple[Device, Group]] = [
            (device, rollout.plan.group(device.name, device.profile, rollout.wave)) for device in devices
        ]
        heard: list[tuple[Device, Group]] = [
            (d, g) for d, g in groups if g == "control" or (g == "updated" and d.name not in updated)
        ]
        size = sum(1 for device, group in heard if group == "updated" and device.profile == bad)
        dice.shuffle(heard)
        decision = live_through(rollout, heard, taken, updated, bad=bad, harm=harm, dice=dice)
        if decision.action in ("pause", "done"):
            wrong = len([profile for profile in decision.revert if profile != bad])
            return Result(bad, decision.action, decision.wave, taken.get(bad, 0), size, wrong)


def live_through(
    rollout: Rollout,
    heard: list[tuple[Device, Group]],
    taken: dict[str, int],
    updated: set[str],
    *,
    bad: str,
    harm: float,
    dice: random.Random,
) -> Decision:
    """Let one wave happen, a look at a time, until it is over or the rollout is paused."""
    decision = rollout.see({}, is_wave_over=False)
    for look in range(LOOKS):
        blocks = {profile: EvidenceBlock() for profile in taken}
        for device, group in heard[look::LOOKS]:
            is_updated = group == "updated"
            if is_updated:
                taken[device.profile] += 1
                updated.add(device.name)
            is_hit = device.is_weak or (is_updated and device.profile == bad and dice.random() < harm)
            block = blocks[device.profile]
            (block.updated if is_updated else block.control).add(dice.choice(TROUBLES) if is_hit else "fine")
        decision = rollout.see(blocks, is_wave_over=look == LOOKS - 1)
        if decision.action == "pause":
            break
    return decision


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--harm", type=float, default=0.5)
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    began_s = time.monotonic()
    devices = fleet(args.devices, 1)
    profiles = [f"profile-{number}" for number in range(len(SHARES))]
    results = list[Result]()
    for number in range(args.rollouts):
        bad = profiles[number // 2 % len(profiles)] if number % 2 == 0 else ""
        results.append(simulate(devices, bad, args.harm, number))
        print(results[-1], file=sys.stderr, flush=True)
    print(json.dumps(summary(results, took_s=time.monotonic() - began_s), indent=None if args.json else 2))
    return 0


def summary(results: list[Result], *, took_s: float) -> dict[str, float]:
    harmful = [result for result in results if result.bad]
    harmless = [result for result in results if not result.bad]
    caught = [result for result in harmful if result.action == "pause" and result.wave == 0]
    return {
        "harmful": len(harmful),
        "caught in the first wave": len(caught),
        "most devices affected, of that wave": max((r.affected / r.wave_size for r in harmful), default=0.0),
        "harmless": len(harmless),
        "harmless paused": sum(result.action == "pause" for result in harmless),
        "profiles reverted without reason": sum(result.falsely_reverted for result in results),
        "seconds": round(took_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
