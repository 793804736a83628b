"""Bound on the digits of JSON numbers while they are written: a small model that cannot decide writes digits for ever.

JSON sets no end to a number, and neither does a grammar of it. So who writes one has DIGITS before the point, as many
behind it, and an exponent that no double overflows at; what is longer is not worth its tokens, nor exact in any client.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

DIGITS = 16  # what a double holds, and what llama.cpp's grammars allow
EXPONENT_DIGITS = 2
_FIGURES = b"0123456789"

NOTHING_SAID: Mapping[int, bytes] = MappingProxyType({})
NO_TEXTS: Mapping[bytes, bytes] = MappingProxyType({})

Floats = NDArray[np.float32]


class DigitTable:
    """How many digits each token of a vocabulary begins with."""

    def __init__(self, vocabulary: Sequence[bytes]) -> None:
        self.pieces = vocabulary
        counts = [len(piece) - len(piece.lstrip(_FIGURES)) for piece in vocabulary]
        self.leading: NDArray[np.uint16] = np.array(counts, np.uint16)
        self.most = max(counts, default=0)


class NumberBound:
    """How far the number in an answer has come. The JSON begins behind `after`, which an answer begins with or not.

    `said` are the bytes of control tokens, which have none of their own. Between what `texts` maps to each other is no
    JSON.
    """

    def __init__(
        self,
        table: DigitTable,
        after: bytes,
        *,
        said: Mapping[int, bytes] = NOTHING_SAID,
        texts: Mapping[bytes, bytes] = NO_TEXTS,
    ) -> None:
        self._said = said
        self._texts = texts
        self._longest = max((len(mark) for pair in texts.items() for mark in pair), default=0)
        self._tail = b""
        self._ends = b""
        """What ends the text that stands here as it is."""
        self._table = table
        self._before = after
        self._is_json = True
        self._in_string = self._is_escaped = self._in_exponent = False
        self._run = 0

    def note(self, token: int) -> None:
        """Take note of the next token of the answer."""
        piece = self._table.pieces[token] or self._said.get(token, b"")
        if self._before:
            said, piece = piece[: len(self._before)], piece[len(self._before) :]
            self._is_json = self._is_json and self._before.startswith(said)
            self._before = self._before[len(said) :]
        for byte in piece if self._is_json else b"":
            self._step(byte)

    def _step(self, byte: int) -> None:
        if self._texts and self._is_text(byte):
            self._run = 0
        elif self._in_string:
            self._in_string = self._is_escaped or byte != 0x22
            self._is_escaped = not self._is_escaped and byte == 0x5C
        elif byte in _FIGURES:
            self._run += 1
        else:
            self._in_string = byte == 0x22
            begins = byte in b"eE" and self._run > 0
            self._in_exponent = begins or (self._in_exponent and byte in b"+-" and not self._run)
            self._run = 0

    def _is_text(self, byte: int) -> bool:
        """Whether `byte` is one of a text that stands as it is."""
        was_text = bool(self._ends)
        self._tail = self._tail[1 - self._longest :] + bytes((byte,))
        if was_text:
            if self._tail.endswith(self._ends):
                self._ends = self._tail = b""
        else:
            self._ends = next((ends for begins, ends in self._texts.items() if self._tail.endswith(begins)), b"")
            self._tail = b"" if self._ends else self._tail
        return was_text

    def limit(self, allowed: Floats) -> Floats:
        """Return `allowed` without the tokens that make the number too long; where nothing else may come, as it was."""
        left = (EXPONENT_DIGITS if self._in_exponent else DIGITS) - self._run
        if self._in_string or self._ends or not self._is_json or left >= self._table.most:
            return allowed
        known = min(allowed.size, self._table.leading.size)
        limited = allowed.copy()
        limited[:known][self._table.leading[:known] > max(left, 0)] = -np.inf
        return limited if np.isfinite(limited).any() else allowed
