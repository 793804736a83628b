"""Names that a text introduces or plainly holds.

"my name is …" and its kin in a dozen languages introduce whatever follows; after "for" or "I'm" a word has to look like
a name; a common first name counts wherever it stands with a capital, and takes the surname behind it along. What a menu
calls by a name (a Bloody Mary, Ben & Jerry's) names nobody.
"""

import re

from fieldlm.telemetry.redaction.first_names import FIRST_NAMES, NOT_NAMES, PARTICLES, PRODUCTS

_TAIL = r"[^\W\d_'’-]{0,23}(?:['’-][^\W\d_]{2,20}){0,2}"
_WORD = rf"[^\W\d_]{_TAIL}"
_CAP = rf"(?-i:[A-ZÀ-ÖØ-ÞĀĂĄĆČĎĐĘĚĞĢĪĮĶŁŃŅŇŐŒŘŚŞŠŤŪŮŰŹŻŽ](?:['’][A-Z])?){_TAIL}"
_OF = rf"(?:(?:{'|'.join(PARTICLES)}) ){{0,2}}"
_NAME = rf"({_WORD}(?: {_OF}{_CAP}){{0,2}})"
# The name is only looked at, so that in "this is for Ada" the next search can start at "for".
_STRONG = re.compile(
    r"\b(?:my (?:first |last |full )?name(?:['’]s| is|:)|the name(?:['’]s| is)|under the name(?: of)?"
    r"|name(?: of the order)? is|(?:mr|mrs|ms|dr|prof)\.?"
    r"|mein name ist|ich hei(?:ß|ss)e|auf den namen|hier spricht|je m['’]appelle|mon nom est|au nom de|moi,? c['’]est"
    r"|me llamo|mi nombre es|a nombre de|mi chiamo|il mio nome è|a nome di|ik heet|mijn naam is|op naam van"
    r"|chamo-me|me chamo|meu nome é|em nome de|nazywam się|mam na imię|na nazwisko|jag heter|mitt namn är"
    rf"|jeg hed(?:d|t)er|jeg heter|mit navn er|nimeni on|adım|benim adım|mă numesc|numele meu este) (?={_NAME})",
    re.I,
)
_TITLE = re.compile(
    r"\b(?:miss|herrn?|frau|monsieur|madame|mme|mlle|señora?|señorita|sra?\.|signora?|sig\.|dhr\.?|mevrouw|mevr\.?"
    rf"|meneer|senhora?|pani?|fru|regards,|sincerely,|cheers,|gruß,?|grüße,?|saludos,|cordialement,|saluti,|groeten,)"
    rf" (?={_CAP})(?={_NAME})",
    re.I,
)
_WEAK = re.compile(
    r"\b(?:i['’]m|i am|this is|it['’]s|call me|for|under|name:?|thanks,?|thank you,?|hi,?|hello,?"
    rf"|ich bin|je suis|soy|sono|ik ben|sou|mi smo|nome:|nom:|nombre:|naam:) (?={_NAME})",
    re.I,
)
_KNOWN = re.compile(rf"\b(?:from|with|by|für|von|mit|pour|de|para|con|per|da|voor|van|dla|till?) (?={_NAME})", re.I)
_ALONE = re.compile(rf"(?<![\w<])({_CAP})((?: {_OF}{_CAP}){{0,2}})(?![\w>])")
_SAINT = re.compile(r"\b(?:st|saint|san|santa|sankt|são)\.? $", re.I)
_PRODUCTS = re.compile(rf"\b(?:{'|'.join(re.escape(name) for name in PRODUCTS)})\b", re.I)


def names_in(text: str) -> frozenset[str]:
    """Return the words of personal names in `text`, in lower case."""
    text = _PRODUCTS.sub("·", text)
    found = {match[1] for match in _STRONG.finditer(text) if not _is_common(match[1])}
    found |= {match[1] for match in _TITLE.finditer(text) if not _is_common(match[1])}
    found |= {match[1] for match in _WEAK.finditer(text) if _is_likely(match[1])}
    found |= {match[1] for match in _KNOWN.finditer(text) if _first(match[1]) in FIRST_NAMES}
    found |= {match[0] for match in _ALONE.finditer(text) if _stands_alone(match, text)}
    words = (part.casefold() for name in found for part in _own_words(name))
    return frozenset(word for word in words if word not in NOT_NAMES and word not in PARTICLES)


def hide(text: str, names: frozenset[str]) -> str:
    """Return `text` with a placeholder for every name of `names`, and one for those that stand together."""
    if not names:
        return text
    some = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    together = rf"(?<![\w<])(?:{some})(?: {_OF}(?:{some}))*(?![\w>])"
    kept = rf"(?P<kept>{_PRODUCTS.pattern})"
    return re.sub(f"{kept}|{together}", lambda match: match["kept"] or "<NAME>", text, flags=re.I)


def _first(name: str) -> str:
    return name.split(maxsplit=1)[0].casefold()


def _is_common(name: str) -> bool:
    return _first(name) in NOT_NAMES


def _is_likely(name: str) -> bool:
    """A word after "for" or "I'm" is a name when it is known as one, or capitalised and no everyday word."""
    first = name.split(maxsplit=1)[0]
    is_written_so = first[0].isupper() and first[1:].islower()
    return first.casefold() in FIRST_NAMES or (is_written_so and not _is_common(name))


def _stands_alone(match: re.Match[str], text: str) -> bool:
    return _first(match[1]) in FIRST_NAMES and not _SAINT.search(text[max(0, match.start() - 8) : match.start()])


def _own_words(name: str) -> list[str]:
    """Return the words of `name` up to the first that belongs to the sentence: "Anna Could" is Anna."""
    kept: list[str] = []
    for word in name.split():
        if kept and word.casefold() in NOT_NAMES - PARTICLES:
            break
        kept.append(word.removesuffix("'s").removesuffix("’s"))
    return kept
