"""The newest examples are held out: what is trained on was said before a time, and what judges it is not.

Customers stay whole. Who spoke first from that time on is held out; what a training customer says from then on is left
out, for it may neither train nor judge. Examples whose device had no clock stay where their customer is.

Who gives no session speaks for the device. Where nobody gives one and there are so few devices that all are on one
side, nothing could be trained on or judged; then each answer stands for itself, and the newest are held out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.curated import CuratedExample

NEWER = "newer, of a training customer"


@dataclass(frozen=True, kw_only=True)
class HeldOutFrom:
    """From when on examples are held out: a time (UTC), or the newest share of all that have a time."""

    at_ms: int = 0
    share: float = 0.0


def held_out_from(text: str) -> HeldOutFrom:
    """Read a date, a date with a time, or a share; raises InputError."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if 0 < share < 1:
        return HeldOutFrom(share=share)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"--held-out-from {text!r} is no date and no share; want 2026-11-01, 2026-11-01T18:00, or the newest "
            "share, as 0.1"
        ) from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return HeldOutFrom(at_ms=int(when.timestamp() * 1000))


def as_date(at_ms: int) -> str:
    """Return a time as reports show it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def hold_out_newest(examples: Sequence[CuratedExample], since: HeldOutFrom) -> tuple[list[CuratedExample], int]:
    """Return the examples with the newest held out, without those that are left out; and from when on, in ms.

    Raises InputError where no example has a time.
    """
    known = sorted(example.at_ms for example in examples if example.at_ms)
    if not known:
        raise InputError("--held-out-from: no example has a time, for no device had a clock; leave it out")
    at_ms = since.at_ms or known[min(len(known) - 1, math.ceil(len(known) * (1 - since.share)))]
    first_ms: dict[str, int] = {}
    for example in examples:
        if example.at_ms:
            first_ms[example.customer] = min(example.at_ms, first_ms.get(example.customer, example.at_ms))
    kept: list[CuratedExample] = []
    for example in examples:
        if example.split == "train" and first_ms.get(example.customer, 0) >= at_ms:
            kept.append(msgspec.structs.replace(example, split="eval"))
        elif example.split == "eval" or example.at_ms < at_ms:
            kept.append(example)
    return kept, at_ms


def is_nobody_known(examples: Sequence[CuratedExample]) -> bool:
    """Say whether no labelled example names a session, and their devices are all on one side."""
    labelled = [example for example in examples if example.label_source != "none"]
    sides = {example.split for example in labelled}
    return len(labelled) > 1 and len(sides) == 1 and all(example.names_nobody for example in labelled)


def alone(examples: Sequence[CuratedExample]) -> list[CuratedExample]:
    """Return the examples each for itself, all to be trained on."""
    return [msgspec.structs.replace(example, split="train", is_alone=True) for example in examples]


def hold_out_alone(
    examples: Sequence[CuratedExample], since: HeldOutFrom | None, share: float
) -> tuple[list[CuratedExample], int]:
    """Return examples that stand each for itself with the newest held out, in their order; and from when on, in ms.

    Without `since` it is the newest `share` of them, or the last ones where no device had a clock, and 0 is returned.
    """
    if since is not None:
        return hold_out_newest(examples, since)
    order = sorted(range(len(examples)), key=lambda at: (examples[at].at_ms, at))
    held = set(order[min(len(order) - 1, math.ceil(len(order) * (1 - share))) :])
    return [msgspec.structs.replace(each, split="eval") if at in held else each for at, each in enumerate(examples)], 0
