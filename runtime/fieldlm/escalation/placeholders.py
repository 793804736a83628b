"""Placeholders: what identifies a person stays on the device, and comes back into the large model's answer.

"call Anna Berg" leaves as "call <NAME_1>"; where the answer says <NAME_1>, the client reads Anna Berg. The same words
have the same placeholder all through a conversation.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fieldlm.telemetry.redaction.names import names_in
from fieldlm.telemetry.redaction.numbered import Numbered
from fieldlm.telemetry.redaction.put import Patterns
from fieldlm.telemetry.redaction.redact import redact

_TOLD = frozenset({"description", "title", "enum", "const", "default", "examples"})
"""Where a schema holds words and values, and not its own terms."""
_NUMBERED = re.compile(r"<[A-Z]+_\d+>")


@dataclass
class Placeholders:
    """The words of one conversation that stay here, by their placeholders."""

    patterns: Patterns = ()
    numbered: Numbered = field(default_factory=lambda: Numbered(exact=True))
    _names: set[str] = field(default_factory=set[str])

    def hide(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return `messages` with placeholders; roles, names of functions, ids of calls and keys stay."""
        self._names |= names_in("\n".join(_texts(messages)))
        return [self._message(message) for message in messages]

    def hide_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rest of a request with placeholders: what schemas and tools say, and what ends an answer."""
        return {key: self._value(value) if key == "stop" else self._schema(value) for key, value in body.items()}

    def show(self, text: str, *, is_json: bool = False) -> str:
        """Return `text` with the words in the place of their placeholders; where it `is_json`, as JSON spells them."""

        def words(found: re.Match[str]) -> str:
            said = self.numbered.words.get(found[0])
            if said is None:
                return found[0]
            return json.dumps(said, ensure_ascii=False)[1:-1] if is_json else said

        return _NUMBERED.sub(words, text)

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        hidden = {k: v if k in ("role", "name", "tool_call_id") else self._value(v) for k, v in message.items()}
        if calls := message.get("tool_calls"):
            hidden["tool_calls"] = [self._call(call) for call in calls]
        return hidden

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": self._value(function.get("arguments"))}}

    def _schema(self, value: Any) -> Any:
        if isinstance(value, dict):
            items = cast(dict[str, Any], value).items()
            return {k: self._value(v) if k in _TOLD else self._schema(v) for k, v in items}
        return [self._schema(item) for item in cast(list[Any], value)] if isinstance(value, list) else value

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self._value(v) for k, v in cast(dict[str, Any], value).items()}
        if isinstance(value, list):
            return [self._value(item) for item in cast(list[Any], value)]
        return self._text(value, frozenset(self._names)) if isinstance(value, str) else value

    def _text(self, text: str, names: frozenset[str]) -> str:
        return redact(text, names=names, patterns=self.patterns, put=self.numbered)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in cast(dict[str, Any], value).values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in cast(list[Any], value) for text in _texts(item)]
    return []
