"""Clock corrections: wall times that were wrong, put right within the same boot; and clocks that are not believed.

A board without a battery begins in 1970 and learns the time minutes later. What it recorded before is in the spool with
a wall time that nobody can use, and a monotonic time of this boot that is right: together with today's clock it gives
the wall time back. Records of an earlier boot stay as they are, and `clock_ok` says so.
"""

import time

import msgspec

from fieldlm.formats.record import Record

OLDEST_CLOCK_MS = 1_735_689_600_000
"""2025-01-01: a clock before it was never set."""
LATEST_CLOCK_MS = 2_366_841_600_000
"""2045-01-01: a clock after it was set wrongly, or this program is twenty years old."""
DAY_MS = 86_400_000
_BOOT = time.CLOCK_BOOTTIME
"""Counts on while the machine sleeps, which is no jump of its clock."""


class Clock:
    """Watches the wall clock of this boot, to name one that was never set and one that has jumped."""

    def __init__(self) -> None:
        self._ahead_ms: int | None = None
        """What the wall clock said beyond the time since boot when it was last believed."""
        self._jumped_ms: int | None = None

    def look(self) -> None:
        """Compare both clocks; a jump is believed after a day, and forgotten when it is taken back."""
        wall_ms, boot_ms = time.time_ns() // 1_000_000, time.clock_gettime_ns(_BOOT) // 1_000_000
        if not is_set(wall_ms):
            return
        ahead_ms = wall_ms - boot_ms
        is_near = self._ahead_ms is None or abs(ahead_ms - self._ahead_ms) <= DAY_MS
        if is_near or (self._jumped_ms is not None and boot_ms - self._jumped_ms > DAY_MS):
            self._ahead_ms, self._jumped_ms = ahead_ms, None
        elif self._jumped_ms is None:
            self._jumped_ms = boot_ms

    def trouble(self) -> tuple[str, str]:
        """Return the name of what is wrong now and more about it; two empty strings for nothing."""
        self.look()
        wall_s = time.time_ns() / 1e9
        if not is_set(int(wall_s * 1000)):
            return "clock-unset", f"it says {_date(wall_s)}; times are put right once it is set"
        if self._jumped_ms is not None:
            return "clock-jumped", f"it says {_date(wall_s)}, which is not what it said before"
        return "", ""


def _date(wall_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(wall_s))


def is_set(wall_ms: int) -> bool:
    return wall_ms > OLDEST_CLOCK_MS


def is_credible(wall_s: float) -> bool:
    """Say whether this may be the time. One who can set a clock to 2100 can set it to 1970: neither is a date."""
    return OLDEST_CLOCK_MS < wall_s * 1000 < LATEST_CLOCK_MS


def rebased(record: Record, boot: str) -> Record:
    """Return `record` with its time by today's clock, if it is of this `boot` and its own cannot be right."""
    wall_ms, mono_ms = time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000
    from_future = record.wall_ms > wall_ms + DAY_MS
    if not boot or record.boot != boot or not is_set(wall_ms) or (record.clock_ok and not from_future):
        return record
    return msgspec.structs.replace(record, wall_ms=wall_ms - (mono_ms - record.mono_ms), clock_ok=True)
