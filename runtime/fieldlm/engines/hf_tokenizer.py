"""Hugging Face tokenizer (`tokenizer.json`): text to token ids, and each id to the very bytes it stands for."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import msgspec

from fieldlm.core.errors import EngineError
from fieldlm.engines import SEAM
from fieldlm.engines.special_texts import TokenLength, byte_of_character

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Added(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False


class _File(msgspec.Struct, frozen=True):
    """What we read of tokenizer.json ourselves; the rest is the library's."""

    added_tokens: tuple[_Added, ...] = ()
    decoder: msgspec.Raw = msgspec.Raw(b"null")
    normalizer: msgspec.Raw = msgspec.Raw(b"null")


class HfTokenizer:
    """The tokens of one model. Safe from any thread."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

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
        self._may_shrink = bytes(file.normalizer) != b"null" or any(
            one.lstrip or one.rstrip for one in file.added_tokens
        )
        self._is_byte_level = b"ByteLevel" in bytes(file.decoder)

    @cached_property
    def length(self) -> TokenLength:
        """How much text a token can stand for; only of a tokenizer that spells bytes and leaves none out."""
        words = self._tokenizer.get_vocab()
        if self._may_shrink or not self._is_byte_level:
            return TokenLength()
        lost = (byte for character, byte in byte_of_character().items() if character not in words)
        return TokenLength(max(len(word.encode()) for word in words), b"".join(lost))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens written in it become their ids, none is added.

        No token reaches over a seam.
        """
        pieces = (self._tokenizer.encode(piece, add_special_tokens=False) for piece in text.split(SEAM))
        return [token for piece in pieces for token in piece.ids]

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


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
