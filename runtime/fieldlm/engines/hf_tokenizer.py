"""Hugging Face tokenizer (`tokenizer.json`): text to token ids, and each id to the very bytes it stands for."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from fieldlm.core.errors import EngineError

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Added(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool = False


class _File(msgspec.Struct, frozen=True):
    """What we read of tokenizer.json ourselves; the rest is the library's."""

    added_tokens: tuple[_Added, ...] = ()
    decoder: msgspec.Raw = msgspec.Raw(b"null")


class HfTokenizer:
    """The tokens of one model. Safe from any thread."""

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            self._tokenizer = Tokenizer.from_str(text)
            file = msgspec.json.decode(text, type=_File)
        # The library raises bare Exception for a broken file.
        except Exception as error:
            raise EngineError(f"{path} is not a tokenizer: {first_line(error)}; compile the bundle again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._added = {token.id: b"" if token.special else token.content.encode() for token in file.added_tokens}
        self._is_byte_level = b"ByteLevel" in bytes(file.decoder)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens written in it become their ids, none is added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.piece, tokens)).decode("utf-8", errors="replace")

    def pieces(self) -> list[bytes]:
        """Return the bytes of every token, by its id."""
        return [self.piece(token) for token in range(max(self._tokenizer.get_vocab().values(), default=-1) + 1)]

    def piece(self, token: int) -> bytes:
        """Return the bytes of `token`, which may be part of a character; a special token has none."""
        if token in self._added:
            return self._added[token]
        # Only ids beyond the vocabulary, which padded embeddings have, name no token.
        text: str = self._tokenizer.id_to_token(token) or ""
        if self._is_byte_level:
            return b"".join(byte_of_character().get(character, character.encode()) for character in text)
        if byte := BYTE_TOKEN.fullmatch(text):
            return bytes([int(byte[1], 16)])
        return text.replace("▁", " ").encode()


@lru_cache
def byte_of_character() -> dict[str, bytes]:
    """Return GPT-2's alphabet: bytes without a printable character of their own sit from U+0100 upwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + place): bytes([byte]) for place, byte in enumerate(others)}


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
