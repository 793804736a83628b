"""A text as a person sees it: what web pages, contacts and other scripts' keyboards write, in plain characters.

A number with spaces that do not break (French IBANs, cards on a page), hyphens of a typesetter's, digits of another
script or marks of a writing direction inside is the same number to who reads it.
"""

import unicodedata

_MOST_KEPT = 4096  # characters: a text may hold a hundred thousand different ones


class _Seen(dict[int, str | None]):
    """What stands for a character, by its code; None for what nobody sees. Made as characters come."""

    def __missing__(self, code: int) -> str | None:
        found = _plain(chr(code))
        if len(self) < _MOST_KEPT:
            self[code] = found
        return found


def as_seen(text: str) -> str:
    """Return `text` with plain spaces, hyphens and digits, and without what is invisible in it."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.translate(_SEEN))


def _plain(character: str) -> str | None:
    code, kind = ord(character), unicodedata.category(character)
    if 0xFF01 <= code <= 0xFF5E:  # wide ASCII
        return chr(code - 0xFEE0)
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind == "Cf":
        return None
    return {"Zs": " ", "Pd": "-"}.get(kind, _MARKS.get(character, character))


_MARKS = {"\u2212": "-", "\u2024": "."}  # a minus, a leader
_SEEN = _Seen({code: chr(code) for code in range(128)})
