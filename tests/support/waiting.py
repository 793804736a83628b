"""Wait for what another thread or process does."""

import time
from collections.abc import Callable

PATIENCE_S = 60.0


def wait_until(holds: Callable[[], object], *, patience_s: float = PATIENCE_S) -> None:
    """Return as soon as `holds` is true; fails when that takes longer than `patience_s`."""
    end_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end_s, f"this was not true within {patience_s:.0f} s"
        time.sleep(0.01)
