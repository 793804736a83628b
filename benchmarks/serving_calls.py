"""Calls with a strict schema: what is asked, and whether an answer keeps to it. SNIPS, or orders at a kiosk."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SNIPS_SYSTEM = "Answer with one JSON call."
KIOSK_SYSTEM = "Answer with the order as JSON."
ITEMS = ("coffee", "tea", "cocoa", "cake", "sandwich", "water")
SIZES = ("small", "medium", "large")
LONGEST = 40  # characters of a value; an untuned model would fill all it may
MAX_TOKENS = 160


@dataclass(frozen=True)
class Calls:
    """Requests that all ask for one schema."""

    name: str
    system: str
    texts: Sequence[str]
    schema: dict[str, Any]
    check: Callable[[Any], str]

    def bodies(self, turn: int, count: int) -> list[dict[str, Any]]:
        """Return the next `count` requests; another turn has other ones."""
        wanted = {"type": "json_schema", "json_schema": {"name": "call", "strict": True, "schema": self.schema}}
        texts = [self.texts[(turn * count + i) % len(self.texts)] for i in range(count)]
        return [
            {
                "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": text}],
                "max_tokens": MAX_TOKENS,
                "response_format": wanted,
            }
            for text in texts
        ]

    def fault(self, answer: str) -> str:
        """Return what is wrong with an answer, nothing when it keeps to the schema."""
        try:
            return self.check(json.loads(answer))
        except ValueError as error:
            return f"no JSON ({error})"


def kiosk() -> Calls:
    """Return orders, for a model that was not tuned to anything: every answer ends by itself."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "item": {"type": "string", "enum": list(ITEMS)},
            "size": {"type": "string", "enum": list(SIZES)},
            "takeaway": {"type": "boolean"},
            "note": {"type": "string", "maxLength": LONGEST},
        },
        "required": ["item", "size", "takeaway", "note"],
        "additionalProperties": False,
    }
    texts = [f"I would like a {size} {item}, please." for item in ITEMS for size in SIZES]
    return Calls("kiosk", KIOSK_SYSTEM, texts, schema, _order_fault)


def _order_fault(found: Any) -> str:
    if not isinstance(found, dict) or set(found) != {"item", "size", "takeaway", "note"}:
        return "not the four members of an order"
    if found["item"] not in ITEMS or found["size"] not in SIZES or not isinstance(found["takeaway"], bool):
        return "a value that is not in the schema"
    return "" if isinstance(found["note"], str) and len(found["note"]) <= LONGEST else "a note that is too long"


def snips(folder: Path) -> Calls:
    """Return the test split in `folder`; the schema's intents and slots are those of the training split."""
    rows = [json.loads(line) for line in (folder / "snips-train.jsonl").read_text().splitlines()]
    tests = [json.loads(line)["text"] for line in (folder / "snips-test.jsonl").read_text().splitlines()]
    intents = sorted({row["name"] for row in rows})
    slots = {name: sorted({s for row in rows if row["name"] == name for s in row["arguments"]}) for name in intents}
    value = {"type": "string", "minLength": 1, "maxLength": LONGEST}
    schema: dict[str, Any] = {"anyOf": [_intent(name, slots[name], value) for name in intents]}

    def fault(found: Any) -> str:
        if not isinstance(found, dict) or set(found) != {"name", "arguments"} or found["name"] not in slots:
            return "not a call of a known intent"
        if not isinstance(found["arguments"], dict) or not set(found["arguments"]) <= set(slots[found["name"]]):
            return f"a slot that {found['name']} does not have"
        fits = all(isinstance(v, str) and 0 < len(v) <= LONGEST for v in found["arguments"].values())
        return "" if fits else "a value that is not a short text"

    return Calls("SNIPS", SNIPS_SYSTEM, tests, schema, fault)


def _intent(name: str, slots: Sequence[str], value: dict[str, Any]) -> dict[str, Any]:
    arguments = {
        "type": "object",
        "properties": dict.fromkeys(slots, value),
        "required": [],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
