"""Wall times that were wrong, put right while the same boot still runs.

A board without a battery begins in 1970 and learns the time minutes later. What it recorded before is in the spool with
a wall time that nobody can use, and a monotonic time of this boot that is right: together with today's clock it gives
the wall time back. Records of an earlier boot stay as they are, and `clock_ok` says so.
"""

import time

import msgspec

from fieldlm.formats.record import Record

OLDEST_CLOCK_MS = 1_735_689_600_000
"""2025-01-01: a clock before it was never set."""
DAY_MS = 86_400_000


def is_set(wall_ms: int) -> bool:
    return wall_ms > OLDEST_CLOCK_MS


def rebased(record: Record, boot: str) -> Record:
    """Return `record` with its time by today's clock, if it is of this `boot` and its own cannot be right."""
    wall_ms, mono_ms = time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000
    from_future = record.wall_ms > wall_ms + DAY_MS
    if not boot or record.boot != boot or not is_set(wall_ms) or (record.clock_ok and not from_future):
        return record
    return msgspec.structs.replace(record, wall_ms=wall_ms - (mono_ms - record.mono_ms), clock_ok=True)
