"""`fieldlm detect`: which device profile fits this machine, and why."""

from collections.abc import Sequence

from fieldlm.core import options, terminal
from fieldlm.core.wording import counted
from fieldlm.formats.profile import load_profile
from fieldlm.hardware.detect import Detection, detect, left_open
from fieldlm.hardware.limits import LIVE


def main(argv: Sequence[str]) -> int:
    """Say which profile fits this machine and why."""
    parser = terminal.parser(
        "detect", "Name the device profile that fits this machine, with the evidence.", "fieldlm detect"
    )
    parser.add_argument(
        "--sysroot",
        type=options.existing_folder,
        default=LIVE,
        metavar="DIR",
        help="read another machine's /proc and /sys here",
    )
    args = parser.parse_args(argv)
    found = detect(args.sysroot)
    terminal.show(
        {
            "profile": found.best.id,
            "confidence": found.confidence,
            "matches": found.matches,
            "ruled_out": found.ruled_out,
            "taken": {name: value for name, (value, _) in _taken(found).items()},
            "idle": found.idle,
            "facts": found.facts,
        },
        _describe(found),
        as_json=args.json,
    )
    return 0


def _taken(found: Detection) -> dict[str, tuple[int, int]]:
    """Return what this machine has of its own, by the names that `fieldlm profiles` has, and what its profile says."""
    best, plain = found.best, load_profile(found.best.id)
    names = left_open(plain) if found.facts["cores"] else ()
    values = {
        "cpu.decode_threads": (best.cpu.decode_threads, plain.cpu.decode_threads),
        "memory.model_budget_mb": (best.memory.model_budget_mb, plain.memory.model_budget_mb),
        "gguf.context": (best.gguf.context, plain.gguf.context),
        "runtime.parallel": (best.runtime.parallel, plain.runtime.parallel),
    }
    return {name: pair for name, pair in values.items() if name in names or pair[0] != pair[1]}


def _describe(found: Detection) -> str:
    best, facts = found.matches[0], found.facts
    lines = [f"{found.best.id}  {found.best.title}  (confidence {found.confidence}, score {best.score})"]
    lines += [f"  {line}" for line in best.evidence]
    if others := [f"{match.profile} ({match.score})" for match in found.matches[1:4]]:
        lines.append(f"also fit: {', '.join(others)}")
    if found.best.generic:
        lines += [f"ruled out: {match.profile}: {match.ruled_out}" for match in found.ruled_out]
    lines.append(
        f"machine: {facts['cpu_name'] or facts['arch']}, {counted(facts['cores'], 'core')}, {facts['memory_mb']} MB"
        + "".join(f", {word}" for word in ("virtual", "container") if facts[word])
    )
    if taken := _taken(found):
        own = ", ".join(f"{name} {value}" for name, (value, _) in taken.items())
        plain = ", ".join(str(value) for _, value in taken.values())
        lines.append(f"takes from the machine: {own}; {found.best.id} itself says {plain}")
    lines += [f"idle: {each.name} ({each.kind}); it takes {each.use}" for each in found.idle]
    lines.append(f"next: fieldlm profiles {found.best.id}")
    return "\n".join(lines)
