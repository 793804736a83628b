"""Names that a text introduces or plainly holds.

"my name is …" and its kin in two dozen languages introduce whatever follows; after "for" or "I'm" a word has to look
like a name; a known first name counts wherever it stands with a capital, and takes the surname behind it along
(`capitals`); other scripts have rules of their own (`scripts`). What a menu calls by a name (a Bloody Mary) names
nobody.
"""

import re

from fieldlm.telemetry.redaction.capitals import CAP, OF, REQUEST, TAIL, UPPER, names_in_capitals
from fieldlm.telemetry.redaction.first_names import FIRST_NAMES, NOT_NAMES, PARTICLES, PRODUCTS
from fieldlm.telemetry.redaction.known_names import PLACE_BEFORE
from fieldlm.telemetry.redaction.put import Put, plain
from fieldlm.telemetry.redaction.scripts import is_unspaced, names_in_scripts
from fieldlm.telemetry.redaction.seen import as_seen

_NAME = rf"([^\W\d_]{TAIL}(?: {OF}{CAP}){{0,2}})"
# The name is only looked at, so that in "this is for Ada" the next search can start at "for".
_STRONG = re.compile(
    r"\b(?:my (?:first |last |full |maiden )?(?:name|nam)(?:['’]s| is|:)|the name(?:['’]s| is)|under the name(?: of)?"
    r"|name(?: of the order)? is|(?:mr|mrs|ms|dr|prof)\.?"
    r"|mein name ist|ich hei(?:ß|ss)e|auf den namen|hier spricht|je m['’]appelle|mon nom est|au nom de|moi,? c['’]est"
    r"|me llamo|mi nombre es|a nombre de|mi chiamo|il mio nome è|a nome di|ik heet|mijn naam is|op naam van"
    r"|chamo-me|me chamo|meu nome é|em nome de|nazywam się|mam na imię|na nazwisko|jag heter|mitt namn är"
    r"|jeg hed(?:d|t)er|jeg heter|mit navn er|nimeni on|adım|benim adım|mă numesc|numele meu este|jmenuji se"
    r"|moje jméno je"
    r"|zovem se|a nevem|nama saya|tên tôi là|меня зовут|мо[её] имя|мене звати|με λένε|το όνομά μου είναι"
    r"|اسمي|मेरा नाम)"
    rf" (?={_NAME})",
    re.I,
)
_DR = re.compile(r"(?:mr|mrs|ms|dr|prof)\b", re.I)
_STRONG_SAYS = (
    "name",
    "nam",
    "mr",
    "mrs",
    "ms",
    "dr",
    "prof",
    "mein",
    "hei",
    "spricht",
    "appelle",
    "nom",
    "c'",
    "c’",
    "llamo",
    "nombre",
    "chiamo",
    "nome",
    "heet",
    "naam",
    "chamo",
    "nazyw",
    "imię",
    "nazwisko",
    "heter",
    "namn",
    "hed",
    "navn",
    "nimeni",
    "adım",
    "numesc",
    "jmen",
    "zovem",
    "nevem",
    "nama",
    "tên",
    "зовут",
    "им",
    "звати",
    "λένε",
    "όνομ",
    "اسمي",
    "नाम",
)
_TITLE = re.compile(
    r"\b(?:miss|herrn?|frau|monsieur|madame|mme|mlle|señora?|señorita|sra?\.|signora?|sig\.|dhr\.?|mevrouw|mevr\.?"
    rf"|meneer|senhora?|pani?|fru|dear|sir|regards,|sincerely,|cheers,|gruß,?|grüße,?|saludos,|cordialement,|saluti,|groeten,)"
    rf" (?={CAP})(?={_NAME})",
    re.I,
)
_WEAK = re.compile(
    r"\b(?:i['’]m|i am|this is|it['’]s|call me|calls me|for|under|name:?|thanks,?|thank you,?|hi,?|hello,?"
    rf"|ich bin|je suis|soy|sono|ik ben|sou|mi smo|nome:|nom:|nombre:|naam:) (?={_NAME})",
    re.I,
)
_KNOWN = re.compile(rf"\b(?:from|with|by|für|von|mit|pour|de|para|con|per|da|voor|van|dla|till?) (?={_NAME})", re.I)
_WORD = re.compile(r"(?<![\w<])[^\W\d_]{1,40}(?:['’ʼ-][^\W\d_]{1,24}){0,3}(?!\w)")
_BETWEEN = re.compile(rf" (?:[{UPPER}]\. )?{OF}", re.I)
_PRODUCTS = re.compile(rf"\b(?:{'|'.join(re.escape(name) for name in PRODUCTS)})\b", re.I)
_LOOKED_UP = re.compile(
    r"\b(?:play|playlist|listen|album|track|tracks|song|songs|soundtrack|spotify|itunes|deezer|movies?|films?|saga|novel|painting"
    r"|rate|stars|points|series|show|shows|schedules?|times|timings?|trailer|theat(?:er|re)s?|cinemas?|forecast|weather|restaurant"
    r"|caf[eé]|bistro|book|audiobook|podcast|radio|stock|temperature|climate|travel|jazz|music|search|find"
    r"|look(?:ing)? (?:up|for)"
    r"|showtimes?|tunes?|bpm|rating|zero|out of|picture|photograph|game|rain|snow|freez\w+|(?-i:This Is)"
    r"|deli|pizza|burgers?|discography|humidity|showings?|playing|hear|add)\b",
    re.I,
)
"""Who asks for these things names works, artists and places: there only what introduces a person counts."""


def names_in(text: str) -> frozenset[str]:
    """Return the words of personal names in `text`, in lower case."""
    text = as_seen(text)
    found = _found(text)
    if found and _PRODUCTS.search(text):
        found = _found(_PRODUCTS.sub("·", text))
    words = (part for name in found for part in _own_words(name))
    return frozenset(word for word in words if word not in NOT_NAMES and word not in PARTICLES and len(word) > 1)


def is_lookup(text: str) -> bool:
    """Say whether a short text asks for works, artists or places, whose names are no person's."""
    return len(text) <= REQUEST and bool(_LOOKED_UP.search(text))


def _found(text: str) -> set[str]:
    low = text.casefold()
    is_looked_up = is_lookup(text)
    found: set[str] = set()
    if any(word in low for word in _STRONG_SAYS):
        found |= {
            m[1] for m in _STRONG.finditer(text) if not _is_common(m[1]) and not (is_looked_up and _DR.match(m[0]))
        }
    has_capital = text != low
    if has_capital and not is_looked_up:
        found |= {match[1] for match in _TITLE.finditer(text) if not _is_common(match[1])}
    found |= {match[1] for match in _WEAK.finditer(text) if _is_likely(match[1], is_looked_up)}
    found |= {match[1] for match in _KNOWN.finditer(text) if _first(match[1]) in FIRST_NAMES and not is_looked_up}
    if has_capital and not is_looked_up:
        found |= names_in_capitals(text)
    if not text.isascii() and not is_looked_up:
        found |= names_in_scripts(text)
    return found


def hide(text: str, names: frozenset[str], put: Put = plain) -> str:
    """Return `text` with a placeholder for every name of `names`, and one for those that stand together."""
    if not names:
        return text
    made, end = "", 0
    for kept in _PRODUCTS.finditer(text):
        made += _hide(text[end : kept.start()], names, put) + kept[0]
        end = kept.end()
    return made + _hide(text[end:], names, put)


def _hide(text: str, names: frozenset[str], put: Put) -> str:
    made, end = "", 0
    for start, stop in _together(text, names):
        made += text[end:start] + put("NAME", text[start:stop])
        end = stop
    text = made + text[end:]
    unspaced = sorted((name for name in names if is_unspaced(name)), key=lambda name: (-len(name), name))
    if unspaced and any(name[:1] in text for name in unspaced):
        some = "|".join(map(re.escape, unspaced))
        text = re.sub(rf"(?:{some})(?: ?(?:{some}))*", lambda found: put("NAME", found[0]), text)
    return text


def _together(text: str, names: frozenset[str]) -> list[tuple[int, int]]:
    """Return where names stand, as one span where only spaces, particles and initials are between them."""
    spans: list[tuple[int, int]] = []
    for word in _WORD.finditer(text):
        if word.end() < len(text) and text[word.end()] == ">":
            continue
        for start, stop in _parts(word[0], names):
            a, b = word.start() + start, word.start() + stop
            if spans and _BETWEEN.fullmatch(text[spans[-1][1] : a]):
                spans[-1] = (spans[-1][0], b)
            else:
                spans.append((a, b))
    return spans


def _parts(word: str, names: frozenset[str]) -> list[tuple[int, int]]:
    """Return which parts of a word are names: all of "Anna-Lena", the first of "Anna's"."""
    if word.casefold() in names:
        return [(0, len(word))]
    marks = [0, *(place + 1 for place, letter in enumerate(word) if letter in "'’ʼ-"), len(word) + 1]
    found: list[tuple[int, int]] = []
    for number, start in enumerate(marks[:-1]):
        if found and start < found[-1][1]:
            continue
        stops = [stop - 1 for stop in marks[number + 1 :] if word[start : stop - 1].casefold() in names]
        if len(marks) > 2 and stops:
            found.append((start, max(stops)))
    return found


def _first(name: str) -> str:
    return name.split(maxsplit=1)[0].casefold()


def _is_common(name: str) -> bool:
    return _first(name) in NOT_NAMES


def _is_likely(name: str, is_looked_up: bool) -> bool:
    """A word after "for" or "I'm" is a name when it is known as one, or capitalised and no everyday word."""
    first = name.split(maxsplit=1)[0]
    if first.casefold() in FIRST_NAMES:
        return not is_looked_up
    is_written_so = first[0].isupper() and first[1:].islower()
    return is_written_so and not _is_common(name) and not is_looked_up and first.casefold() not in PLACE_BEFORE


def _own_words(name: str) -> list[str]:
    """Return the words of `name` up to the first that belongs to the sentence: "Anna Could" is Anna."""
    if is_unspaced(name):
        return [name, *(part for part in name.split() if len(part) > 1)]
    kept: list[str] = []
    for word in name.casefold().split():
        if kept and word in NOT_NAMES - PARTICLES:
            break
        kept.append(word.removesuffix("'s").removesuffix("’s"))
    return kept
