"""Incremental detokenisation and stop strings: bytes of tokens in, whole characters out."""

import codecs
from collections.abc import Sequence
from typing import Literal, Protocol

Part = Literal["preamble", "undecided", "answer"]
"""What the text so far ends in: what stands before the answer, what may be either, or the answer."""


class PreambleReader(Protocol):
    """The text of one answer as it comes, and where in it the answer begins."""

    @property
    def part(self) -> Part:
        """What the text so far ends in."""
        ...

    def push(self, text: str) -> tuple[str, str]:
        """Return what is now certain to stand before the answer, marks and all, and what to be answer."""
        ...

    def finish(self) -> str:
        """Return what was held back, now that nothing follows: it is answer."""
        ...


class Preamble(Protocol):
    """What may stand before an answer and is no part of it, as a thought does."""

    def begin(self) -> PreambleReader:
        """Begin to read one answer."""
        ...


class TextStream:
    """The text of one answer as its tokens' bytes arrive.

    What may still become a character or a stop string is held back, so that no caller ever sees half of one. Stop
    strings end the answer, and are not looked for in its preamble. The work per push does not grow with the length of
    the answer.
    """

    def __init__(self, stop: tuple[str, ...] = (), preamble: Preamble | None = None) -> None:
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._preamble = preamble.begin() if preamble else None
        """Who knows where the answer begins; None once it has begun."""
        self._held = ""
        self._stopped = False
        self._count = 0
        self.begins_at = 0
        """Which character of the text, counted from 0, the first byte of the last piece is of."""
        self._is_inside = False
        """Whether the bytes so far end within a character."""

    @property
    def part(self) -> Part:
        """What the text so far ends in."""
        return "answer" if self._preamble is None else self._preamble.part

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string ended it."""
        return self._stopped

    def push(self, piece: bytes) -> tuple[str, bool]:
        """Return the text that is now certain, and whether a stop string ended it; the stop string is left out."""
        if self._stopped:
            return "", True
        if not self._is_inside and piece.isascii():
            text = piece.decode("ascii")
            self.begins_at = self._count
            self._count += len(text)
            return self._settle(text) if self._stop or self._preamble else (text, False)
        return self._settle(self._decode(piece))

    def _decode(self, piece: bytes) -> str:
        # The first byte may end a character, continue one or show that what came before is none, and becomes U+FFFD.
        first = self._decoder.decode(piece[:1])
        is_open = bool(self._decoder.getstate()[0])
        self.begins_at = self._count + len(first) - (0 if is_open else 1)
        text = first + self._decoder.decode(piece[1:])
        self._is_inside = bool(self._decoder.getstate()[0])
        self._count += len(text)
        return text

    def finish(self, *, is_cut: bool = False) -> str:
        """Return what was held back, now that nothing follows.

        Half a character is left out where the answer `is_cut`; where the model ended it there, it becomes U+FFFD.
        """
        if self._stopped:
            return ""
        if is_cut:
            self._decoder.reset()
        text, _ = self._settle(self._decoder.decode(b"", final=True))
        if self._preamble is not None and not self._stopped:
            late, self._preamble = self._preamble.finish(), None
            text += self._settle(late)[0]
        held, self._held = self._held, ""
        return text + ("" if self._stopped else held)

    def _settle(self, text: str) -> tuple[str, bool]:
        before = ""
        if self._preamble is not None:
            before, text = self._preamble.push(text)
            if self._preamble.part == "answer":
                self._preamble = None
        if not self._stop:
            return before + text, False
        text = self._held + text
        ends = [place for place in map(text.find, self._stop) if place >= 0]
        if ends:
            self._held, self._stopped = "", True
            return before + text[: min(ends)], True
        certain = len(text) - beginning_at_end(text, self._stop)
        self._held = text[certain:]
        return before + text[:certain], False


def beginning_at_end(text: str, marks: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that is the beginning, and not the whole, of one of `marks`."""
    longest = max(map(len, marks)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
