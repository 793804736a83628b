"""The rollout controller: its memory in one file, its looks replayed, its decisions carried out, from where it was.

The publisher's keys stay with the publisher: what is decided is done by `fieldlm release`, as a person would do it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from fieldlm.core.errors import GateError, InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.formats.release import place
from fieldlm_compiler.fleet.observation import FleetSnapshot
from fieldlm_compiler.fleet.shadows import ShadowSums
from fieldlm_compiler.fleet.waves import ALPHA, Decision, Evidence, EvidenceBlock, JudgedCount, Rollout, RolloutPlan

FORMAT = "fieldlm.rollout/1"
LOOKS = 10  # in a wave: devices are judged in the order of their starts, whatever came of them
COMMAND = "from fieldlm.cli.main import main; raise SystemExit(main())"

Status = Literal["running", "paused", "reverted", "aborted", "done"]
Release = Callable[..., Any]
"""Runs `fieldlm release` with these words and returns the document it prints."""


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """One profile's release: its number, its generation, and the salt that its devices' places come from."""

    profile: str
    seq: int
    bundle: str
    salt: str
    size: int
    shadow: int = 0
    """Requests that each device answers with it in the shadow first, in `shadow_s` seconds at most."""
    shadow_s: int = 0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen in one look: by profile, devices and troubles of both groups; `upto` counts the parts behind it."""

    wave: int
    upto: int
    is_wave_over: bool
    updated: dict[str, dict[str, int]]
    control: dict[str, dict[str, int]]


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was decided and done."""

    at_ms: int
    what: str
    detail: str


class State(msgspec.Struct, kw_only=True):
    """The whole memory of a rollout."""

    format: str = FORMAT
    tracks: tuple[Track, ...]
    patience_s: float
    spread_s: float
    status: Status = "running"
    wave: int = 0
    wave_began_ms: int = 0
    looks: list[Look] = []
    acts: list[Act] = []
    evidence: tuple[Evidence, ...] = ()
    failed: dict[str, dict[str, int]] = {}
    """By profile and reason, the devices whose update failed, judged yet or not."""
    shadows: dict[str, ShadowSums] = {}
    """By profile, how the release did in the shadow."""

    @property
    def shadow_s(self) -> int:
        """For how long a device may have the release in the shadow: it is judged so much later."""
        return max((track.shadow_s for track in self.tracks if track.shadow), default=0)

    @property
    def began_ms(self) -> int:
        return self.acts[0].at_ms if self.acts else self.wave_began_ms

    @property
    def releases(self) -> dict[str, int]:
        """The number of the release that brings each generation."""
        return {track.bundle: track.seq for track in self.tracks}

    def plan(self) -> RolloutPlan:
        return RolloutPlan(
            salt="", sizes={t.profile: t.size for t in self.tracks}, salts={t.profile: t.salt for t in self.tracks}
        )

    def rollout(self) -> Rollout:
        """Return the test as it stands after all looks."""
        made = Rollout(self.plan())
        for look in self.looks:
            made.see(_blocks(look), is_wave_over=look.is_wave_over)
        return made


class Controller:
    """Drives one rollout. `now_s` is the time on the wall."""

    def __init__(self, path: Path, release: Release, *, now_s: Callable[[], float] = time.time) -> None:
        self.path = path
        self._release = release
        self._now_s = now_s
        self.state = read(path)

    def begin(self) -> None:
        """Offer the release to the first wave."""
        self._act("begin", ", ".join(f"{t.profile} {t.seq}" for t in self.state.tracks))
        self._offer_wave()

    def look(self, fleet: FleetSnapshot) -> Decision | None:
        """Judge the devices whose time has come and do what follows from it; None when there is nothing to look at."""
        state = self.state
        if state.status != "running" or self._end_by_shadow():
            return None
        number = self._looks_due()
        if number <= self._looks_done():
            return None
        look = Look(
            wave=state.wave,
            upto=number,
            is_wave_over=number == LOOKS,
            updated={t.profile: {} for t in state.tracks},
            control={t.profile: {} for t in state.tracks},
        )
        self._judge(fleet, look, self._looks_done(), number)
        rollout = state.rollout()
        decision = rollout.see(_blocks(look), is_wave_over=look.is_wave_over)
        state.looks.append(look)
        state.evidence = decision.evidence
        self._follow(decision)
        return decision

    def note(self, fleet: FleetSnapshot) -> bool:
        """Keep on how many devices the update failed, and how it did in the shadow; says whether that is news."""
        found = {track.profile: fleet.without(track.profile, track.bundle) for track in self.state.tracks}
        found = {profile: reasons for profile, reasons in found.items() if reasons}
        seen = {track.profile: fleet.shadow(track.profile, track.bundle) for track in self.state.tracks}
        shadows = {profile: sums for profile, sums in seen.items() if sums}
        if (found, shadows) == (self.state.failed, self.state.shadows):
            return False
        self.state.failed, self.state.shadows = found, shadows
        self.save()
        return True

    def pause(self) -> None:
        """Offer the release to nobody new."""
        for track in self.state.tracks:
            self._release("pause", track.profile, str(track.seq))
        self._set("paused", "asked for")

    def resume(self) -> None:
        """Go on with the wave that was paused; who was judged in it is not judged again."""
        if self.state.status != "paused":
            raise InputError(f"the rollout is {self.state.status}, not paused")
        self._set("running", "asked for")
        self._offer_wave()

    def abort(self, reason: str) -> None:
        """Take the release back from everybody."""
        self._revert([track.profile for track in self.state.tracks], reason)
        self._set("aborted", reason)

    def _follow(self, decision: Decision) -> None:
        if decision.action == "pause":
            self._take_back(decision.revert, "; ".join(_words(each) for each in decision.evidence if each.is_harm))
        elif decision.action == "done":
            self._set("done", "every device may have it")
        elif decision.action == "advance":
            self.state.wave = decision.wave
            self._offer_wave()
        else:
            self.save()

    def _end_by_shadow(self) -> bool:
        """Take back what did worse in the shadow than chance explains, before any device is judged; says whether."""
        limit = len(self.state.tracks) / ALPHA
        worse = {profile: why for profile, sums in self.state.shadows.items() if (why := sums.worse(limit))}
        if worse:
            self._take_back(tuple(worse), "; ".join(f"{profile}: {why}" for profile, why in worse.items()))
        return bool(worse)

    def _take_back(self, profiles: tuple[str, ...], words: str) -> None:
        self._revert(list(profiles), words)
        for track in self.state.tracks:
            if track.profile not in profiles:
                self._release("pause", track.profile, str(track.seq))
        self._set("reverted", words)

    def _offer_wave(self) -> None:
        state, plan = self.state, self.state.plan()
        for track in state.tracks:
            percent = 100 * plan.share(track.profile, state.wave)
            words = ["--share", f"{percent:.4f}", "--spread", f"{state.spread_s:.0f}"]
            words += ["--shadow", str(track.shadow)]
            words += ["--shadow-hours", f"{track.shadow_s / 3600:.6f}"] if track.shadow else []
            self._release("promote", track.profile, str(track.seq), *words)
        state.wave_began_ms = int(self._now_s() * 1000)
        self._act("wave", str(state.wave + 1))

    def _revert(self, profiles: list[str], reason: str) -> None:
        for track in self.state.tracks:
            if track.profile in profiles:
                self._release("pull", track.profile, str(track.seq), "--reason", reason)
                self._act("revert", f"{track.profile} {track.seq}: {reason}")

    def _looks_done(self) -> int:
        return max((look.upto for look in self.state.looks if look.wave == self.state.wave), default=0)

    def _looks_due(self) -> int:
        """Return how many looks of this wave have come due: the last starters of each are judged `patience_s` later.

        Those that may be in the shadow first are judged so much later.
        """
        age_s = self._now_s() - self.state.wave_began_ms / 1000 - self.state.patience_s - self.state.shadow_s
        if age_s < 0:
            return 0
        return min(LOOKS, 1 + int(LOOKS * age_s / self.state.spread_s)) if self.state.spread_s else LOOKS

    def _judge(self, fleet: FleetSnapshot, look: Look, first: int, last: int) -> None:
        plan = self.state.plan()
        tracks = {track.profile: track for track in self.state.tracks}
        for device, found in fleet.presence.items():
            track = tracks.get(found.profile)
            if track is None or not first <= LOOKS * place(device, f"{track.salt}start") < last:
                continue
            group = plan.group(device, found.profile, look.wave)
            is_old = look.wave > 0 and plan.group(device, found.profile, look.wave - 1) == "updated"
            if group == "later" or is_old:
                continue
            counts = (look.updated if group == "updated" else look.control)[found.profile]
            trouble = fleet.trouble(device, group, track.bundle)
            counts[trouble] = counts.get(trouble, 0) + 1

    def _set(self, status: Status, detail: str) -> None:
        self.state.status = status
        self._act(status, detail)

    def _act(self, what: str, detail: str) -> None:
        self.state.acts.append(Act(at_ms=int(self._now_s() * 1000), what=what, detail=detail))
        self.save()

    def save(self) -> None:
        write_whole(self.path, canonical_json(self.state))


def read(path: Path) -> State:
    """Read a rollout's memory; raises InputError when there is none."""
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError as error:
        raise InputError(f"{path} is no rollout; begin one with: fieldlm rollout start --to REPOSITORY") from error
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if state.format != FORMAT:
        raise InputError(f"{path} has format {state.format!r}, this version reads {FORMAT!r}")
    return state


def publisher(repository: Path, keys: str) -> Release:
    """Return what runs `fieldlm release` on `repository`; it raises GateError when that says no."""

    def release(what: str, *words: str) -> Any:
        command = [sys.executable, "-c", COMMAND, "release", what, *words, "--to", str(repository), "--json"]
        done = subprocess.run(
            [*command, *(["--keys", keys] if keys else [])], capture_output=True, text=True, check=False
        )
        if what == "show" and done.returncode == 1:
            return []  # it offers nothing
        if done.returncode:
            raise GateError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"release {what} failed")
        return json.loads(done.stdout)

    return release


def _blocks(look: Look) -> dict[str, EvidenceBlock]:
    return {
        profile: EvidenceBlock(updated=_count(look.updated[profile]), control=_count(look.control[profile]))
        for profile in look.updated
    }


def _count(told: dict[str, int]) -> JudgedCount:
    troubles = {word: number for word, number in told.items() if word != "fine"}
    return JudgedCount(devices=sum(told.values()), troubles=troubles)


def _words(each: Evidence) -> str:
    kinds = ", ".join(f"{number} {word}" for word, number in sorted(each.troubles.items()))
    return (
        f"{each.profile}: {each.updated_bad} of {each.updated} updated in trouble ({kinds}), "
        f"{each.control_bad} of {each.control} kept back; e = {each.e_value:.3g}, limit {each.limit:.3g}"
    )
