"""`fieldlm slots`: what lies on this device, or on another."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from fieldlm.control import remote
from fieldlm.core import terminal
from fieldlm.core.config import load_config
from fieldlm.updates.journal import Journal, SlotStatus, journal_of, read_status


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm slots`."""
    parser = terminal.parser(
        "slots",
        "Show which generations a device holds, and the last steps it took.",
        "fieldlm slots",
        "fieldlm slots kiosk-7 --broker mqtt://broker.local",
    )
    remote.add_arguments(parser)
    args = parser.parse_args(argv)
    remote.check_arguments(args)
    if args.device or args.url:
        status = msgspec.convert(remote.connect(args).do("slots"), SlotStatus)
        terminal.show(status, _page(status), as_json=args.json)
        return 0
    state = load_config({"state": args.state}).state
    journal = Journal(journal_of(state), read_only=True)
    try:
        status = read_status(journal)
    finally:
        journal.close()
    terminal.show(status, _page(status), as_json=args.json)
    return 0


def _page(status: SlotStatus) -> str:
    slots = [(name, getattr(status, name)[:12] or "–") for name in ("current", "previous", "factory", "trial")]
    parts = [terminal.table(slots, ("slot", "generation")), f"release {status.seq}, floor {status.floor}"]
    if status.failed:
        rows = [(known.seq, known.bundle[:12], known.failed) for known in status.failed]
        parts.append(terminal.table(rows, ("failed", "generation", "reason")))
    steps = [(_clock(step.wall_ms), step.step, step.bundle[:12], step.detail) for step in status.journal]
    return "\n\n".join([*parts, terminal.table(steps, ("time", "step", "generation", ""))])


def _clock(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000).isoformat(" ", "seconds")
