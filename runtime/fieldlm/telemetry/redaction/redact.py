"""Redaction of a text, and of a JSON value. Who imports this has its hundred patterns compiled, a tenth of a start."""

import json
import re
from collections.abc import Iterable
from typing import Any, cast

from fieldlm.telemetry.redaction.names import hide, names_in
from fieldlm.telemetry.redaction.patterns import mask, names_an_order
from fieldlm.telemetry.redaction.put import Patterns, Put, plain
from fieldlm.telemetry.redaction.seen import as_seen

_PERSONAL_KEYS = {
    "customer": "NAME", "customer_name": "NAME", "first_name": "NAME", "last_name": "NAME", "full_name": "NAME",
    "pickup_name": "NAME", "order_name": "NAME", "person": "NAME", "phone": "PHONE", "phone_number": "PHONE",
    "email": "EMAIL", "address": "ADDRESS", "password": "KEY", "api_key": "KEY", "token": "KEY", "secret": "KEY",
    "access_token": "KEY", "ssn": "ID", "national_id": "ID", "passport": "ID", "passport_number": "ID",
    "license_plate": "ID", "licence_plate": "ID", "birthday": "DATE", "birth_date": "DATE", "date_of_birth": "DATE",
    "dob": "DATE", "iban": "IBAN", "card_number": "CARD",
}  # fmt: skip


LEAST_DIGITS = 7
"""A number of fewer digits reaches nobody."""


def redact(text: str, *, names: Iterable[str] = (), patterns: Patterns = (), put: Put = plain) -> str:
    """Return `text` with placeholders; `names` are names already known, for example from the same conversation.

    A text that is JSON stays JSON: its values are redacted, and those of keys like "customer_name" whatever they hold.
    """
    known = frozenset(names) | names_in(text)
    if text[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return _plain(text, known, patterns, put)
        clean = _value(value, known, patterns, put)
        return text if clean == value else _dump(clean, like=text)
    return _plain(text, known, patterns, put)


def redact_messages(messages: Any, *, names: Iterable[str] = (), patterns: Patterns = (), put: Put = plain) -> Any:
    """Return a JSON value with every text in it redacted; roles and keys stay."""
    return _value(messages, frozenset(names), patterns, put)


def _value(value: Any, names: frozenset[str], patterns: Patterns, put: Put, key: str = "") -> Any:
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {_key(k, patterns, put): v if k == "role" else _value(v, names, patterns, put, k) for k, v in items}
    if isinstance(value, list):
        return [_value(item, names, patterns, put, key) for item in cast(list[Any], value)]
    if isinstance(value, str):
        personal = _PERSONAL_KEYS.get(key.casefold())
        if personal and value and not _PLACEHOLDER.fullmatch(value):
            return put(personal, value)
        return redact(value, names=names, patterns=patterns, put=put)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**6:
        return _number(value, patterns, key, put)
    return value


def _key(key: str, patterns: Patterns, put: Put) -> str:
    """Return a key without what identifies a person by its form: who keeps notes by address or number has it there.

    A name is no reason: arguments are called by words that are names, too.
    """
    if "@" not in key and sum(map(str.isdigit, key)) < LEAST_DIGITS:
        return _custom(key, patterns, put)
    return _plain(key, frozenset(), patterns, put, is_number=True)


def _number(value: int, patterns: Patterns, key: str, put: Put) -> Any:
    if personal := _PERSONAL_KEYS.get(key.casefold()):
        return put(personal, f"{value}")
    # A number of JSON is a phone or a card, never an id: times and counters have as many digits.
    text = f"{value}" if not names_an_order(key) else f"order {value}"
    masked = _plain(text, frozenset(), patterns, put, is_number=True)
    return value if masked == text else masked.removeprefix("order ")


def _dump(value: Any, *, like: str) -> str:
    separators = (", ", ": ") if '": ' in like else (",", ":")
    return json.dumps(value, ensure_ascii=False, separators=separators)


def _plain(text: str, names: frozenset[str], patterns: Patterns, put: Put, *, is_number: bool = False) -> str:
    text = _custom(text, patterns, put)
    seen = as_seen(text)
    clean = hide(mask(_custom(seen, patterns, put), put, bare=not is_number), names, put)
    return text if clean == seen else clean


def _custom(text: str, patterns: Patterns, put: Put) -> str:
    for pattern in patterns:
        text = pattern.sub(lambda match: match[0] and put("CUSTOM", match[0]), text)
    return text


_PLACEHOLDER = re.compile(r"<[A-Z]{1,64}(?:_\d{1,9})?>")
