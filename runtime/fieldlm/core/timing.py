"""A limit on how long a block takes, and a throttle for work that nobody waits for.

Threads that compute an answer meet at barriers: whoever takes the core of one for a quarter of a second stops the
answer for as long. In small pieces, with longer pauses between them (a duty cycle of 25 %), the same work costs each
answer little.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from fieldlm.core.tasks import PROCESS

SHARE = 0.25  # of one core, at most
PIECE_BYTES = 1 << 20


@contextmanager
def within(seconds: float, give_up: Callable[[], None]) -> Generator[None]:
    """Call `give_up` from another thread unless the block ends within `seconds`."""
    is_over = threading.Event()
    limit = PROCESS.start("limit", lambda: is_over.wait(seconds) or give_up())
    try:
        yield
    finally:
        is_over.set()
        limit.join()


class Throttle:
    """One thread's work in pieces, with `rest` after each."""

    def __init__(self) -> None:
        self._since_s = time.thread_time()

    def pause(self) -> None:
        """Sleep three times as long as this thread has computed since the last rest."""
        time.sleep((time.thread_time() - self._since_s) * (1 / SHARE - 1))
        self._since_s = time.thread_time()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of the file at `path`, in four times the time."""
    digest, pace = hashlib.sha256(), Throttle()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            pace.pause()
    return digest.hexdigest()
