"""Tool calls: found in what a model said, and spelt for a template that knows none.

Models spell calls in their own way; `call_spellings.py` knows which. Read are calls between marks, and those without
any that an answer begins with: JSON, Python, a name with its arguments. What is none of them is text, to the letter.
"""

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from fieldlm.engines.stop_text import beginning_at_end
from fieldlm.inference.call_spellings import IN_BODY, MARKS, Schemas, asked_for, may_begin

OPEN, CLOSE = "<tool_call>", "</tool_call>"

Plain = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call that a model made; `arguments` is JSON."""

    name: str
    arguments: str

    def document(self, index: int) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": index, "id": f"call_{secrets.token_hex(8)}", "type": "function", "function": function}


def spelt(name: str, arguments: object) -> str:
    """Return a call as the text that the small models of this project say."""
    body = f'{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'
    return f"{OPEN}\n{body}\n{CLOSE}"


class CallReader:
    """The text of one answer as it comes, parted into what is said and what is called.

    With `marked_only`, JSON that no mark stands before is what was asked for, and no call. `schemas` are those of the
    tools' arguments by name, for spellings that do not tell a text from a number.
    """

    def __init__(self, names: frozenset[str], *, marked_only: bool = False, schemas: Schemas | None = None) -> None:
        self._schemas = schemas
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

    def finish(self, *, is_cut: bool = False) -> list[str | Call]:
        """Return what was held back, now that nothing follows.

        Of an answer that `is_cut` (by its length, its deadline) the beginning of a call that a mark stands before is
        neither said nor called: markup is no text, and arguments that break off are others.
        """
        held, self._held = self._held, ""
        if not held:
            return []
        body = held.strip()
        mark = next((mark for mark in MARKS if body.startswith(mark)), "")
        if is_cut and (MARKS[mark] if mark else _is_broken_mark(body)):
            return []
        if self._marked_only and not mark:
            return [held]
        inner = _within(body, mark)
        calls = [] if is_cut and not _is_closed(inner.strip()) else self._calls(inner)
        return [*calls] if calls else [] if is_cut and mark else [held]

    def _step(self, found: list[str | Call]) -> bool:
        """Take one piece off what is held; False when more text is needed."""
        start = self._held.lstrip()
        at, mark = min(((place, mark) for mark in MARKS if (place := self._held.find(mark)) >= 0), default=(-1, ""))
        if at < 0 or self._held[:at].strip():
            if not self._has_spoken and (not start or (not self._marked_only and may_begin(start, self._names))):
                return False
            self._say(found, at if at >= 0 else len(self._held) - self._may_begin())
            return at >= 0
        end = _end_of_call(self._held, at + len(mark), MARKS[mark]) if MARKS[mark] else -1
        if end < 0:
            return False
        whole = end + len(MARKS[mark])
        calls = self._calls(_within(self._held[at:whole], mark))
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
        """Return the length of the longest end that a mark may begin with, or that is space before one."""
        return beginning_at_end(self._held, (*MARKS,)) or len(self._held) - len(self._held.rstrip())

    def _calls(self, text: str) -> list[Call]:
        """Return the calls that `text` consists of; none when anything in it is not a call of a declared tool."""
        asked = asked_for(text, self._names, self._schemas)
        try:
            return [Call(name, json.dumps(given, ensure_ascii=False, allow_nan=False)) for name, given in asked]
        except ValueError:  # NaN, Infinity, 1e999: no JSON, and no client reads it
            return []


def _is_broken_mark(text: str) -> bool:
    """Whether `text` is the beginning of a mark and nothing else: a bracket alone, or a word, may be what was meant."""
    is_told = not text.isalpha() and any(character.isalpha() for character in text)
    return is_told and any(mark.startswith(text) for mark in MARKS)


def _is_closed(text: str) -> bool:
    """Whether a call that no mark ends is whole: a name without what it is given is one only where nothing follows."""
    return text.endswith(("}", ")", "```")) or (text.endswith("]") and text.startswith(("[", "functools[")))


def _within(text: str, mark: str) -> str:
    """Return what stands between `mark` and what ends it, with the marks that say a part of it."""
    if mark in IN_BODY or not mark:
        return text
    return text.removeprefix(mark).removesuffix(MARKS[mark] or "\x00")


def _end_of_call(text: str, start: int, close: str) -> int:
    """Return where `close` stands in `text` from `start` on, but not in a string of the JSON before it; -1: nowhere."""
    if not text[start:].lstrip().startswith(("{", "[")):
        return text.find(close, start)
    # A string that does not end yet reaches to the end.
    for found in re.compile(rf'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|{re.escape(close)}', re.DOTALL).finditer(text, start):
        if found[0] == close:
            return found.start()
    return -1


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
