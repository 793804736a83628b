"""Work that nobody waits for, done so that nobody waits because of it.

Threads that compute an answer meet at barriers: whoever takes the core of one for a quarter of a second stops the
answer for as long. In small pieces, with longer rests between them, the same work costs each answer little.
"""

import hashlib
import time
from pathlib import Path

SHARE = 0.25  # of one core, at most
PIECE_BYTES = 1 << 20


class Pace:
    """One thread's work in pieces, with `rest` after each."""

    def __init__(self) -> None:
        self._since_s = time.thread_time()

    def rest(self) -> None:
        """Sleep three times as long as this thread has computed since the last rest."""
        time.sleep((time.thread_time() - self._since_s) * (1 / SHARE - 1))
        self._since_s = time.thread_time()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of the file at `path`, in four times the time."""
    digest, pace = hashlib.sha256(), Pace()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            pace.rest()
    return digest.hexdigest()
