"""The request queue, earliest deadline first within a class, and the timer that ends those whose time is over.

Both are needed by every engine and by more than one thread: an engine that computes a long prompt cannot look up when
the time of another answer has come.
"""

import heapq
import math
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fieldlm.core.tasks import PROCESS, BackgroundTask
from fieldlm.engines import Outcome
from fieldlm.engines.request import Request

Waiting = TypeVar("Waiting", bound=Request)


class RequestQueue(Generic[Waiting]):
    """Requests that wait, the earliest deadline first within a class. Safe from any thread.

    Who takes one out of it owns it: it ends or it runs, never both.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Waiting]:
        """Iterate over those that wait now, the most urgent first."""
        with self._lock:
            return iter(self._requests.copy())

    def add(self, request: Waiting) -> None:
        with self._lock:
            insort(self._requests, request, key=lambda waiting: waiting.urgency)

    def take(self, request: Waiting) -> bool:
        """Take `request` out; False when it is not there any more, because it has ended."""
        with self._lock:
            if request not in self._requests:
                return False
            self._requests.remove(request)
            return True

    def sweep(self) -> None:
        """End those whose reader or time is gone."""
        for request in self if self._requests else ():
            fate = request.terminal_outcome()
            if fate and self.take(request):
                request.end(fate)

    def end_all(self, outcome: Outcome, error: str | None = None) -> None:
        for request in self:
            if self.take(request):
                request.end(outcome, error=error)

    def close_all(self) -> None:
        for request in self:
            if self.take(request):
                request.close()


class DeadlineTimer:
    """Calls `ring` from a thread of its own at the times that were set. The thread starts with the first of them."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._times_s: list[float] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._task: BackgroundTask | None = None

    def set(self, request: Request) -> None:
        """Ring when `request` would have to begin, and when it would have to end."""
        times_s = [time_s for time_s in (request.start_by_s, request.due_s) if time_s < math.inf]
        if not times_s:
            return
        with self._changed:
            for time_s in times_s:
                heapq.heappush(self._times_s, time_s)
            if self._task is None and not self._is_closed:
                self._task = PROCESS.start("deadlines", self._run, restarts=True)
            self._changed.notify()

    def close(self) -> None:
        """Ring no more, and let go of who is rung for: an engine that waits for the collector keeps its vocabulary."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._task is not None:
            self._task.join()
        self._ring = _silent

    def _run(self) -> None:
        while self._wait():
            try:
                self._ring()
            except Exception as error:  # the next deadline is another request's
                PROCESS.crashed("deadlines", error)

    def _wait(self) -> bool:
        """Wait for the next time and forget it; False once closed."""
        with self._changed:
            while not self._is_closed:
                now_s = time.monotonic()
                if self._times_s and self._times_s[0] <= now_s:
                    while self._times_s and self._times_s[0] <= now_s:
                        heapq.heappop(self._times_s)
                    return True
                wait_s = self._times_s[0] - now_s if self._times_s else None
                self._changed.wait(None if wait_s is None else min(wait_s, threading.TIMEOUT_MAX))
            return False


def _silent() -> None:
    pass
