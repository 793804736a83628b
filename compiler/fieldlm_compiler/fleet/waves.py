"""Staged rollout in waves: which devices get a release when, and when the evidence says that it harms.

A rollout goes in waves. A device's place comes from a hash of its name, so that nobody keeps a list; each kind of
device (profile) has waves of its own, because what is bad for one may be good for the rest. The last places of each
profile keep what they have until the end, and live through the same days as the others: each wave is compared with
some of them, and none is counted twice, because a device that is in trouble today is the same one tomorrow.

The test compares devices, not requests, which are anything but independent: each device is fine or it is not, and one
that is not heard of is not. It is an e-process for two proportions (Turner, Ly and Grünwald 2024, arXiv:2106.02693):
for a block of `m` control and `n` updated devices, of which fixed shares p and q > p are supposed to be in trouble,

    e = Π over devices of  chance of what it did at its own share / chance at the common share (m·p + n·q) / (m + n)

has an expectation of at most 1 when the release does no harm, by the inequality of the means. So the product over
blocks exceeds 1/α with a probability of at most α however often one looks (Ville), and looking after every block costs
nothing. The harm is not known beforehand; the mean over several supposed ones is tested.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from fieldlm.formats.release import place

WAVES = (0.002, 0.01, 0.05, 0.25, 1.0)
CONTROL = 0.05  # kept back until the end; the first wave is compared with half of them, the others share the rest
LEAST_UPDATED, LEAST_CONTROL = 30, 100  # devices of each profile, in the first wave and kept back
ALPHA = 0.001  # that a harmless rollout is ever paused, all profiles together
HARMS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.9)  # supposed shares of devices that the release brings into trouble
SLOWEST = 0.45  # of the tokens a second before; an adapter beside its base keeps 0.6
MORE_ERRORS = 0.05  # share of the answers, above what it was before

Trouble = Literal["fine", "silent", "rolled-back", "errors", "slow"]
Group = Literal["updated", "control", "later"]


class DeviceVitals(msgspec.Struct, frozen=True, kw_only=True):
    """How one device did for a while: what share of its answers failed, and how fast it decodes."""

    errors: float
    tokens_per_s: float


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Why a profile was paused, or was not: devices in trouble in both groups, and the e-value against its limit."""

    profile: str
    updated: int
    updated_bad: int
    control: int
    control_bad: int
    e_value: float
    limit: float
    troubles: dict[str, int]

    @property
    def is_harm(self) -> bool:
        return self.e_value >= self.limit


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now. `revert` names the profiles whose release before is to be published again."""

    action: Literal["wait", "advance", "pause", "done"]
    wave: int
    revert: tuple[str, ...]
    evidence: tuple[Evidence, ...]


def judge(before: DeviceVitals, after: DeviceVitals | None, *, is_rolled_back: bool = False) -> Trouble:
    """Say how a device is doing against itself; None is a device that was not heard of in time."""
    if is_rolled_back:
        return "rolled-back"
    if after is None:
        return "silent"
    if after.errors > before.errors + MORE_ERRORS:
        return "errors"
    return "slow" if after.tokens_per_s < SLOWEST * before.tokens_per_s else "fine"


class RolloutPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The waves of one rollout: `sizes` counts the devices of each profile; `salts` are those of their own, if any."""

    salt: str
    sizes: dict[str, int]
    waves: tuple[float, ...] = WAVES
    salts: dict[str, str] = {}

    def share(self, profile: str, wave: int) -> float:
        """Return the place below which a device is updated in that wave or before."""
        if wave >= len(self.waves):
            return 1.0
        least = LEAST_UPDATED / self.sizes[profile]
        return min(max(self.waves[wave], least), 1.0 - self._kept(profile))

    def group(self, device: str, profile: str, wave: int) -> Group:
        at = place(device, self.salts.get(profile, self.salt))
        if at < self.share(profile, wave):
            return "updated"
        kept = self._kept(profile)
        first, last = self._compared(wave)
        return "control" if first <= (at - (1.0 - kept)) / kept < last else "later"

    def _kept(self, profile: str) -> float:
        return min(0.5, max(CONTROL, LEAST_CONTROL / self.sizes[profile]))

    def _compared(self, wave: int) -> tuple[float, float]:
        """Return which part of those kept back the wave is compared with."""
        step = 0.5 / max(1, len(self.waves) - 1)
        return (0.0, 0.5) if wave == 0 else (0.5 + step * (wave - 1), 0.5 + step * wave)


@dataclass
class JudgedCount:
    """Devices of one profile and group that were judged, and their troubles."""

    devices: int = 0
    troubles: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def bad(self) -> int:
        return sum(self.troubles.values())

    def add(self, trouble: Trouble) -> None:
        self.devices += 1
        if trouble != "fine":
            self.troubles[trouble] = self.troubles.get(trouble, 0) + 1

    def merge(self, other: "JudgedCount") -> None:
        self.devices += other.devices
        for trouble, number in other.troubles.items():
            self.troubles[trouble] = self.troubles.get(trouble, 0) + number


@dataclass
class EvidenceBlock:
    """What was heard of one profile since the last look. Who is in it must not hang on how it came out."""

    updated: JudgedCount = field(default_factory=JudgedCount)
    control: JudgedCount = field(default_factory=JudgedCount)


@dataclass
class _Track:
    """All that was heard of one profile, and the logarithm of the e-value for each supposed harm."""

    updated: JudgedCount = field(default_factory=JudgedCount)
    control: JudgedCount = field(default_factory=JudgedCount)
    logs: list[float] = field(default_factory=lambda: [0.0] * len(HARMS))

    def see(self, block: EvidenceBlock) -> None:
        # From what was seen before this block: a share chosen after looking at it would prove anything.
        usual = (self.control.bad + 1) / (self.control.devices + 50)
        self.logs = [log + log_e(block, usual, harm) for log, harm in zip(self.logs, HARMS, strict=True)]
        self.updated.merge(block.updated)
        self.control.merge(block.control)

    @property
    def e_value(self) -> float:
        return sum(math.exp(min(log, 600.0)) for log in self.logs) / len(self.logs)


def log_e(block: EvidenceBlock, usual: float, harm: float) -> float:
    """Return the logarithm of the block's e-value against no harm; `usual` is the share in trouble without update."""
    controls, updates = block.control.devices, block.updated.devices
    if not controls or not updates:
        return 0.0  # nothing to compare with is no evidence
    worse = usual + (1 - usual) * harm
    common = (controls * usual + updates * worse) / (controls + updates)
    return _log_ratio(block.control, usual, common) + _log_ratio(block.updated, worse, common)


def _log_ratio(count: JudgedCount, own: float, common: float) -> float:
    fine = count.devices - count.bad
    return count.bad * math.log(own / common) + fine * math.log((1 - own) / (1 - common))


class Rollout:
    """One rollout as it goes: `see` what was heard since the last look, and do what the decision says."""

    def __init__(self, plan: RolloutPlan, *, alpha: float = ALPHA) -> None:
        self.plan = plan
        self.wave = 0
        self._limit = len(plan.sizes) / alpha
        self._tracks = {profile: _Track() for profile in plan.sizes}

    def see(self, blocks: Mapping[str, EvidenceBlock], *, is_wave_over: bool) -> Decision:
        """Take in one block of each profile; `is_wave_over` when every device of the wave was judged, or is silent."""
        for profile, block in blocks.items():
            self._tracks[profile].see(block)
        evidence = tuple(self._evidence(profile, track) for profile, track in self._tracks.items())
        harmed = tuple(each.profile for each in evidence if each.is_harm)
        if harmed:
            return Decision(action="pause", wave=self.wave, revert=harmed, evidence=evidence)
        if not is_wave_over:
            return Decision(action="wait", wave=self.wave, revert=(), evidence=evidence)
        self.wave += 1
        is_done = self.wave > len(self.plan.waves)
        return Decision(action="done" if is_done else "advance", wave=self.wave, revert=(), evidence=evidence)

    def _evidence(self, profile: str, track: _Track) -> Evidence:
        return Evidence(
            profile=profile,
            updated=track.updated.devices,
            updated_bad=track.updated.bad,
            control=track.control.devices,
            control_bad=track.control.bad,
            e_value=track.e_value,
            limit=self._limit,
            troubles=dict(track.updated.troubles),
        )
