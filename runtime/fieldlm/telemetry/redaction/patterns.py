"""What identifies a person by its form: secrets, e-mail, IBAN, card, id, address and phone numbers become placeholders.

Forms of some twenty countries, checksums where there are some, and the words around a number: "order 4155550132" is no
phone number, "call 4155550132" is one. Where form and words leave it open, a number goes.
"""

import ipaddress
import re
from collections.abc import Callable

from fieldlm.telemetry.redaction.credentials import mask_credentials, mask_pins
from fieldlm.telemetry.redaction.identity import mask_bare_identity, mask_identity
from fieldlm.telemetry.redaction.put import Put, plain
from fieldlm.telemetry.redaction.streets import mask_streets
from fieldlm.telemetry.redaction.wording import CJK, ORDERED

_EMAIL = re.compile(r"\b\w[\w.+%'’&-]{0,63}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_OPEN, _CLOSE = r"\s?[\[({]\s?", r"\s?[\])}]\s?"
_BRACKETED_EMAIL = re.compile(
    rf"\b[\w.+-]{{1,64}}{_OPEN}(?:at|@|ät){_CLOSE}[\w-]{{1,63}}(?:(?:\.|{_OPEN}(?:dot|punkt|punto|point){_CLOSE})[\w-]{{1,63}}){{1,4}}",
    re.I,
)
_DOT = r"(?:dot|punkt|punto|point|ponto|kropka)"
_DOTTED = rf"(?: {_DOT} [\w-]{{1,63}}){{0,3}}"
_SPOKEN_EMAIL = re.compile(
    rf"\b[\w.+-]{{1,64}}{_DOTTED} (?:at|ät|arroba|chiocciola|arobase) [\w-]{{1,63}}{_DOTTED} {_DOT} (?!(?:of"
    rf"|in|to|on|where|when)\b)[a-z]{{2,6}}\b",
    re.I,
)

_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ ._-]{0,3}[A-Z0-9]){11,30}", re.I)
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21,
    "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24, "TR": 26,
    "UA": 29, "VA": 22, "XK": 20,
}  # fmt: skip
_CARD = re.compile(r"(?<![\d.])\d(?:[ ._/-]{0,3}\d){11,18}(?!\d)")
_CARD_FORMS = re.compile(
    r"3(?:0[0-5]|[689]\d)\d{11}|3[47]\d{13}|(?:4|5[0-8]|6|35|2[2-7])\d{14,15}|[46]\d{18}|4\d{12}"
    r"|(?:5[06-8]|6\d)\d{10,13}|(?:2131|1800)\d{11}"
)

_MAC = re.compile(r"(?<![\w:-])(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?![\w:-])", re.I)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.])(?<!version )(?<!release )(?<!firmware )(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\d)", re.I)
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-f:]*:[0-9a-f]*:)[0-9a-f:]{4,39}(?![\w:])", re.I)
_LETTER = rf"(?!{CJK})\w"
_PHONE = re.compile(
    rf"(?<![.,/-])(?<!\d:)(?<!{_LETTER})(\+?\(?\d(?:[ .()/-]{{0,3}}\d){{6,14}})"
    r"(?:[ ,]{0,2}(?:x|ext\.?|extension)[ .:]?\d{1,6})?"
    rf"(?!{_LETTER}|[/:-]\d|[.,]\d)",
    re.I,
)
_ASKED = re.compile(
    r"\b(?:call|phone|mobile|cell|text|tel|fax|ring|reach|dial|whatsapp|sms|number is|my number|handy|telefon|nummer|"
    r"ruf|anruf|portable|appele|joign|móvil|movil|llam|teléfono|celular|cellulare|chiama|bel|telefoon|telemóvel|telefone|"
    r"ligue|komórk|zadzwoń|ring)\w*\.?[^.!?\d]{0,24}$"
    r"|(?:手机|手機|电话|電話|携帯|联系|聯繫|連絡|전화|휴대폰|핸드폰|연락)[^.!?。\d]{0,12}$",
    re.I,
)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}.*|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}")
_DIGITS = (
    "zero|oh|one|two|three|four|five|six|seven|eight|nine|null|eins|zwei|zwo|drei|vier|fünf|sechs|sieben|acht|neun|zéro|un|"
    "deux|trois|quatre|cinq|sept|huit|neuf|cero|uno|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|due|tre|quattro|cinque|"
    "sei|sette|otto|nove"
)
_SPOKEN_PHONE = re.compile(rf"\b(?:(?:double |triple )?(?:{_DIGITS})[\s,-]{{1,3}}){{6,15}}(?:{_DIGITS})\b", re.I)
_GROUPED = ((3, 4), (3, 2, 2), (2, 4, 4), (3, 4, 4), (2, 3, 2, 2))
_HAS_DIGIT = re.compile(r"\d")


def mask(text: str, put: Put = plain, *, bare: bool = True) -> str:
    """Return `text` with a placeholder for what has the form of an identifier; without `bare` not for mere digits."""
    text = mask_credentials(text, put)
    # Most texts have no digits and spell nothing out; looking first makes a request cost a tenth.
    has_digit = bool(_HAS_DIGIT.search(text))
    if ":" in text or "-" in text:
        text = _MAC.sub(_as("MAC", put), text)
    if "@" in text:
        text = _EMAIL.sub(_as("EMAIL", put), text)
    low = text.casefold()
    if _spells_out(low):
        text = _SPOKEN_EMAIL.sub(_as("EMAIL", put), _BRACKETED_EMAIL.sub(_as("EMAIL", put), text))
    if has_digit or "::" in text:
        text = _mask_numbers(text, put, bare)
    if _counts_out(low):
        text = _SPOKEN_PHONE.sub(_as("PHONE", put), text)
    return text


def _mask_numbers(text: str, put: Put, bare: bool) -> str:
    text = mask_pins(text, put)
    text = _IBAN.sub(lambda found: _if_iban(found, put), text)
    text = _CARD.sub(_as("CARD", put, if_=is_card), text)
    text = mask_identity(text, put)
    text = _IPV6.sub(_as("IP", put, if_=_is_ipv6), _IPV4.sub(_as("IP", put), text))
    text = mask_streets(text, put)
    text = _PHONE.sub(lambda found: _if_phone(found, put), text)
    return mask_bare_identity(text, put) if bare else text


def names_an_order(key: str) -> bool:
    """Say whether a number behind this word counts orders, versions or goods, and reaches nobody."""
    return bool(ORDERED.search(f"{key.replace('_', ' ')}: "))


def is_card(text: str) -> bool:
    """Say whether the digits of `text` are a card's: a known form, and Luhn's checksum."""
    compact = "".join(c for c in text if c.isdigit())
    digits = [int(c) for c in compact][::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return bool(_CARD_FORMS.fullmatch(compact)) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def is_iban(compact: str) -> bool:
    """Say whether `compact`, capitals and digits only, has its country's length and the right checksum."""
    if len(compact) != _IBAN_LENGTHS.get(compact[:2]):
        return False
    return _has_checksum(compact)


def _has_checksum(compact: str) -> bool:
    if not compact.isascii():  # whatever the case, [A-Z] has a dotted capital I, too
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_ipv6(text: str) -> bool:
    try:
        return text.count(":") >= 2 and bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


_SPELT = (" dot ", " punkt ", " punto ", " point ", " ponto ", " kropka ", "at)", "at]", "at}", "[@", "(@")


def _spells_out(low: str) -> bool:
    return any(word in low for word in _SPELT)


_DIGIT_WORDS = frozenset(_DIGITS.split("|"))


def _counts_out(low: str) -> bool:
    return sum(word in _DIGIT_WORDS for word in low.replace(",", " ").replace("-", " ").split()) >= 6


def _always(text: str) -> bool:
    return bool(text)


def _as(kind: str, put: Put, if_: Callable[[str], bool] = _always) -> Callable[[re.Match[str]], str]:
    return lambda match: put(kind, match[0]) if if_(match[0]) else match[0]


def _if_iban(match: re.Match[str], put: Put) -> str:
    """The match may have run on into the next words: the country says where it ends."""
    text, kept = match[0], ""
    size = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    for end, letter in enumerate(text, 1):
        kept += letter.upper() if letter.isalnum() else ""
        if len(kept) == size:
            is_whole = not text[end : end + 1].isalnum()
            if is_whole and is_iban(kept):
                return f"{put('IBAN', text[:end])}{text[end:]}"
            break
    # A country that is not listed, or a length that is not its own: the checksum is enough.
    compact = "".join(c for c in text if c.isalnum()).upper()
    return put("IBAN", text) if 15 <= len(compact) <= 34 and _has_checksum(compact) else text


def _if_phone(match: re.Match[str], put: Put) -> str:
    before = match.string[max(0, match.start() - 48) : match.start()]
    return put("PHONE", match[0]) if _is_phone(match[1], before) else match[0]


def _is_phone(text: str, before: str) -> bool:
    """Read the groups: what begins like a call abroad or a trunk call, or is grouped as some country does."""
    groups = re.findall(r"\d+", text)
    digits = "".join(groups)
    if _DATE.fullmatch(text) or ORDERED.search(before) or re.fullmatch(r"\d+\.\d+|(?:\d{1,3}\.){3}\d{1,3}", text):
        return False
    if text[0] in "+(":
        return True
    if len(groups) >= 5 and all(len(group) <= 2 for group in groups) and text[0] != "0":
        return False  # somebody counts
    if _ASKED.search(before) or (text[0] == "0" and len(digits) >= 9):
        return True
    sizes = tuple(map(len, groups))
    is_russian = digits[0] == "8" and len(digits) == 11 and sizes[0] == 1  # a trunk call
    is_short = digits[0] == "0" and sizes in ((2, 2, 2, 2), (3, 2, 3), (2, 3, 3))
    is_american = bool(re.fullmatch(r"1?[2-9]\d{2}[2-9]\d{6}", digits))
    is_european = len(digits) == 9 and digits[0] in "56789" and sizes in ((3, 3, 3), (3, 2, 2, 2))
    return sizes in _GROUPED or is_russian or is_short or (is_american and len(digits) >= 10) or is_european
