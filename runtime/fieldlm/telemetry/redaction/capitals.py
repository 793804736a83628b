"""Names by their capitals, in Latin, Greek and Cyrillic: words in a row of which one is known, or ends as names do."""

import re

from fieldlm.telemetry.redaction.first_names import FIRST_NAMES, NOT_NAMES, PARTICLES
from fieldlm.telemetry.redaction.known_names import PLACE_BEFORE, THING_BEHIND, is_given, is_name, is_surname

UPPER = "A-Z" + "".join(
    chr(code) for low, high in ((0xC0, 0x250), (0x370, 0x530), (0x1E00, 0x2000)) for code in range(low, high)
    if chr(code).isupper()
)  # fmt: skip
TAIL = r"[^\W\d_'’ʼ-]{0,23}(?:['’ʼ-][^\W\d_]{2,20}){0,2}"
CAP = rf"(?-i:[{UPPER}](?:['’][A-Z])?){TAIL}"
OF = rf"(?:(?:{'|'.join(PARTICLES)}) ){{0,2}}"
_RUN = re.compile(rf"(?<![\w<'’.-])({CAP})((?: (?:[{UPPER}]\. )?{OF}{CAP}){{0,3}})(?![\w>])")
_SAINT = re.compile(r"\b(?:st|saint|san|santa|sankt|são)\.? $", re.I)
_AT = re.compile(
    r"\b(?:in|at|near|around|of|into|outside|through|across|в|во|из|до|на|у|στη|στην|στο|από) (?:the )?$", re.I
)
REQUEST = 120
"""Characters; longer texts tell more than what is wanted."""
_OF_THINGS = re.compile(r"\b(?:an?|ein(?:e[nr]?)?|une?|una|or|oder|ou|some|two|zwei|sell|have|any) $", re.I)
_INSIDE = re.compile(r"[^\W\d_],? $")
_TO_PEOPLE = re.compile(
    r"\b(?:ask(?:ed)?|met|meet|dear|tell|told|contact|visit|thank|invite|married|phone|email|frag(?:en)?"
    r"|triff|getroffen|pregunta a"
    r"|vi a|chiedi a|demandez à|demande à|vraag|pergunte a|fråga|zapytać|zeptejte se)[,:]? $",
    re.I,
)
_DONE_BY_PEOPLE = re.compile(
    r" (?:lives?|said|says|asked|called|calls|wrote|sent|works?|wants|needs|thinks|told|speaking|and I|wohnt"
    r"|sagt|hat|habite|vive"
    r"|abita|woont|mora|mieszka|bor|bydlí|oturuyor|живёт|живе)\b"
    r"|['’]s (?:order|phone|number|email|mail|address|house|car|birthday|name|account|room|desk|wife|husband)\b"
)
_ENDING = re.compile(
    r".{2,30}(?:ová|sson|sdotter|opoulos|oulou|akis|enko|escu|owski|owska|ewski|ewska|ović|ević|yan|oğlu|shvili|adze"
    r"|ович|евич|овна|евна|ична|енко|ский|ская|ський|ська|чук|όπουλος|οπούλου|ίδης|ίδου|άκης|άκη)"
)


def names_in_capitals(text: str) -> set[str]:
    """Return the runs of capitalised words that name a person."""
    found: set[str] = set()
    for match in _RUN.finditer(text):
        words = (match[1] + match[2]).split()
        before = text[max(0, match.start() - 24) : match.start()]
        behind = text[match.end() : match.end() + 16]
        is_inside = len(text) > REQUEST and bool(_INSIDE.search(before))
        if (name := _person(words, before, behind, is_inside)) and not _SAINT.search(before):
            found.add(name)
    return found


def _person(words: list[str], before: str, behind: str, is_inside: bool) -> str:
    """Return the words of a run that name somebody, without what the sentence begins with; "" for none."""
    if len(words) > 1 and words[-1].casefold() in THING_BEHIND:
        return ""
    while words and _is_everyday(words[0]):
        words = words[1:]
    kept: list[str] = []
    for word in words:
        if _is_everyday(word) and word.casefold() not in PARTICLES:
            break
        kept.append(word)
    if len(kept) == 1 and kept[0].isupper():
        return ""  # an abbreviation
    full = [word for word in kept if word.casefold() not in PARTICLES and not word.endswith(".")]
    if not full or full[0].casefold() in PLACE_BEFORE:
        return ""
    is_sure = _names_somebody([word.casefold() for word in full], before, is_inside) or (
        len(full) > 1 and _is_spoken_of(full, before, behind)
    )
    return " ".join(kept) if is_sure else ""


def _is_spoken_of(words: list[str], before: str, behind: str) -> bool:
    """Say whether two unknown words are spoken of as a person is, or are written as no English word is."""
    if _AT.search(before):
        return False
    return bool(any(not word.isascii() for word in words) or _TO_PEOPLE.search(before) or _DONE_BY_PEOPLE.match(behind))


def _names_somebody(words: list[str], before: str, is_inside: bool) -> bool:
    if len(words) == 1:
        if words[0] in FIRST_NAMES:
            return True
        # A sentence may begin with any word, and a short one asks for makes and dishes.
        return (is_given(words[0]) or (is_inside and is_surname(words[0]))) and not (
            _AT.search(before) or _OF_THINGS.search(before)
        )
    if any(word in FIRST_NAMES or is_given(word) or any(map(is_given, word.split("-"))) for word in words):
        return not (_AT.search(before) and words[0] not in FIRST_NAMES)
    known = sum(is_name(word) or bool(_ENDING.fullmatch(word)) for word in words)
    return known >= 2 or (known == 1 and not _AT.search(before))


def _is_everyday(word: str) -> bool:
    return word.casefold() in NOT_NAMES and word.casefold() not in FIRST_NAMES
