"""Response ids that nobody can guess and that travel as the numbers they were made from.

An id is a prefix and 16 hex digits: 64 bits that are a number under a permutation with the device's key. Numbers count
up, so a block holds their steps, a bit or two each, and the key once, where random digits would cost eight bytes an
answer: a third of all. Any 64 bits are some number, so an id from elsewhere survives too; it only costs what it did.

The permutation is Luby's and Rackoff's (1988): four rounds of a Feistel network, here over halves of 32 bits with
AES-128 as the round's function. Who has not the key cannot tell its ids from random ones.
"""

import secrets
import struct
import threading
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 16
DIGITS = 16
ROUNDS = 4
_HALF = (1 << 32) - 1
_AT_ONCE = 64
_COUNT_BITS = 24
"""What is left of 64 bits names the run, at random: 1,000 starts of a device collide once in two million devices."""


class ResponseIds:
    """Makes ids, safe from any thread; each object counts from a place of its own."""

    def __init__(self, key: bytes = b"") -> None:
        """`key` has KEY_BYTES; without one a random key is made, and the ids are as good as random."""
        self._key = key or secrets.token_bytes(KEY_BYTES)
        self._lock = threading.Lock()
        self._next = self._left = 0
        self._made: list[str] = []

    def next(self, prefix: str) -> str:
        with self._lock:
            if not self._made:
                self._made = digits(self._numbers(), self._key)[::-1]
            return prefix + self._made.pop()

    def _numbers(self) -> range:
        """Return the next few numbers: one by one they would cost a request twenty times as much."""
        if not self._left:
            run = secrets.randbits(64 - _COUNT_BITS)
            self._next, self._left = (run << _COUNT_BITS) - (1 << 63), (1 << _COUNT_BITS) // _AT_ONCE
        self._next, self._left = self._next + _AT_ONCE, self._left - 1
        return range(self._next - _AT_ONCE, self._next)


def digits(numbers: Sequence[int], key: bytes) -> list[str]:
    """Return the 16 hex digits of each number, which are from -2^63 to 2^63 - 1."""
    left, right = [n & _HALF for n in numbers], [n >> 32 & _HALF for n in numbers]
    cipher = _cipher(key)
    for turn in range(ROUNDS):
        left, right = right, _mixed(left, right, turn, cipher)
    return [f"{a:08x}{b:08x}" for a, b in zip(left, right, strict=True)]


def numbers(texts: Sequence[str], key: bytes) -> list[int]:
    """Return the numbers behind `digits`; raises ValueError when a text is not 16 hex digits."""
    left, right = [int(text[:8], 16) for text in texts], [int(text[8:], 16) for text in texts]
    cipher = _cipher(key)
    for turn in reversed(range(ROUNDS)):
        left, right = _mixed(right, left, turn, cipher), left
    return [(b << 32 | a) - ((b >> 31) << 64) for a, b in zip(left, right, strict=True)]


def _cipher(key: bytes) -> Any:
    # One block of AES for each input, none chained to another: here it is a function, not a way to keep a text secret.
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor()


def _mixed(halves: Sequence[int], inputs: Sequence[int], turn: int, cipher: Any) -> list[int]:
    """Return each half, xor the round's function of its input."""
    tail = struct.pack("<III", turn, 0, 0)
    mixed = cipher.update(b"".join([each.to_bytes(4, "little") + tail for each in inputs]))
    return [a ^ b for a, b in zip(halves, struct.unpack("<" + len(inputs) * "I12x", mixed), strict=True)]
