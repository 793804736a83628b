"""Who comes first: what is under way and may wait gives way, as long as somebody wants to."""

import threading
from collections.abc import Generator
from contextlib import contextmanager


class Preemption:
    """What is under way and may wait gives way, as long as somebody wants to come first."""

    def __init__(self) -> None:
        self.is_wanted = threading.Event()
        self._lock = threading.Lock()
        self._askers = 0

    def ask(self, change: int = 1) -> None:
        with self._lock:
            self._askers += change
            if self._askers:
                self.is_wanted.set()
            else:
                self.is_wanted.clear()

    @contextmanager
    def asked(self) -> Generator[None]:
        """Want to come first for as long as the block takes."""
        self.ask()
        try:
            yield
        finally:
            self.ask(-1)
