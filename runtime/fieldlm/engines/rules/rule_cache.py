"""Cache of compiled rules, bounded by what they hold: many small ones, or a few large ones."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class RuleCache(Generic[Key, Value]):
    """Keeps what was made last, `most_bytes` at most and yet always the last one. Safe from any thread."""

    def __init__(self, *, size: Callable[[Key], int], most_bytes: int) -> None:
        self._size = size
        self._most_bytes = most_bytes
        self._made: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: Key) -> Value | None:
        """Return what was made of `key`; None where it is not kept."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
            return self._made.get(key)

    def keep(self, key: Key, made: Value) -> Value:
        """Keep what was made of `key`, and return it."""
        with self._lock:
            if key not in self._made:
                self._made[key] = made
                self.bytes += self._size(key)
            while self.bytes > self._most_bytes and len(self._made) > 1:
                self.bytes -= self._size(self._made.popitem(last=False)[0])
        return made
