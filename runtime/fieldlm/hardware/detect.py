"""Device detection: which profile fits this machine.

`detect` compares `facts` with the matching rules of every shipped profile. A profile is ruled out by the wrong
architecture, a missing instruction set, memory outside its range or a missing GPU; what is left is scored, and every
point has a line of evidence. Nothing that names the board: then a generic profile, whose budget is small.
"""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import msgspec

from fieldlm.core.errors import ProfileError
from fieldlm.formats.profile import Match as Rules
from fieldlm.formats.profile import Profile, load_profile, profile_names
from fieldlm.hardware.facts import Facts, read_facts
from fieldlm.hardware.limits import LIVE

Confidence = Literal["high", "medium", "low"]
MOST_THREADS = 8  # as the engine; beyond, memory is the limit
SPARE = 0.8  # of the memory beside the reserve
COMPATIBLE, MODEL, SOC, GPU, CHASSIS, ISA, MEMORY = 8, 6, 3, 3, 2, 1, 1


class ProfileMatch(msgspec.Struct, frozen=True, kw_only=True):
    """How well one profile fits. `ruled_out` says what forbids it; empty when nothing does."""

    profile: str
    score: int
    confidence: Confidence
    evidence: tuple[str, ...]
    ruled_out: str = ""


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: the best profile, all that fit (best first), boards ruled out in spite of their name, the facts.

    A generic profile has been made `as_large_as` the machine.
    """

    best: Profile
    confidence: Confidence
    matches: tuple[ProfileMatch, ...]
    ruled_out: tuple[ProfileMatch, ...]
    facts: dict[str, Any]


def detect(root: Path = LIVE) -> Detection:
    """Find the profile of the machine whose files are under `root`.

    Raises ProfileError when not even a generic one fits: an architecture we know nothing of.
    """
    facts = read_facts(root)
    profiles = {name: load_profile(name) for name in profile_names()}
    tried = [score(facts, profile) for profile in profiles.values()]
    matches = sorted((match for match in tried if not match.ruled_out), key=lambda match: (-match.score, match.profile))
    if not matches:
        what = f"{facts.os} on {facts.arch or 'an unknown processor'}"
        raise ProfileError(
            f"no profile fits this machine ({what}); name one with --profile, all of them: fieldlm profiles"
        )
    return Detection(
        best=as_large_as(profiles[matches[0].profile], facts),
        confidence=matches[0].confidence,
        matches=tuple(matches),
        ruled_out=tuple(
            match for match in tried if match.ruled_out and _is_named(facts, profiles[match.profile].match)
        ),
        facts={**msgspec.to_builtins(facts), "memory_mb": facts.memory_mb},
    )


def as_large_as(profile: Profile, facts: Facts) -> Profile:
    """Return a generic profile with the threads of this machine, and no more of its memory than it can spare.

    Whoever decodes gives way to neighbours, so all fast cores may be used; a profile that names its board knows better.
    """
    if not profile.generic or not facts.cores:
        return profile
    threads = max(1, min(MOST_THREADS, facts.big_cores, int(facts.cpu_limit or facts.cores)))
    spare_mb = int(SPARE * max(0, facts.memory_mb - profile.memory.reserve_mb)) or profile.memory.model_budget_mb
    return msgspec.structs.replace(
        profile,
        cpu=msgspec.structs.replace(profile.cpu, decode_threads=threads, prefill_threads=threads),
        memory=msgspec.structs.replace(profile.memory, model_budget_mb=min(profile.memory.model_budget_mb, spare_mb)),
    )


def _is_named(facts: Facts, rules: Rules) -> bool:
    """Whether something of this machine bears the profile's name: its board, its chip or its GPU."""
    return bool(_board_points(facts, rules)) or any(gpu in facts.gpus for gpu in rules.gpu)


def score(facts: Facts, profile: Profile) -> ProfileMatch:
    """Compare one machine with one profile. Touches no file."""
    rules = profile.match
    points = [*_board_points(facts, rules), *_kind_points(facts, rules)]
    return ProfileMatch(
        profile=profile.id,
        score=sum(weight for weight, _ in points),
        confidence=_confidence(profile, {weight for weight, _ in _board_points(facts, rules)}),
        evidence=tuple(line for _, line in points),
        ruled_out=_obstacle(facts, profile),
    )


def _board_points(facts: Facts, rules: Rules) -> list[tuple[int, str]]:
    """Return the points for what names the board or its chip."""
    points: list[tuple[int, str]] = []
    board = next((name for name in facts.compatible if any(fnmatch(name, rule) for rule in rules.compatible)), None)
    if board:
        points.append((COMPATIBLE, f"/proc/device-tree/compatible has {board}"))
    if facts.model and any(fnmatch(facts.model, rule) for rule in rules.model):
        where = "/proc/device-tree/model" if facts.compatible else "Model in /proc/cpuinfo"
        points.append((MODEL, f"{where} is {facts.model!r}"))
    chip = next((name for name in facts.compatible if name in rules.soc), None)
    if chip:
        points.append((SOC, f"/proc/device-tree/compatible has the chip {chip}"))
    return points


def _kind_points(facts: Facts, rules: Rules) -> list[tuple[int, str]]:
    """Return the points for what many machines have in common."""
    points = [(ISA, f"/proc/cpuinfo has {isa}") for isa in rules.isa if isa in facts.isa]
    if rules.memory_mb and not _memory_obstacle(facts, rules):
        points.append((MEMORY, f"{_memory_words(facts)}; the profile is for {_range(rules)}"))
    if rules.chassis and rules.chassis == facts.chassis:
        points.append((CHASSIS, f"DMI says {facts.chassis}: {facts.vendor} {facts.product}".rstrip()))
    points += [(GPU, f"the {gpu} driver is loaded") for gpu in rules.gpu if gpu in facts.gpus]
    return points


def _obstacle(facts: Facts, profile: Profile) -> str:
    rules = profile.match
    missing = [isa for isa in rules.isa if isa not in facts.isa]
    if (facts.os, facts.arch) != (rules.os, profile.cpu.arch):
        return f"{facts.os} on {facts.arch}, not {rules.os} on {profile.cpu.arch}"
    if (rules.model or rules.compatible or rules.soc) and not _board_points(facts, rules):
        return "another board"
    if missing:
        return f"the processor has no {', '.join(missing)}"
    if rules.chassis and rules.chassis != facts.chassis:
        return f"DMI does not say {rules.chassis}"
    if not set(rules.gpu) <= set(facts.gpus):
        return f"no driver of {', '.join(rules.gpu)} is loaded"
    return _memory_obstacle(facts, rules)


def _memory_obstacle(facts: Facts, rules: Rules) -> str:
    if not rules.memory_mb or rules.memory_mb[0] <= facts.memory_mb <= rules.memory_mb[1]:
        return ""
    return f"{_memory_words(facts)}; the profile is for {_range(rules)}"


def _memory_words(facts: Facts) -> str:
    if facts.memory_mb < facts.memory_total_mb:
        return f"the control group allows {facts.memory_mb} MB of {facts.memory_total_mb}"
    return f"/proc/meminfo has {facts.memory_mb} MB"


def _range(rules: Rules) -> str:
    assert rules.memory_mb, "asked only where a range is set"
    least, most = rules.memory_mb
    return f"{least} MB or more" if most >= 1_000_000 else f"{least} to {most} MB"


def _confidence(profile: Profile, named: set[int]) -> Confidence:
    if profile.generic:
        return "low"
    names_board = bool(profile.match.model or profile.match.compatible)
    if {COMPATIBLE, MODEL} & named or (not names_board and SOC in named):
        return "high"
    return "medium"
