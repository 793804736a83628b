"""The token stream of one running answer: the engine puts chunks in, one reader takes them out."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from fieldlm.engines import Chunk, Timings


def chosen_per_s(timings: Timings) -> float | None:
    """Return the tokens a second behind the first, of those that were chosen; None for fewer than two.

    Forced ones come many a step. A step that reads them takes longer, too: by this figure answers with forced tokens
    compare well among themselves, and not with those without.
    """
    steps = timings.completion_tokens - timings.forced_tokens - 1
    return steps / timings.decode_s if steps > 0 and timings.decode_s > 0 else None


class AnswerStream:
    """A `Generation`. The worker calls `put` until a chunk with an outcome, and looks at `cancelled` between steps.

    `wake` is called once by the first `cancel`, from the caller's thread, so that the worker looks soon.
    """

    def __init__(self, *, prompt_tokens: int, wake: Callable[[], None]) -> None:
        self.timings = Timings(prompt_tokens=prompt_tokens)
        self.cancelled = False
        self._wake = wake
        self._chunks: SimpleQueue[Chunk] = SimpleQueue()
        self._receive: Callable[[Chunk], None] | None = None
        self._has_ended = False
        self._lock = threading.Lock()

    def put(self, chunk: Chunk) -> None:
        """Hand over one chunk; what comes after the one with an outcome is dropped."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = chunk.outcome is not None
            if self._receive is None:
                self._chunks.put(chunk)
                return
        self._receive(chunk)

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            chunk = self._chunks.get()
            yield chunk
            if chunk.outcome is not None:
                return

    def subscribe(self, receive: Callable[[Chunk], None]) -> None:
        """See `Generation.subscribe`."""
        with self._lock:
            assert self._receive is None, "an answer has one reader"
            while not self._chunks.empty():
                receive(self._chunks.get())
            self._receive = receive

    def cancel(self) -> None:
        """See `Generation.cancel`."""
        if not self.cancelled:
            self.cancelled = True
            self._wake()
