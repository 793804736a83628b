"""Replace what identifies a person by a placeholder, before anything is written down.

<EMAIL> <IBAN> <CARD> <KEY> <ADDRESS> <PHONE> <NAME>, and <CUSTOM> for a fleet's own patterns: the same input gives the
same output, and a text that holds nothing personal comes back unchanged, byte for byte. Patterns, word lists and
checksums only: a name that is neither introduced ("my name is …") nor a common first name is not found, nor is one in
another script than Latin. tests/telemetry/redaction has the texts that this is measured with.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

from fieldlm.telemetry.redaction.names import hide, names_in
from fieldlm.telemetry.redaction.patterns import mask, names_an_order

Patterns = Sequence[re.Pattern[str]]
"""What else a fleet calls personal, membership numbers for example."""
_PERSONAL_KEYS = {
    "customer": "<NAME>", "customer_name": "<NAME>", "first_name": "<NAME>", "last_name": "<NAME>",
    "full_name": "<NAME>", "pickup_name": "<NAME>", "order_name": "<NAME>", "person": "<NAME>",
    "phone": "<PHONE>", "phone_number": "<PHONE>", "email": "<EMAIL>", "address": "<ADDRESS>",
    "password": "<KEY>", "api_key": "<KEY>",
}  # fmt: skip


def redact(text: str, *, names: Iterable[str] = (), patterns: Patterns = ()) -> str:
    """Return `text` with placeholders; `names` are names already known, for example from the same conversation.

    A text that is JSON stays JSON: its values are redacted, and those of keys like "customer_name" whatever they hold.
    """
    known = frozenset(names) | names_in(text)
    if text[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return _plain(text, known, patterns)
        clean = _value(value, known, patterns)
        return text if clean == value else _dump(clean, like=text)
    return _plain(text, known, patterns)


def redact_messages(messages: Any, *, names: Iterable[str] = (), patterns: Patterns = ()) -> Any:
    """Return a JSON value with every text in it redacted; roles and keys stay."""
    return _value(messages, frozenset(names), patterns)


def _value(value: Any, names: frozenset[str], patterns: Patterns, key: str = "") -> Any:
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {k: v if k == "role" else _value(v, names, patterns, k) for k, v in items}
    if isinstance(value, list):
        return [_value(item, names, patterns, key) for item in cast(list[Any], value)]
    if isinstance(value, str):
        personal = _PERSONAL_KEYS.get(key.casefold())
        return personal if personal and value else redact(value, names=names, patterns=patterns)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**6:
        return _number(value, patterns, key)
    return value


def _number(value: int, patterns: Patterns, key: str) -> Any:
    if personal := _PERSONAL_KEYS.get(key.casefold()):
        return personal
    text = f"{value}" if not names_an_order(key) else f"order {value}"
    masked = _plain(text, frozenset(), patterns)
    return value if masked == text else masked.removeprefix("order ")


def _dump(value: Any, *, like: str) -> str:
    separators = (", ", ": ") if '": ' in like else (",", ":")
    return json.dumps(value, ensure_ascii=False, separators=separators)


def _plain(text: str, names: frozenset[str], patterns: Patterns) -> str:
    for pattern in patterns:
        text = pattern.sub(lambda match: match[0] and "<CUSTOM>", text)
    return hide(mask(text), names)
