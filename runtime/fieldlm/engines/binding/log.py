"""llama.cpp's log of the whole process: it is not printed; buffer sizes are added up, complaints kept until asked."""

import re
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from fieldlm.core.interrupts import heeding_interrupts

LOG_WARN, LOG_ERROR, LOG_CONTINUE = 3, 4, 5
OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
BUFFER = re.compile(r"(model|KV|compute|LoRA) buffer size = +([\d.]+) MiB")
MIB = 1.048576  # megabytes (1e6 bytes)


def _nothing() -> None:
    pass


class Log:
    """What llama.cpp said; `callback` is what it says it to."""

    def __init__(self, api: Any) -> None:
        self._lock = threading.Lock()
        self._complaints: deque[str] = deque(maxlen=4)
        self._sizes: dict[str, float] = {}
        self._on_buffer: Callable[[], object] = _nothing
        self.offloaded: tuple[int, int] | None = None
        """Layers on a GPU and layers in all of the weights that were loaded last, as far as llama.cpp says."""
        self.callback = api.llama_log_callback(self._line)

    def _line(self, level: int, text: bytes, _: object) -> None:
        line = text.decode(errors="replace").strip()
        if level >= LOG_ERROR and level != LOG_CONTINUE and line:
            self._complaints.append(line)
        elif found := BUFFER.search(line):
            self._sizes[found[1]] = self._sizes.get(found[1], 0.0) + float(found[2]) * MIB
            self._on_buffer()
        elif found := OFFLOADED.search(line):
            self.offloaded = (int(found[1]), int(found[2]))

    @contextmanager
    def listening(self, on_buffer: Callable[[], object] = _nothing) -> Generator[dict[str, float]]:
        """Have the log for calls of one object; yields the sizes of the buffers that they tell of (1e6 bytes, by name).

        `on_buffer` is called for each of them: llama.cpp tells of a buffer for weights when its memory is there, and
        before it writes to it. Ctrl-C while a line is heard, which Python drops, is raised at the end.
        """
        with self._lock, heeding_interrupts():
            self._complaints.clear()
            self._sizes = {}
            self.offloaded = None
            self._on_buffer = on_buffer
            try:
                yield self._sizes
            finally:
                self._on_buffer = _nothing

    def reason(self) -> str:
        """Return why the last call failed: the first complaint is the cause, later ones are consequences."""
        text = self._complaints[0] if self._complaints else "llama.cpp gives no reason"
        return text.split(": ", 1)[-1] if text.startswith("llama_") else text
