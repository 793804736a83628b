"""Reconnect back-off with full jitter, over a window that the fleet's policy sets by its size.

A thousand devices may all come back within a second; a million that lost one broker must not. Each wait is drawn from
[0, ceiling]. With a window W the first wait is drawn from all of it and no ceiling is below it: a fleet of N then asks
for N/W connections a second at first and never for more than e·N/W, whenever the outage ends (the renewal density of
uniform waits peaks at W, with e/W). benchmarks/reconnects.py counts it with this very function.
"""

import random
from collections.abc import Callable

import msgspec

Uniform = Callable[[float, float], float]


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds; `window_s` is 0 for a fleet that needs no spreading."""

    base_s: float = 0.5
    cap_s: float = 300.0
    window_s: float = 0.0

    def delay_s(self, failures: int, uniform: Uniform = random.uniform) -> float:
        """Return how long to wait after `failures` connections in a row that came to nothing; 0 when one was lost."""
        ceiling_s = max(self.window_s, min(self.cap_s, self.base_s * 2 ** min(failures, 30)))
        return uniform(0.0, ceiling_s)

    def start_s(self, uniform: Uniform = random.uniform) -> float:
        """Return how long a device that has just started waits: a town may have its power back in one moment."""
        return uniform(0.0, self.window_s / 2)
