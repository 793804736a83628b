"""Placeholders with a number: in a conversation one person is <NAME_1> wherever they are named, the next <NAME_2>."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_PLACED = re.compile(r"<([A-Z]{2,8})_(\d{1,4})>")


@dataclass
class Numbered:
    """Counts what is hidden in one conversation; an instance is a `Put`.

    With `exact` other words have another number, and `words` holds them, so that each can be put back as it was.
    """

    exact: bool = False
    words: dict[str, str] = field(default_factory=dict[str, str])
    _known: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    _people: list[tuple[frozenset[str], str]] = field(default_factory=list[tuple[frozenset[str], str]])
    _counts: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def after(cls, texts: Iterable[str]) -> "Numbered":
        """Return one that goes on counting behind the placeholders that `texts` hold already."""
        made = cls()
        for kind, number in (found for text in texts for found in _PLACED.findall(text)):
            made._counts[kind] = max(made._counts.get(kind, 0), int(number))
        return made

    def __call__(self, kind: str, words: str) -> str:
        key = (kind, words if self.exact else _key(kind, words))
        found = self._known.get(key)
        if found is None:
            found = self._person(words) if kind == "NAME" and not self.exact else self._new(kind, words)
            self._known[key] = found
        return found

    def _new(self, kind: str, words: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        made = f"<{kind}_{self._counts[kind]}>"
        if self.exact:
            self.words[made] = words
        return made

    def _person(self, words: str) -> str:
        """Anna and Anna Berg are one person, Anna Berg and Anna Meyer two; Anna alone is the first of them."""
        parts = frozenset(words.casefold().split())
        for place, (known, made) in enumerate(self._people):
            if parts <= known or known <= parts:
                self._people[place] = (known | parts, made)
                return made
        made = self._new("NAME", words)
        self._people.append((parts, made))
        return made


def _key(kind: str, words: str) -> str:
    """Numbers are the same however their digits are grouped."""
    if kind in ("PHONE", "CARD", "IBAN", "ID"):
        return re.sub(r"[\W_]+", "", words).casefold()
    return words if kind == "KEY" else " ".join(words.casefold().split())
