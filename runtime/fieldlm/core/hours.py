"""Hours of the day such as `22:00-06:00`, in the device's own time: when it may fetch, when it keeps quiet."""

import re

import msgspec

HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class HourWindow(msgspec.Struct, frozen=True, kw_only=True):
    """From a minute of the day up to another, over midnight where that is earlier; the same twice holds none."""

    opens: int
    closes: int

    def holds(self, minute: int) -> bool:
        """Say whether `minute` of the day lies within."""
        if self.opens <= self.closes:
            return self.opens <= minute < self.closes
        return minute >= self.opens or minute < self.closes


def parse_hours(text: str) -> HourWindow:
    """Read `01:00-05:30`; raises ValueError for anything else."""
    match = HOURS.fullmatch(text)
    if not match:
        raise ValueError(f"{text[:40]!r} are no hours; write HH:MM-HH:MM, as in 22:00-06:00")
    opens, closes = (int(match[group]) * 60 + int(match[group + 1]) for group in (1, 3))
    return HourWindow(opens=opens, closes=closes)
