"""Special tokens cut out of a text before a tokenizer sees it, and the least tokens a text can have.

llama.cpp looks for each special token from the start of what is left, for all that it has found: a conversation of
thousands of turns takes minutes. Here each is looked for once, in llama.cpp's order, and the ids are the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import msgspec

SPACE = b" \t\n\v\f\r"  # C's isspace


@dataclass(frozen=True)
class SpecialText:
    """A token that is found by its text alone, and whether it swallows the space before and behind it."""

    text: bytes
    token: int
    strips_left: bool = False
    strips_right: bool = False


class SpecialTexts:
    """The special tokens of a vocabulary."""

    def __init__(self, specials: Iterable[SpecialText]) -> None:
        self._specials = sorted((one for one in specials if one.text), key=lambda one: -len(one.text))
        self.shrinks = any(one.strips_left or one.strips_right for one in self._specials)
        """Whether a text may lose space without getting a token for it."""

    def split(self, data: bytes) -> Sequence[bytes | int]:
        """Return the special tokens in `data`, and the text between them."""
        pieces: list[bytes | int] = [data]
        for special in self._specials:
            if special.text in data:
                cut = (_cut(piece, special) if isinstance(piece, bytes) else [piece] for piece in pieces)
                pieces = [part for parts in cut for part in parts]
        return pieces


def _cut(piece: bytes, special: SpecialText) -> list[bytes | int]:
    parts, found = piece.split(special.text), list[bytes | int]()
    for i, part in enumerate(parts):
        if i:
            found.append(special.token)
        kept = part.lstrip(SPACE) if i and special.strips_right else part
        kept = kept.rstrip(SPACE) if i < len(parts) - 1 and special.strips_left else kept
        if kept:
            found.append(kept)
    return found


@dataclass(frozen=True)
class TokenLength:
    """How many bytes of text a token can stand for; `most` 0 where nobody knows, `lost` are those that get no token."""

    most: int = 0
    lost: bytes = b""

    def least_tokens(self, text: str) -> int:
        """Return a number of tokens that `text` has at least, without tokenising it."""
        return len(text.encode(errors="replace").translate(None, self.lost)) // self.most if self.most else 0


@lru_cache
def byte_of_character() -> dict[str, bytes]:
    """Return GPT-2's alphabet: bytes without a printable character of their own sit from U+0100 upwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + place): bytes([byte]) for place, byte in enumerate(others)}


def control_tokens(tokenizer: bytes) -> tuple[str, ...]:
    """Return the texts of the special tokens that the tokenizer.json `tokenizer` adds."""
    added = cast(list[dict[str, Any]], msgspec.json.decode(tokenizer).get("added_tokens") or [])
    return tuple(str(token["content"]) for token in added if token.get("special"))
