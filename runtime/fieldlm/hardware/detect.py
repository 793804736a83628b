"""Device detection: which profile fits this machine.

`detect` compares `facts` with the matching rules of every shipped profile. A profile is ruled out by the wrong
architecture, another name, a missing instruction set, memory outside its range or a missing GPU; what is left is
scored, and every point has a line of evidence. Nothing that names the machine: then a generic profile, made as large as
the machine is.
"""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import msgspec

from fieldlm.core.errors import ProfileError
from fieldlm.formats.profile import Isa, Profile, load_profile, profile_names
from fieldlm.formats.profile import Match as Rules
from fieldlm.formats.profile_lint import kv_mb
from fieldlm.hardware.accelerators import PresentAccelerator
from fieldlm.hardware.facts import IS_32_BIT, Facts, read_facts
from fieldlm.hardware.limits import LIVE

Confidence = Literal["high", "medium", "low"]
MOST_THREADS = 8  # as the engine; beyond, memory is the limit
SPARE = 0.8  # of the memory beside the reserve
LEAST_CONTEXT = 512
COMPATIBLE, PRODUCT, MODEL, SOC, CPU, GPU, CHASSIS, ISA, MEMORY = 8, 8, 6, 3, 3, 3, 2, 1, 1
MOST_MB = 1_000_000  # what a rule says that has no upper end


class ProfileMatch(msgspec.Struct, frozen=True, kw_only=True):
    """How well one profile fits. `ruled_out` says what forbids it; empty when nothing does."""

    profile: str
    score: int
    confidence: Confidence
    evidence: tuple[str, ...]
    ruled_out: str = ""


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: the best profile, all that fit (best first), boards ruled out in spite of their name, the facts.

    A profile that names no machine has been made `as_large_as` this one. `idle` are the GPUs and NPUs that the best
    profile leaves alone.
    """

    best: Profile
    confidence: Confidence
    matches: tuple[ProfileMatch, ...]
    ruled_out: tuple[ProfileMatch, ...]
    idle: tuple[PresentAccelerator, ...]
    facts: dict[str, Any]


def detect(root: Path = LIVE, *, made_for: str = "") -> Detection:
    """Find the profile of the machine whose files are under `root`.

    `made_for` is the profile of a bundle that is here: where it fits, it is the best, though another one fits better.
    Raises ProfileError when not even a generic one fits: an architecture we know nothing of.
    """
    facts = read_facts(root)
    if facts.arch == IS_32_BIT:
        raise ProfileError(
            "this is a 32-bit system, and fieldlm needs a 64-bit one; install the 64-bit version of it, after which "
            "`uname -m` says aarch64 or x86_64 and `getconf LONG_BIT` says 64"
        )
    profiles = {name: load_profile(name) for name in profile_names()}
    tried = [score(facts, profile) for profile in profiles.values()]
    matches = sorted(
        (match for match in tried if not match.ruled_out),
        key=lambda match: (
            match.profile != made_for,
            profiles[match.profile].generic,
            -match.score,
            _span_mb(profiles[match.profile].match),
            match.profile,
        ),
    )
    if not matches:
        what = f"{facts.os} on {facts.arch or 'an unknown processor'}"
        raise ProfileError(
            f"no profile fits this machine ({what}); name one with --profile, all of them: fieldlm profiles"
        )
    best = as_large_as(profiles[matches[0].profile], facts)
    return Detection(
        best=best,
        confidence=matches[0].confidence,
        matches=tuple(matches),
        ruled_out=tuple(
            match
            for match in tried
            if match.ruled_out
            and profiles[match.profile].cpu.arch == facts.arch
            and _is_named(facts, profiles[match.profile].match)
        ),
        idle=_idle(best, facts),
        facts={**msgspec.to_builtins(facts), "memory_mb": facts.memory_mb},
    )


def as_large_as(profile: Profile, facts: Facts) -> Profile:
    """Return `profile` with what it leaves open taken from this machine.

    Without a number of cores that is threads and instructions, without a size of memory the budget (`left_open`).
    Whoever decodes gives way to neighbours, so all fast cores may be used. What computes on a GPU leaves nothing open.
    """
    if not facts.cores or any(each.used for each in profile.accelerators):
        return profile
    cpu, memory = profile.cpu, profile.memory
    if cpu.cores is None:
        threads = max(1, min(MOST_THREADS, facts.fast_cores))
        isa = msgspec.convert(facts.isa, tuple[Isa, ...]) or cpu.isa
        cpu = msgspec.structs.replace(cpu, isa=isa, decode_threads=threads, prefill_threads=threads)
    if memory.total_mb is None and facts.memory_mb:
        # The reserve is the machine's own system; in a control group lies what is ours.
        spare_mb = _rounded(SPARE * max(0, min(facts.memory_total_mb - memory.reserve_mb, facts.memory_mb)))
        memory = msgspec.structs.replace(memory, model_budget_mb=spare_mb or memory.model_budget_mb)
    return _with_room(msgspec.structs.replace(profile, cpu=cpu, memory=memory))


def left_open(profile: Profile) -> tuple[str, ...]:
    """Return the settings whose values in the file are for a machine that nobody knows; each has its own."""
    if any(each.used for each in profile.accelerators):
        return ()
    threads = ("cpu.decode_threads",) if profile.cpu.cores is None else ()
    return (*threads, "memory.model_budget_mb") if profile.memory.total_mb is None else threads


def _rounded(mb: float) -> int:
    """Two digits of `mb`: what the kernel keeps for itself differs from boot to boot, and this is part of an id."""
    step = 10 ** max(0, len(str(int(mb))) - 2)
    return int(mb) // step * step


def _with_room(profile: Profile) -> Profile:
    """Return `profile` with fewer answers at a time, then shorter ones, until their cache leaves room for weights."""
    while kv_mb(profile) > profile.memory.model_budget_mb / 2:
        parallel, context = profile.runtime.parallel, profile.gguf.context
        if parallel > 1:
            less = msgspec.structs.replace(profile.runtime, parallel=parallel // 2)
            profile = msgspec.structs.replace(profile, runtime=less)
        elif context > LEAST_CONTEXT:
            profile = msgspec.structs.replace(profile, gguf=msgspec.structs.replace(profile.gguf, context=context // 2))
        else:
            break
    return profile


def _span_mb(rules: Rules) -> int:
    """How much memory the rules leave open: of two profiles the one that is for less is the closer one."""
    least, most = rules.memory_mb or (0, MOST_MB)
    return most - least


def _idle(profile: Profile, facts: Facts) -> tuple[PresentAccelerator, ...]:
    """Return what `profile` does not compute on; beside a GPU that it uses, another one is no loss."""
    has_gpu = any(each.used for each in profile.accelerators)
    return tuple(each for each in facts.accelerators if not (has_gpu and each.kind == "gpu"))


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


def obstacle(profile: Profile, root: Path = LIVE) -> str:
    """Return what forbids `profile`, one of the list or of a file, on the machine under `root`; empty for nothing."""
    return _obstacle(read_facts(root), profile)


def _board_points(facts: Facts, rules: Rules) -> list[tuple[int, str]]:
    """Return the points for what names the board or its chip."""
    points: list[tuple[int, str]] = []
    board = next((name for name in facts.compatible if any(fnmatch(name, rule) for rule in rules.compatible)), None)
    if board:
        points.append((COMPATIBLE, f"/proc/device-tree/compatible has {board}"))
    if facts.model and any(fnmatch(facts.model, rule) for rule in rules.model):
        where = "/proc/device-tree/model" if facts.compatible else "Model in /proc/cpuinfo"
        points.append((MODEL, f"{where} is {facts.model!r}"))
    chip = next((name for name in (*facts.compatible, facts.chip) if name in rules.soc), None)
    if chip:
        where = "the Tegra's number or cores say" if chip == facts.chip else "/proc/device-tree/compatible has"
        points.append((SOC, f"{where} the chip {chip}"))
    product = f"{facts.vendor} {facts.product}".strip()
    if product and any(fnmatch(product, rule) for rule in rules.product):
        points.append((PRODUCT, f"DMI says {product}"))
    if facts.cpu_name and any(fnmatch(facts.cpu_name, rule) for rule in rules.cpu):
        points.append((CPU, f"/proc/cpuinfo has {facts.cpu_name}"))
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
    if rules.names_machine and not _board_points(facts, rules):
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
    return f"{least} MB or more" if most >= MOST_MB else f"{least} to {most} MB"


def _confidence(profile: Profile, named: set[int]) -> Confidence:
    if profile.generic:
        return "low"
    rules = profile.match
    names_board = bool(rules.model or rules.compatible or rules.product)
    if {COMPATIBLE, MODEL} & named or (not names_board and {SOC, CPU} & named):
        return "high"
    return "medium"
