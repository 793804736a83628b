"""Telemetry alerts, what is wrong by name: it serves on meanwhile, and what is not named nobody looks for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from fieldlm.core.wording import counted
from fieldlm.hardware.clock import Clock
from fieldlm.telemetry.spool import Health

if TYPE_CHECKING:
    from fieldlm.telemetry.sync import SyncStatus


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong.

    name: what `Health.problem` and `Status.trouble` say; quarantined (a damaged spool was set aside), card-moved (the
    card was in another board before, or is a copy), records-refused (a collector had one back for good, and it was
    given up), clock-unset, clock-jumped.
    """

    name: str
    detail: str


def troubles(spool: Health, sync: "SyncStatus | None", clock: Clock) -> Iterator[Trouble]:
    """Yield everything that is wrong now."""
    if spool.problem:
        yield Trouble(
            name=spool.problem, detail=f"{spool.detail}; {counted(spool.waiting, 'record')} waiting in memory"
        )
    if spool.quarantined:
        yield Trouble(name="quarantined", detail=spool.quarantined[-1])
    if spool.moved_from:
        yield Trouble(name="card-moved", detail=f"epoch {spool.moved_from} was another board's")
    if refused := spool.dropped.get("refused"):
        yield Trouble(
            name="records-refused", detail=f"given up: {counted(refused, 'record')} that no collector would have"
        )
    if sync and sync.trouble:
        yield Trouble(name=sync.trouble, detail=sync.problem)
    name, detail = clock.trouble()
    if name:
        yield Trouble(name=name, detail=detail)
