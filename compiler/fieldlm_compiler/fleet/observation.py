"""Rollout observation: who is where in a fleet, and how each device does against itself."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fieldlm.formats.shadow import ShadowFigures, read_figures
from fieldlm_compiler.collect.sink import STEPS, Sink, as_dict
from fieldlm_compiler.fleet.shadows import ShadowSums, add_up
from fieldlm_compiler.fleet.waves import DeviceVitals, Group, Trouble, judge

LEAST_ANSWERS = 8  # of a device, before it is judged by them; one that is used less is fine while it is heard of
AWAY = ("lost", "stopped")

ANSWERS = f"""
SELECT device, generation, wall_ms >= {{since_ms}} AS is_since, count(*) AS answers,
    avg(CASE WHEN outcome = 'error' THEN 1.0 ELSE 0.0 END) AS errors,
    coalesce(median({STEPS} * 1000.0 / nullif(duration_ms - ttft_ms, 0))
        FILTER (WHERE {STEPS} > 0), 0) AS tokens_per_s
FROM records WHERE stream = 'gen' AND route <> 'large' GROUP BY ALL"""
"""What a large model beside the device's own answered says nothing of a generation: its speed is the network's."""
FAILED = """
SELECT device, detail['bundle'] AS bundle, detail['seq'] AS seq, wall_ms >= {began_ms} OR NOT clock_ok AS is_since,
    arg_max(detail['reason'], wall_ms) AS reason, bool_or(detail['event'] = 'update.rolled-back') AS is_rolled_back
FROM records WHERE stream = 'ota' AND detail['bundle'] <> ''
    AND detail['event'] IN ('update.rolled-back', 'update.failed', 'update.refused')
GROUP BY ALL ORDER BY max(wall_ms)"""
"""A device whose clock is not set yet cannot say that it was before."""


SHADOWS = """
SELECT device, detail FROM records
WHERE stream = 'ota' AND detail['bundle'] <> '' AND detail['shadow_answers'] <> '' ORDER BY wall_ms, seq"""


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """The retained state of a device."""

    state: str = ""
    generation: str = ""
    profile: str = ""


@dataclass(frozen=True)
class AnswerCounts:
    """How a device answered in one stretch: with which generation, before the wave or since."""

    generation: str
    is_since: bool
    answers: int
    vitals: DeviceVitals


@dataclass
class FleetSnapshot:
    """All devices of the profiles that take part, at one moment."""

    presence: dict[str, Presence]
    answered: dict[str, list[AnswerCounts]] = field(default_factory=dict[str, list[AnswerCounts]])
    failed: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """Why an update failed, by device and generation, whether it was refused, did not arrive or was taken back."""
    rolled_back: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    shadows: dict[tuple[str, str], ShadowFigures] = field(default_factory=dict[tuple[str, str], ShadowFigures])
    """What a generation made of live requests before it was switched to, by device and generation."""

    @classmethod
    def read(
        cls, store: Sink, *, since_ms: int, began_ms: int = 0, releases: Mapping[str, int] | None = None
    ) -> "FleetSnapshot":
        """Read it; `since_ms` is when the wave began, `began_ms` the rollout.

        `releases` has the number of the release that brings a generation: what came of another one, which brought the
        same generation, or what a device would not take before the rollout is no failure of it. A device that fell
        back from the generation meanwhile did so whatever the number.
        """
        releases = releases or {}
        presence = {device: _presence(state) for device, state in store.presence().items()}
        fleet = cls({device: found for device, found in presence.items() if found and found.profile})
        for row in store.query(ANSWERS.format(since_ms=since_ms)):
            fleet.answered.setdefault(row["device"], []).append(_answered(row))
        for row in store.query(FAILED.format(began_ms=began_ms)):
            is_of = _is_of(releases, row["bundle"], row["seq"])
            if is_of and row["is_since"]:
                fleet.failed[row["device"], row["bundle"]] = row["reason"]
            if row["is_rolled_back"] and (is_of or row["is_since"]):
                fleet.rolled_back.add((row["device"], row["bundle"]))
        for row in store.query(SHADOWS):
            detail = as_dict(row["detail"])
            if not _is_of(releases, detail["bundle"], detail.get("seq")):
                continue
            if (figures := read_figures(detail)) is not None:
                fleet.shadows[row["device"], detail["bundle"]] = figures
        return fleet

    def sizes(self) -> dict[str, int]:
        """Return how many devices each profile has."""
        counts: dict[str, int] = {}
        for found in self.presence.values():
            counts[found.profile] = counts.get(found.profile, 0) + 1
        return counts

    def without(self, profile: str, bundle: str) -> dict[str, int]:
        """Count, by reason, the devices of `profile` that tried to take the generation `bundle` and have it not."""
        reasons = [
            reason
            for (device, failed), reason in self.failed.items()
            if failed == bundle and (found := self.presence.get(device)) and found.profile == profile
            if found.generation != bundle
        ]
        return dict(Counter(reasons).most_common())

    def shadow(self, profile: str, bundle: str) -> ShadowSums | None:
        """Return how the generation `bundle` did in the shadow on the devices of `profile`; None where it was not."""
        return add_up(
            figures
            for (device, candidate), figures in self.shadows.items()
            if candidate == bundle and (found := self.presence.get(device)) and found.profile == profile
        )

    def trouble(self, device: str, group: Group, bundle: str) -> Trouble:
        """Judge one device; `bundle` is the generation that goes out, by its first twelve digits."""
        found = self.presence[device]
        # One that has it again has taken it again: a crash may have been a request's doing.
        is_back = found.generation != bundle
        is_rolled_back = group == "updated" and is_back and (device, bundle) in self.rolled_back
        is_heard = found.state not in AWAY and (group == "control" or found.generation == bundle)
        if is_rolled_back or not is_heard:
            return judge(DeviceVitals(errors=0, tokens_per_s=0), None, is_rolled_back=is_rolled_back)
        rows = self.answered.get(device, [])
        if group == "updated":
            after, before = _sum(rows, lambda r: r.generation == bundle), _sum(rows, lambda r: r.generation != bundle)
        else:
            after, before = _sum(rows, lambda r: r.is_since), _sum(rows, lambda r: not r.is_since)
        return judge(before, after) if before and after else "fine"


def _is_of(releases: Mapping[str, int], bundle: str, seq: str | None) -> bool:
    """Say whether a record is about the release that is rolled out; one without a number may be."""
    return not seq or bundle not in releases or seq == str(releases[bundle])


def _presence(state: str) -> Presence | None:
    try:
        return msgspec.json.decode(state, type=Presence)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _answered(row: dict[str, Any]) -> AnswerCounts:
    vitals = DeviceVitals(errors=float(row["errors"]), tokens_per_s=float(row["tokens_per_s"]))
    return AnswerCounts(row["generation"], bool(row["is_since"]), int(row["answers"]), vitals)


def _sum(rows: list[AnswerCounts], counts: Callable[[AnswerCounts], bool]) -> DeviceVitals | None:
    """Return the vitals of the stretches that count, weighted by their answers; None for too few of them."""
    kept = [row for row in rows if counts(row)]
    total = sum(row.answers for row in kept)
    if total < LEAST_ANSWERS:
        return None
    return DeviceVitals(
        errors=sum(row.answers * row.vitals.errors for row in kept) / total,
        tokens_per_s=sum(row.answers * row.vitals.tokens_per_s for row in kept) / total,
    )
