"""Streets, post boxes and postcodes of a dozen countries."""

import re
from collections.abc import Mapping

from fieldlm.telemetry.redaction.put import Put

_CAP = r"(?-i:[A-ZÀ-ÖØ-ÞŁŚŻŹĆŃŠŽČ])[\w'’.-]{0,24}"
_OF = r"(?:(?:de|du|des|la|le|les|del|della|delle|dei|di|da|do|dos|das|san|santa|el|los|las) |l['’]|d['’])"
_UNIT = r"(?:,? (?:apt|apartment|suite|ste|unit|flat|floor)\b\.? ?#?\w{1,6})?"
_TOWN = (
    rf"(?:,? \d{{4,5}}(?: (?-i:[A-Z]{{2}}))? {_CAP}(?: {_CAP}){{0,2}}"
    rf"|(?:, {_CAP}(?: {_CAP}){{0,2}}){{1,2}}"
    r"(?:,? (?-i:[A-Z]{2}),? \d{5}(?:-\d{4})?|,? (?-i:[A-Z]{1,2}\d[\dA-Z]? ?\d[A-Z]{2})\b))?"
)
_END = rf"(?: (?-i:[NSEW]|NW|NE|SW|SE)\b)?{_UNIT}{_TOWN}"
_SURE = "street|avenue|ave|road|rd|boulevard|blvd|terrace|highway|hwy|crescent"
_UNSURE = "st|lane|ln|drive|dr|way|court|ct|square|sq|place|pl|row|close|gardens|hill"
_NUMBER_FIRST = re.compile(
    r"\b\d{1,4}[a-z]?(?: ?(?:bis|ter))?,? (?:rue|avenue|av\.|boulevard|bd|place|allée|chemin|impasse|quai|cours|route)"
    rf" (?:{_OF}){{0,2}}{_CAP}(?:[ -](?:{_OF}){{0,2}}{_CAP}){{0,3}}{_TOWN}"
    rf"|\b\d{{1,5}}[a-z]?,? (?P<between>(?:[\w'’.-]{{2,24}} ){{1,3}})(?P<way>{_SURE}|{_UNSURE})\b\.?{_END}",
    re.I,
)
_WAY_FIRST = re.compile(
    r"\b(?:calle|c/|avenida|avda?\.?|paseo|plaza|carrer|carretera|via|viale|corso|piazza|largo|strada|rua|travessa"
    rf"|praça|ul\.|ulica|aleja|al\.|plac) (?:{_OF}){{0,2}}{_CAP}(?: (?:{_OF}){{0,2}}{_CAP}){{0,3}},? (?:n[º°.]? ?)?"
    rf"\d{{1,5}}[a-z]?\b{_TOWN}",
    re.I,
)
_COMPOUND = re.compile(
    r"\b(?-i:[A-ZÄÖÜÅØÆ])[\wäöüß.-]{1,30}(?:straße|strasse|str\.|gasse|weg|platz|allee|damm|ufer|chaussee|straat|gracht"
    rf"|laan|plein|kade|singel|gatan|vägen|gade|vej|veien|gata) \d{{1,4}}[a-z]?\b{_TOWN}"
    r"|\b(?-i:[A-ZÄÖÜ])[\wäöüß-]{2,24} "
    r"(?-i:Straße|Strasse|Str\.|Allee|Weg|Platz|Ring|Gasse|Markt|Damm|Ufer|Chaussee|Landstraße)"
    rf" \d{{1,4}}[a-z]?\b{_TOWN}",
    re.I,
)
_BOX = re.compile(
    rf"\b(?:p\.? ?o\.? ?box|postfach|bo[iî]te postale|b\.?p\.?|apartado) \d[\d ]{{1,8}}\d\b(?:, {_CAP})?", re.I
)
_POSTCODE = re.compile(r"\b[A-Z]{1,2}\d[\dA-Z]? \d[ABD-HJLNP-UW-Z]{2}\b")
_MIDWORDS = "a an and by for from in more my of on or small medium large the to with your please coffee coffees drinks"
_NOT_IN_STREET = frozenset(_MIDWORDS.split())


def mask_streets(text: str, put: Put) -> str:
    """Return `text`, which has a digit somewhere, without addresses."""
    text = _NUMBER_FIRST.sub(lambda found: _if_street(found, put), text)
    for pattern in (_WAY_FIRST, _COMPOUND, _BOX, _POSTCODE):
        text = pattern.sub(lambda found: put("ADDRESS", found[0]), text)
    return text


def _if_street(match: re.Match[str], put: Put) -> str:
    """A way, a drive or a place is a street only when its name is written as one."""
    parts: Mapping[str, str | None] = match.groupdict()
    between, way = (parts["between"] or "").split(), (parts["way"] or "").casefold()
    if way and _NOT_IN_STREET & {word.casefold() for word in between}:
        return match[0]
    if way in _UNSURE.split("|") and not all(word[0].isupper() or word[0].isdigit() for word in between):
        return match[0]
    return put("ADDRESS", match[0])
