"""Prompt context: the system prompt and the tools that stood around somebody's words, told once and then by digest.

A bundle's own system prompt and a request's tools are no part of its messages, and are the same for thousands of them.
Without them a model would be trained on another prompt than the one that was served.
"""

import hashlib
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from fieldlm.formats.policy import Mode

MAX_CHARS = 65_536
"""A longer context is named and never told: what refers to it is no example."""
MOST, MOST_S = 64, 86_400.0
"""How many are told in how many seconds: who sends other tools with every request must not fill the spool."""
EVENT = "context"


class PromptContexts:
    """The contexts that were told since the start. Safe from any thread."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def meet(self, context: Mapping[str, Any], mode: Mode) -> tuple[str, bool]:
        """Return the digest of `context`, and whether it has to be told now; what is told depends on `mode`."""
        # Keys keep their order: a template writes tools in it.
        text = msgspec.json.encode(dict(context))
        digest = hashlib.sha256(mode.encode() + b"\0" + text).hexdigest()[:16]
        now_s = time.monotonic()
        with self._lock:
            if digest in self._told or len(text) > MAX_CHARS:
                return digest, False
            recent = {known: at_s for known, at_s in self._told.items() if now_s - at_s < MOST_S}
            if len(recent) >= MOST:
                return digest, False
            self._told = recent | {digest: now_s}
        return digest, True
