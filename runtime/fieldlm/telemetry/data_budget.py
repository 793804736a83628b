"""The data budget: how much a device may send in a day, and when, on links that cost money or belong to others by day.

Critical records (updates, feedback) travel in quiet hours, too, and may take a quarter more than the day's bytes. What
was sent is noted in the spool, so a restart does not begin a new day.
"""

import time
from collections.abc import Callable

from fieldlm.formats.policy import is_quiet
from fieldlm.formats.record import CRITICAL
from fieldlm.telemetry.spool import Spool

TIGHT = 0.5
"""From this share of the day's bytes on, easy examples travel without their text."""
CRITICAL_SHARE = 1.25
_NOTE = "sent"


class Budget:
    """The bytes of today. One thread sends; settings may change from any."""

    def __init__(
        self, spool: Spool, *, daily_mb: float = 0.0, quiet_hours: str = "", now_s: Callable[[], float] = time.time
    ) -> None:
        """`daily_mb` 0 is no limit; days and hours are local time."""
        self.daily_mb = daily_mb
        self.quiet_hours = quiet_hours
        self._spool = spool
        self._now_s = now_s
        self._day, self._sent = "", 0
        self._is_read = False

    def allows(self, stream: str) -> bool:
        """Say whether a block of `stream` may go now."""
        now = time.localtime(self._now_s())
        if self.quiet_hours and stream not in CRITICAL and is_quiet(self.quiet_hours, 60 * now.tm_hour + now.tm_min):
            return False
        return not self.daily_mb or self.sent_mb() < self.daily_mb * (CRITICAL_SHARE if stream in CRITICAL else 1)

    def is_tight(self) -> bool:
        """Say whether the rest of the day's bytes should go to what was hard."""
        return bool(self.daily_mb) and self.sent_mb() >= TIGHT * self.daily_mb

    def spend(self, size: int) -> None:
        """Count a message of `size` bytes."""
        self.sent_mb()
        self._sent += size
        if self.daily_mb:
            self._spool.write_note(_NOTE, f"{self._day} {self._sent}")

    def sent_mb(self) -> float:
        """Return today's megabytes."""
        if not self._is_read:
            self._is_read = True
            day, _, sent = self._spool.note(_NOTE).partition(" ")
            self._day, self._sent = day, int(sent) if sent.isdigit() else 0
        today = time.strftime("%Y-%m-%d", time.localtime(self._now_s()))
        if today != self._day:
            self._day, self._sent = today, 0
        return self._sent / 1e6
