"""`fieldlm detect`: which device profile fits this machine, and why."""

from collections.abc import Sequence

from fieldlm.core import options, terminal
from fieldlm.core.wording import counted
from fieldlm.hardware.detect import Detection, detect
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
            "idle": found.idle,
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
    if found.best.generic:
        lines += [f"ruled out: {match.profile}: {match.ruled_out}" for match in found.ruled_out]
    lines.append(
        f"machine: {facts['cpu_name'] or facts['arch']}, {counted(facts['cores'], 'core')}, {facts['memory_mb']} MB"
        + "".join(f", {word}" for word in ("virtual", "container") if facts[word])
    )
    if found.best.memory.total_mb is None and facts["cores"]:
        threads, budget_mb = found.best.cpu.decode_threads, found.best.memory.model_budget_mb
        lines.append(f"takes from the machine: {counted(threads, 'thread')}, models {budget_mb} MB")
    lines += [f"idle: {each.name} ({each.kind}); it takes {each.use}" for each in found.idle]
    lines.append(f"next: fieldlm profiles {found.best.id}")
    return "\n".join(lines)
