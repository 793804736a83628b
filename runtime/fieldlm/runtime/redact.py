"""Replace what identifies a person by a placeholder, before anything is written down.

<EMAIL> <IBAN> <CARD> <KEY> <ADDRESS> <PHONE> <NAME>: the same input gives the same output, and a text that holds
nothing personal comes back unchanged, byte for byte. Patterns and checksums only: a name that is neither introduced
("my name is …") nor a common first name is not found. English first; numbers and checksums hold everywhere.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from fieldlm.runtime.names import FIRST_NAMES, NOT_NAMES

_EMAIL = re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_DOTTED = r"(?: dot [\w-]{1,63}){0,3}"
_SPOKEN_EMAIL = re.compile(
    rf"\b[\w.+-]{{1,64}}{_DOTTED} at [\w-]{{1,63}}{_DOTTED} dot (?:com|net|org|de|uk|eu|io|edu)\b", re.I
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.I)
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d])")
_KEY = re.compile(
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|\bhf_[A-Za-z0-9]{20,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"
)
_SECRET = re.compile(
    r"(\b(?:api[ _-]?key|access token|password|passwd|secret|pin code)\b\s*(?:is|[:=])\s*)([^\s,;]{4,})", re.I
)
_STREET = (
    "street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|way|court|ct|square|terrace|place|"
    "straße|strasse|str|gasse|weg|platz|allee"
)
_ADDRESS = re.compile(
    rf"\b\d{{1,5}}[a-z]?,? ((?:[\w'’.-]{{2,24}} ){{1,3}})(?:{_STREET})\b\.?"
    r"|\b[A-ZÄÖÜ][\wäöüß-]{2,24}(?:straße|strasse|gasse) \d{1,4}\b",
    re.I,
)
_MIDWORDS = "a an and by for from in more my of on or small medium large the to with your please coffee coffees drinks"
_NOT_IN_STREET = frozenset(_MIDWORDS.split())
_PHONE = re.compile(r"(?<![\w.,:/-])\+?\(?\d(?:[ .()/-]{0,2}\d){6,14}(?![\w/:-]|[.,]\d)")
_HAS_DIGIT = re.compile(r"\d")
_DIGIT = "zero|oh|one|two|three|four|five|six|seven|eight|nine"
_SPOKEN_PHONE = re.compile(rf"\b(?:(?:double |triple )?(?:{_DIGIT})[\s,-]{{1,3}}){{6,15}}(?:{_DIGIT})\b", re.I)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}")
_TAIL = r"[^\W\d_'’-]{0,23}(?:['’-][^\W\d_]{2,20})?"
_WORD = rf"[^\W\d_]{_TAIL}"
_NAME = rf"({_WORD}(?: (?-i:[A-ZÄÖÜ]{_TAIL}))?)"
# The name is only looked at, so that in "this is for Ada" the next search can start at "for".
_STRONG = re.compile(
    r"\b(?:my (?:first |last |full )?name(?:['’]s| is|:)|the name(?:['’]s| is)|under the name(?: of)?"
    rf"|name(?: of the order)? is|(?:mr|mrs|ms|dr|miss)\.?) (?={_NAME})",
    re.I,
)
_WEAK = re.compile(
    r"\b(?:i['’]m|i am|this is|it['’]s|call me|for|under|name:?|from|thanks,?|thank you,?|hi,?|hello,?)"
    rf" (?={_NAME})",
    re.I,
)
_ALONE = re.compile(rf"(?<![\w<]){_WORD}(?![\w>])")
_PERSONAL_KEYS = {
    "customer": "<NAME>", "customer_name": "<NAME>", "first_name": "<NAME>", "last_name": "<NAME>",
    "full_name": "<NAME>", "pickup_name": "<NAME>", "order_name": "<NAME>", "person": "<NAME>",
    "phone": "<PHONE>", "phone_number": "<PHONE>", "email": "<EMAIL>", "address": "<ADDRESS>",
    "password": "<KEY>", "api_key": "<KEY>",
}  # fmt: skip


def redact(text: str, *, names: Iterable[str] = ()) -> str:
    """Return `text` with placeholders; `names` are names already known, for example from the same conversation.

    A text that is JSON stays JSON: its values are redacted, and those of keys like "customer_name" whatever they hold.
    """
    known = frozenset(names) | names_in(text)
    if text[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return _plain(text, known)
        clean = _value(value, known)
        return text if clean == value else _dump(clean, like=text)
    return _plain(text, known)


def redact_messages(messages: Any, *, names: Iterable[str] = ()) -> Any:
    """Return a JSON value with every text in it redacted; roles and keys stay."""
    return _value(messages, frozenset(names))


def names_in(text: str) -> frozenset[str]:
    """Return the personal names that `text` introduces or plainly holds."""
    found = {match[1] for match in _STRONG.finditer(text) if not _is_common(match[1])}
    found |= {match[1] for match in _WEAK.finditer(text) if _is_likely(match[1])}
    found |= {word for word in _ALONE.findall(text) if word[0].isupper() and word.casefold() in FIRST_NAMES}
    return frozenset(part.casefold() for name in found for part in name.split() if not _is_common(part))


def _is_common(name: str) -> bool:
    return name.split(maxsplit=1)[0].casefold() in NOT_NAMES


def _is_likely(name: str) -> bool:
    """A word after "for" or "I'm" is a name when it is known as one, or capitalised and no everyday word."""
    first = name.split(maxsplit=1)[0]
    known = first.casefold() in FIRST_NAMES
    return known or (first[0].isupper() and first[1:].islower() and not _is_common(name))


def _value(value: Any, names: frozenset[str], key: str = "") -> Any:
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {k: v if k == "role" else _value(v, names, k) for k, v in items}
    if isinstance(value, list):
        return [_value(item, names, key) for item in cast(list[Any], value)]
    if isinstance(value, str):
        personal = _PERSONAL_KEYS.get(key.casefold())
        return personal if personal and value else redact(value, names=names)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**6:
        masked = _PERSONAL_KEYS.get(key.casefold()) or _plain(str(value), frozenset())
        return value if masked == str(value) else masked
    return value


def _dump(value: Any, *, like: str) -> str:
    separators = (", ", ": ") if '": ' in like else (",", ":")
    return json.dumps(value, ensure_ascii=False, separators=separators)


def _plain(text: str, names: frozenset[str]) -> str:
    text = _KEY.sub("<KEY>", text)
    text = _SECRET.sub(r"\1<KEY>", text)
    text = _EMAIL.sub("<EMAIL>", text)
    # Most texts have no digits and spell nothing out; looking first halves the time of a request.
    if " dot " in text.lower():
        text = _SPOKEN_EMAIL.sub("<EMAIL>", text)
    if _HAS_DIGIT.search(text):
        text = _IBAN.sub(_if(_is_iban, "<IBAN>"), text)
        text = _CARD.sub(_if(_is_card, "<CARD>"), text)
        text = _ADDRESS.sub(_if_street, text)
        text = _PHONE.sub(_if(_is_phone, "<PHONE>"), text)
    text = _SPOKEN_PHONE.sub("<PHONE>", text)
    if names:
        some = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        text = re.sub(rf"(?<![\w<])(?:{some})(?: (?:{some}))*(?![\w>])", "<NAME>", text, flags=re.I)
    return text


def _if(holds: Callable[[str], bool], placeholder: str) -> Callable[[re.Match[str]], str]:
    return lambda match: placeholder if holds(match[0]) else match[0]


def _if_street(match: re.Match[str]) -> str:
    between = (match[1] or "").casefold().split()
    return match[0] if _NOT_IN_STREET & set(between) else "<ADDRESS>"


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()][::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0 and any(digits)


def _is_iban(text: str) -> bool:
    compact = text.replace(" ", "").upper()
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    """Seven digits want the shape 555-0199, eight or nine a leading + or 0, ten are enough; a date is none."""
    if _DATE.fullmatch(text):
        return False
    count = sum(c.isdigit() for c in text)
    if count == 7:
        return bool(re.fullmatch(r"\d{3}[ .-]\d{4}", text))
    return count >= 10 or text[0] in "+0("
