"""The second pass: what a device redacted is redacted again at home, whose rules are newer than those in the field.

A record that holds no sign of redaction (mode `full`) stays as its owner wanted it.
"""

import json
import re
from collections.abc import Callable
from typing import Any, cast

from fieldlm.telemetry.redaction.names import names_in
from fieldlm.telemetry.redaction.numbered import Numbered
from fieldlm.telemetry.redaction.redact import redact

_PLACEHOLDER = re.compile(r"<[A-Z]{2,8}(?:_\d+)?>")
_TEXTS = ("prompt", "answer", "correction")


def again(row: dict[str, Any]) -> dict[str, Any]:
    """Return a joined row with its texts redacted once more, if a device has redacted it; else the row itself."""
    texts = {name: str(row.get(name) or "") for name in _TEXTS}
    if not row.get("redacted") and not any(map(_PLACEHOLDER.search, texts.values())):
        return row
    put = Numbered.after(texts.values())
    names = names_in("\n".join([*_spoken(texts["prompt"]), texts["answer"], texts["correction"]]))

    def clean(text: str) -> str:
        return redact(text, names=names, put=put)

    return row | {
        "prompt": _in_messages(texts["prompt"], clean), "answer": clean(texts["answer"]),
        "correction": clean(texts["correction"]),
    }  # fmt: skip


def _spoken(prompt: str) -> list[str]:
    """Return what was said in a prompt; a system prompt names nobody."""
    try:
        messages = json.loads(prompt)
    except (ValueError, RecursionError):
        return []
    found: list[dict[str, Any]] = messages if isinstance(messages, list) else []
    return [str(m.get("content") or "") for m in found if isinstance(cast(Any, m), dict) and m.get("role") != "system"]


def _in_messages(prompt: str, clean: Callable[[str], str]) -> str:
    """Return a prompt with the texts of its messages cleaned; one that cannot be read stays, and is dropped later."""
    try:
        messages = json.loads(prompt)
    except (ValueError, RecursionError):
        return prompt
    found: list[Any] = messages if isinstance(messages, list) else []
    made = [_message(cast(dict[str, Any], m), clean) if isinstance(m, dict) else m for m in found]
    return prompt if made == messages else json.dumps(made, ensure_ascii=False)


def _message(message: dict[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    if message.get("role") == "system" or not isinstance(message.get("content"), str):
        return message
    return message | {"content": clean(message["content"])}
