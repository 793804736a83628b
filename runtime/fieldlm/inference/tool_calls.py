"""Tool calls: found in what a model said, and spelt for a template that knows none.

Models spell calls in their own way. Read are Hermes and Qwen (`<tool_call>…</tool_call>`), Llama 3 (bare JSON with
`parameters`), Mistral (`[TOOL_CALLS]` and a list) and any bare JSON call of a tool that was declared. What is none of
them is text, to the letter.
"""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKS = (OPEN, "[TOOL_CALLS]", "<|python_tag|>")

# A string that does not end yet reaches to the end.
_STRING_OR_CLOSE = re.compile(rf'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|{CLOSE}', re.DOTALL)

Plain = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call that a model made; `arguments` is JSON."""

    name: str
    arguments: str

    def document(self, index: int) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": index, "id": f"call_{secrets.token_hex(8)}", "type": "function", "function": function}


class CallReader:
    """The text of one answer as it comes, parted into what is said and what is called.

    With `marked_only`, JSON that no mark stands before is what was asked for, and no call.
    """

    def __init__(self, names: frozenset[str], *, marked_only: bool = False) -> None:
        self._names = names
        self._marked_only = marked_only
        self._held = ""
        self._has_spoken = False

    def push(self, text: str) -> list[str | Call]:
        """Return what is now certain; what may still become a call is held back."""
        self._held += text
        found: list[str | Call] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[str | Call]:
        """Return what was held back, now that nothing follows."""
        held, self._held = self._held, ""
        if not held:
            return []
        body = held.strip()
        if self._marked_only and not body.startswith(MARKS):
            return [held]
        for mark in MARKS:
            body = body.removeprefix(mark)
        calls = list(self._calls(body.removesuffix(CLOSE)))
        return [*calls] if calls else [held]

    def _step(self, found: list[str | Call]) -> bool:
        """Take one piece off what is held; False when more text is needed."""
        start = self._held.lstrip()
        if not self._has_spoken and (not start or (start[0] in "{[" and not self._marked_only)):
            return False
        at = min((place for mark in MARKS if (place := self._held.find(mark)) >= 0), default=-1)
        if at < 0:
            self._say(found, len(self._held) - self._may_begin())
            return False
        if self._held[:at].strip():
            self._say(found, at)
            return True
        if not self._held.startswith(OPEN, at):
            return False
        end = _end_of_call(self._held, at + len(OPEN))
        if end < 0:
            return False
        calls = list(self._calls(self._held[at + len(OPEN) : end]))
        whole = end + len(CLOSE)
        if calls:
            found += calls
            self._held = self._held[whole:]
        else:
            self._say(found, whole)
        return bool(self._held)

    def _say(self, found: list[str | Call], length: int) -> None:
        if length:
            found.append(self._held[:length])
            self._has_spoken = self._has_spoken or bool(self._held[:length].strip())
            self._held = self._held[length:]

    def _may_begin(self) -> int:
        """Return the length of the longest end that a mark may begin with, and the space before it."""
        for length in range(min(max(map(len, MARKS)), len(self._held)), 0, -1):
            if any(mark.startswith(self._held[-length:]) for mark in MARKS):
                return length
        return len(self._held) - len(self._held.rstrip())

    def _calls(self, text: str) -> Iterator[Call]:
        """Yield the calls that `text` consists of; none when anything in it is not a call of a declared tool."""
        calls = [_call(value) for value in _values(text)]
        if all(call and call.name in self._names for call in calls):
            yield from (call for call in calls if call)


def _end_of_call(text: str, start: int) -> int:
    """Return where CLOSE stands in `text` from `start` on, but not in a string of the JSON before it; -1: nowhere."""
    if not text[start:].lstrip().startswith(("{", "[")):
        return text.find(CLOSE, start)
    for found in _STRING_OR_CLOSE.finditer(text, start):
        if found[0] == CLOSE:
            return found.start()
    return -1


def _values(text: str) -> list[Any]:
    """Return the JSON values that `text` is a row of; what is no JSON is None."""
    decoder, values, text = json.JSONDecoder(), list[Any](), text.strip()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return [None]
        values += cast(list[Any], value) if isinstance(value, list) else [value]
        text = re.sub(r"^[\s;,]+", "", text[end:])
    return values


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    fields = cast(dict[str, Any], value)
    fields = fields["function"] if isinstance(fields.get("function"), dict) else fields
    name, arguments = fields.get("name"), fields.get("arguments", fields.get("parameters"))
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    try:
        return Call(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    except ValueError:  # NaN, Infinity, 1e999: no JSON, and no client reads it
        return None


def described(tools: list[Plain]) -> str:
    """Return the system text that stands in for a template without tools, in the form that Hermes models began."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f'{OPEN}{CLOSE} XML tags:\n{OPEN}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{CLOSE}'
    )


def as_text(message: Plain) -> Plain:
    """Return `message` as text alone: calls and their results spelt as `described` says."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if "tool_calls" not in message:
        return message
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message["tool_calls"]]
    parts = [message["content"], *(f"{OPEN}\n{call}\n{CLOSE}" for call in calls)]
    return {"role": "assistant", "content": "\n".join(filter(None, parts))}
