"""The text of a record: clipped, and redacted where it has to be.

The patterns of redaction are compiled, a tenth of a start, when there is a first text to redact: in the spool's writer,
and never on a device that tells numbers alone.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import msgspec

from fieldlm.formats.policy import Mode
from fieldlm.telemetry.redaction.put import Patterns, Put, plain

TEXT_CHARS = 16_384
"""Longer texts lose their middle: both ends are kept."""


def names_said(messages: Iterable[Any], answer: str) -> frozenset[str]:
    """Return the names that the customer's own words and the answer hold; a system prompt names nobody."""
    from fieldlm.telemetry.redaction.names import names_in

    told = [text for message in messages if not _is_system(message) for text in texts_in(message)]
    return names_in("\n".join([*told, answer]))


def redacted_message(message: Any, names: frozenset[str], patterns: Patterns, put: Put) -> Any:
    """Return one message of a conversation in which `names` were said, redacted."""
    if _is_system(message):
        return _redacted_system(msgspec.json.encode(message), tuple(patterns))
    return redacted(message, names=names, patterns=patterns, put=put)


@functools.lru_cache(maxsize=32)
def _redacted_system(message: bytes, patterns: tuple[re.Pattern[str], ...]) -> Any:
    # The same few kilobytes stand in front of every request.
    return redacted(msgspec.json.decode(message), patterns=patterns)


def redacted(value: Any, *, names: frozenset[str] = frozenset(), patterns: Patterns = (), put: Put = plain) -> Any:
    """Return a JSON value with all its texts redacted."""
    from fieldlm.telemetry.redaction.redact import redact_messages

    return redact_messages(value, names=names, patterns=patterns, put=put)


def redacted_text(text: str, mode: Mode, names: frozenset[str], patterns: Patterns, put: Put) -> str:
    """Return `text`, which may be JSON, as `mode` tells it."""
    if mode != "redacted":
        return text
    from fieldlm.telemetry.redaction.redact import redact

    return redact(text, names=names, patterns=patterns, put=put)


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and cast(dict[str, Any], message).get("role") == "system"


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in cast(dict[str, Any], value).values():
            yield from texts_in(item)
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from texts_in(item)


def clean_all(value: Any) -> Any:
    """Return a JSON value with all its texts as UTF-8 can hold them: without lone surrogates."""
    return _each(value, _clean)


def clip_all(value: Any) -> Any:
    """Return a JSON value with all its texts clipped."""
    return _each(value, clip)


def _each(value: Any, made: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return made(value)
    if isinstance(value, dict):
        return {str(key): _each(item, made) for key, item in cast(dict[Any, Any], value).items()}
    return [_each(item, made) for item in cast(list[Any], value)] if isinstance(value, list) else value


def clip(text: str) -> str:
    """Return `text` as `_clean` has it, and without its middle when it is too long.

    What is to be redacted is redacted before: half a number at the cut looks like none.
    """
    text = _clean(text)
    if len(text) <= TEXT_CHARS:
        return text
    return f"{text[: TEXT_CHARS // 2]} … {text[-TEXT_CHARS // 2 :]}"


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
