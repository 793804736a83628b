"""Device detection: which profile fits? And small probes of memory, heat and the own process.

`detect` compares `facts` with the matching rules of every shipped profile. A profile is ruled out by the wrong
architecture, a missing instruction set, memory outside its range or a missing GPU; what is left is scored, and every
point has a line of evidence. Nothing that names the board: then a generic profile, whose budget is small.
"""

import contextlib
import os
import resource
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import ProfileError
from fieldlm.formats.profile import Match as Rules
from fieldlm.formats.profile import Profile, load_profile, profile_names
from fieldlm.hardware.cores import physical_cores
from fieldlm.hardware.facts import LIVE, Facts, cgroup_folders, cpu_limit, meminfo_mb, read_facts, read_text

Confidence = Literal["high", "medium", "low"]
COMPATIBLE, MODEL, SOC, GPU, CHASSIS, ISA, MEMORY = 8, 6, 3, 3, 2, 1, 1


class ProfileMatch(msgspec.Struct, frozen=True, kw_only=True):
    """How well one profile fits. `ruled_out` says what forbids it; empty when nothing does."""

    profile: str
    score: int
    confidence: Confidence
    evidence: tuple[str, ...]
    ruled_out: str = ""


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: the best profile, all that fit (best first), boards ruled out in spite of their name, the facts."""

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
        best=profiles[matches[0].profile],
        confidence=matches[0].confidence,
        matches=tuple(matches),
        ruled_out=tuple(match for match in tried if match.ruled_out and match.score >= MODEL),
        facts={**msgspec.to_builtins(facts), "memory_mb": facts.memory_mb},
    )


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
        points.append((MODEL, f"/proc/device-tree/model is {facts.model!r}"))
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


def usable_cores() -> int:
    """Return how many physical cores this process may keep busy, all control groups around it counted."""
    allowed = physical_cores() if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(allowed, int(cpu_limit() or allowed)))


def memory_available_mb(root: Path = LIVE) -> int:
    """Return what a new allocation may take: MemAvailable, or what the control group has left where that is less."""
    left = [meminfo_mb(root, "MemAvailable")]
    for folder in cgroup_folders(root):
        limit, used = read_text(folder, "memory.max"), read_text(folder, "memory.current")
        if limit.isdigit() and used.isdigit():
            left.append((int(limit) - int(used) + _reclaimable(folder)) // 1_000_000)
    return max(0, min(left))


def _reclaimable(folder: Path) -> int:
    """Bytes of file cache that the kernel gives back before it refuses memory."""
    for line in read_text(folder, "memory.stat").splitlines():
        name, _, count = line.partition(" ")
        if name == "inactive_file" and count.isdigit():
            return int(count)
    return 0


def temperature_c(root: Path = LIVE) -> float | None:
    """Return the hottest sensor's temperature, None when there is no sensor (virtual machines)."""
    paths = [
        *(root / "sys/class/thermal").glob("thermal_zone*/temp"),
        *(root / "sys/class/hwmon").glob("hwmon*/temp*_input"),
    ]
    heat: list[float] = []
    for path in paths:
        with contextlib.suppress(ValueError):
            heat.append(int(read_text(path.parent, path.name)) / 1000)
    # Unused zones report 0 or absurd values.
    return max((degrees for degrees in heat if 0 < degrees < 150), default=None)


def rss_mb() -> float:
    """Return the memory this process holds now, in megabytes."""
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """Return the most memory this process ever held, in megabytes."""
    return _status_mb("VmHWM")


def _status_mb(key: str) -> float:
    for line in read_text(LIVE, "proc/self/status").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    # Elsewhere only the peak is to be had: bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def detect_main(argv: Sequence[str]) -> int:
    """Say which profile fits this machine and why."""
    parser = terminal.parser("detect", "Name the device profile that fits this machine, with the evidence.")
    parser.add_argument(
        "--sysroot", type=Path, default=LIVE, metavar="DIR", help="read another machine's /proc and /sys here"
    )
    args = parser.parse_args(argv)
    found = detect(args.sysroot)
    terminal.show(
        {
            "profile": found.best.id,
            "confidence": found.confidence,
            "matches": found.matches,
            "ruled_out": found.ruled_out,
            "facts": found.facts,
        },
        _describe(found),
        as_json=args.json,
    )
    return 0


def _describe(found: Detection) -> str:
    best, facts = found.matches[0], found.facts
    lines = [f"{found.best.id}  {found.best.title}  (confidence {found.confidence}, score {best.score})"]
    lines += [f"  {line}" for line in best.evidence]
    if others := [f"{match.profile} ({match.score})" for match in found.matches[1:4]]:
        lines.append(f"also fit: {', '.join(others)}")
    lines += [f"ruled out: {match.profile}: {match.ruled_out}" for match in found.ruled_out]
    lines.append(
        f"machine: {facts['cpu_name'] or facts['arch']}, {facts['cores']} cores, {facts['memory_mb']} MB"
        + "".join(f", {word}" for word in ("virtual", "container") if facts[word])
    )
    lines.append(f"next: fieldlm profiles {found.best.id}")
    return "\n".join(lines)
