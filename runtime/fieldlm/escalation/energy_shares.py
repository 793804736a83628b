"""Energy shares: what the machine used while a request was in flight, each joule split evenly among those that were."""

import threading
import weakref
from collections.abc import Callable


class EnergyShare:
    """One request in flight. Who drops it has left."""

    def __init__(self, began_j: float) -> None:
        self.began_j = began_j


class EnergyShares:
    """Shares of a running total of joules, which is None while nothing measures. Safe from any thread."""

    def __init__(self, joules: Callable[[], float | None]) -> None:
        self._joules = joules
        self._lock = threading.Lock()
        self._inside: weakref.WeakSet[EnergyShare] = weakref.WeakSet()
        self._each_j = 0.0
        """What a request would have used by now that had been there from the beginning."""
        self._last: float | None = None

    def begin(self) -> EnergyShare:
        """Say that a request is there."""
        with self._lock:
            self._turn()
            share = EnergyShare(self._each_j)
            self._inside.add(share)
            return share

    def end(self, share: EnergyShare) -> float:
        """Say that a request has ended, and return its joules; 0 where nothing measures."""
        with self._lock:
            self._turn()
            self._inside.discard(share)
            return self._each_j - share.began_j

    def _turn(self) -> None:
        now = self._joules()
        if now is not None and self._last is not None and self._inside:
            self._each_j += max(0.0, now - self._last) / len(self._inside)
        self._last = now
