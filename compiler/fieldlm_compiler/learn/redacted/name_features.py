"""What tells a name in a sentence: the word's letters and lists, its neighbours, each a number below BUCKETS.

Features are hashed (CRC-32), so that no vocabulary is shipped: a word that nobody saw while the weights were made has
no weight of its own, and is judged by its letters and by what stands around it.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from fieldlm.telemetry.redaction.first_names import FIRST_NAMES, NOT_NAMES, PARTICLES
from fieldlm.telemetry.redaction.known_names import PLACE_BEFORE, THING_BEHIND, is_given, is_name, is_surname

BUCKETS = 1 << 18
_LETTER = r"(?:[^\W\d_]|[\u0300-\u036f\u064b-\u0652\u0900-\u0dff])"
_TOKEN = re.compile(
    rf"<[A-Z]{{1,64}}(?:_\d{{1,9}})?>|{_LETTER}{{1,40}}(?:['’ʼ-]{_LETTER}{{1,24}}){{0,3}}|\d{{1,40}}|[^\w\s]"
)
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af々]")
_OWNED = re.compile(r"['’]s$", re.I)
_EDGE = "|"


@dataclass(frozen=True)
class Token:
    """A word, number, mark or placeholder, from `start` to `end`; `low` is it in folded case, without "'s"."""

    text: str
    low: str
    start: int
    end: int
    kind: str
    """What its letters and the lists say: a letter for each; placeholders have their name."""

    @property
    def may_name(self) -> bool:
        """Whether it may be a person's name at all; scripts without spaces are the first pass's."""
        return self.kind[0] in "wWA" and "n" not in self.kind and len(self.low) > 1


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of a text, in their order."""
    return [_token(match[0], match.start()) for match in _TOKEN.finditer(text)]


def _token(text: str, start: int) -> Token:
    end = start + len(text)
    if text[0] == "<" and len(text) > 1:
        kind = text[1:-1].rstrip("0123456789_")
        return Token(text, f"<{kind}>", start, end, f"<{kind}>")
    if text[0].isdigit():
        return Token(text, "0" * min(len(text), 4), start, end, "0")
    if not text[0].isalpha():
        return Token(text, text, start, end, ".")
    word = _OWNED.sub("", text)
    low = word.casefold()
    return Token(text, low, start, start + len(word), _shape(word) + _lists(low))


def _shape(word: str) -> str:
    if _UNSPACED.search(word):
        return "U"
    return "w" if word[0].islower() or not word[0].isupper() else "A" if len(word) > 1 and word.isupper() else "W"


def _lists(low: str) -> str:
    """Return a letter for each list of the first pass that has the word."""
    found = "f" if low in FIRST_NAMES else ""
    if low in NOT_NAMES and not found:
        return "np" if low in PARTICLES else "n"
    found += "g" if is_given(low) else "s" if is_surname(low) else "k" if is_name(low) else ""
    return found + ("t" if low in THING_BEHIND else "") + ("b" if low in PLACE_BEFORE else "")


def has_capitals(tokens: Sequence[Token]) -> bool:
    """Say whether a text is written with capitals, elsewhere than at its beginning."""
    return any(token.kind[0] in "WA" for token in tokens[1:])


def features(
    tokens: Sequence[Token],
    place: int,
    *,
    is_cased: bool,
    is_known: bool = True,
    is_listed: bool = True,
    most: int = 3,
) -> list[int]:
    """Return the features of the word at `place`, as buckets; `is_cased` says whether the text `has_capitals`.

    A few neighbours alone are looked at, so that a text's time grows with its length and not with its square.
    Without `is_known` the word itself says nothing, without `is_listed` no list has it, at `most` so many neighbours
    count at once: so it is learned how unknown words in unknown sentences are told.
    """
    low, kind = tokens[place].low, tokens[place].kind if is_listed else tokens[place].kind[:1]
    made = [*_of_letters(low), *_of_neighbours(tokens, place, kind, is_cased, most)]
    if is_known:
        made += [f"w{low}", f"wa{_at(tokens, place - 1)[0]} {low}", f"wb{low} {_at(tokens, place + 1)[0]}"]
    return [zlib.crc32(feature.encode()) % BUCKETS for feature in made]


def _of_letters(low: str) -> list[str]:
    padded = f"^{low}$"
    return [
        f"z{min(len(low), 9)}", *(f"s{n}{low[-n:]}" for n in (1, 2, 3, 4) if len(low) > n),
        *(f"p{n}{low[:n]}" for n in (1, 2, 3) if len(low) > n),
        *(f"t{padded[at : at + 3]}" for at in range(min(len(padded) - 2, 12))),
    ]  # fmt: skip


def _of_neighbours(tokens: Sequence[Token], place: int, kind: str, is_cased: bool, most: int) -> list[str]:
    (l3, _), (l2, k2), (l1, k1) = (_at(tokens, place - distance) for distance in (3, 2, 1))
    (r1, j1), (r2, j2), (r3, _) = (_at(tokens, place + distance) for distance in (1, 2, 3))
    shape = kind[0] + ("1" if place == 0 else "") + ("C" if is_cased else "c")
    made = [
        "", f"k{kind}", f"h{shape}", f"hk{shape}{kind}", f"K{k1}", f"J{j1}", f"KJ{k1} {j1}", f"Kk{k1} {kind}",
        f"Jk{j1} {kind}", f"KkJ{k1} {kind} {j1}", f"KK{k2} {k1} {kind}", f"JJ{kind} {j1} {j2}",
    ]  # fmt: skip
    if most >= 1:
        made += [
            f"a{l1}", f"b{r1}", f"c{l2}", f"d{r2}", f"e{l3}", f"f{r3}", f"ak{l1} {kind}", f"bk{r1} {kind}",
            f"ah{l1} {shape}", f"bh{r1} {shape}", f"ck{l2} {kind}", f"dk{r2} {kind}",
        ]  # fmt: skip
    if most >= 2:
        made += [
            f"ab{l1} {r1}", f"ac{l2} {l1}", f"bd{r1} {r2}", f"aJ{l1} {j1}", f"bK{k1} {r1}", f"aJj{l1} {j1} {j2}",
            f"abk{l1} {r1} {kind[0]}", f"abkk{l1} {r1} {kind}",
        ]  # fmt: skip
    if most >= 3:
        made += [f"ace{l3} {l2} {l1}", f"bdf{r1} {r2} {r3}", f"acb{l2} {l1} {r1}", f"abd{l1} {r1} {r2}"]
    return made


def _at(tokens: Sequence[Token], place: int) -> tuple[str, str]:
    return (tokens[place].low, tokens[place].kind) if 0 <= place < len(tokens) else (_EDGE, _EDGE)
