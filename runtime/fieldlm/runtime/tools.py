"""Tools: what may be called, the grammar of a call that must come, and calls found in what a model said.

Models spell calls in their own way. Read are Hermes and Qwen (`<tool_call>…</tool_call>`), Llama 3 (bare JSON with
`parameters`), Mistral (`[TOOL_CALLS]` and a list) and any bare JSON call of a tool that was declared. What is none of
them is text, to the letter.
"""

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import msgspec

from fieldlm.formats.errors import InputError
from fieldlm.runtime.engines.constraint import Rule
from fieldlm.runtime.engines.schema import checked
from fieldlm.runtime.refusal import ApiError

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MARKS = (OPEN, "[TOOL_CALLS]", "<|python_tag|>")
ANYTHING: dict[str, Any] = {"type": "object"}

Plain = dict[str, Any]


class Function(msgspec.Struct, frozen=True):
    """What a tool is for, and the schema of its arguments."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """One tool of a request."""

    type: Literal["function"]
    function: Function

    def plain(self) -> Plain:
        """Return the tool as templates know it."""
        described = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**described, "parameters": self.function.parameters or ANYTHING}}


class _Name(msgspec.Struct, frozen=True):
    name: str


class NamedChoice(msgspec.Struct, frozen=True):
    """`tool_choice` of one function."""

    type: Literal["function"]
    function: _Name


class _AskedFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str = "{}"


class AskedCall(msgspec.Struct, frozen=True):
    """A call as a client sends it back, in the assistant's message."""

    function: _AskedFunction
    id: str | None = None
    type: Literal["function"] = "function"

    def plain(self, where: str) -> Plain:
        """Return the call as templates know it: arguments are an object there, not its JSON."""
        try:
            arguments = msgspec.json.decode(self.function.arguments or "{}")
        except (ValueError, RecursionError) as error:
            name = f"{where}.function.arguments"
            raise ApiError(400, f"{name} is not JSON: {error}", param=name, code="invalid_value") from error
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


@dataclass(frozen=True)
class Call:
    """A call that a model made; `arguments` is JSON."""

    name: str
    arguments: str

    def document(self, index: int) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": index, "id": f"call_{secrets.token_hex(8)}", "type": "function", "function": function}


@dataclass(frozen=True, kw_only=True)
class Toolbox:
    """The tools of a request, and whether one must be called."""

    tools: tuple[Tool, ...]
    must: bool
    several: bool

    @property
    def plain(self) -> list[Plain]:
        return [tool.plain() for tool in self.tools]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.tools)

    @property
    def rule(self) -> Rule | None:
        """Return the grammar of what must come: a call, or anything but a call that its tool would not understand."""
        if not self.must and not any(tool.function.strict for tool in self.tools):
            return None
        calls = [f"call_{i}" for i in range(len(self.tools))]
        start = "call (NEXT call)*" if self.several else "call"
        lines = [
            f"start: {start}" if self.must else f"start: TEXT | {start}",
            f"call: {' | '.join(calls)}",
            'NEXT: "\\n"',
            *(_spelt(name, tool.function) for name, tool in zip(calls, self.tools, strict=True)),
        ]
        if not self.must:
            # Free text is what cannot be taken for a call.
            lines.append(f"TEXT: /([^\\[{{<]|<[^t|])(.|\\n)*/ & ~/(.|\\n)*{OPEN}(.|\\n)*/")
        return Rule("grammar", "\n".join(lines))


def toolbox(
    declared: list[Tool], choice: Literal["none", "auto", "required"] | NamedChoice | None, *, several: bool
) -> Toolbox | None:
    """Return what may be called; raises ApiError for a choice that names no tool, or a tool that cannot be honoured."""
    if isinstance(choice, NamedChoice):
        declared = [tool for tool in declared if tool.function.name == choice.function.name]
    if choice in (None, "none", "auto") and (not declared or choice == "none"):
        return None
    if not declared:
        raise ApiError(400, "tool_choice names no tool of tools", param="tool_choice", code="invalid_value")
    must = choice == "required" or isinstance(choice, NamedChoice)
    return Toolbox(tools=tuple(declared), must=must, several=several and not isinstance(choice, NamedChoice))


def _spelt(rule: str, function: Function) -> str:
    schema = function.parameters or ANYTHING
    try:
        schema = checked(schema)
    except InputError as error:
        raise ApiError(400, f"tools: {function.name}: {error}", param="tools", code="invalid_value") from error
    style = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": False}
    text = json.dumps({**schema, "x-guidance": style})
    before = f'{OPEN}\n{{"name": {json.dumps(function.name)}, "arguments": '
    return f"{rule}: {json.dumps(before)} %json {text} {json.dumps('}' + chr(10) + CLOSE)}"


class CallReader:
    """The text of one answer as it comes, parted into what is said and what is called."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
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
        for mark in MARKS:
            body = body.removeprefix(mark)
        calls = list(self._calls(body.removesuffix(CLOSE)))
        return [*calls] if calls else [held]

    def _step(self, found: list[str | Call]) -> bool:
        """Take one piece off what is held; False when more text is needed."""
        start = self._held.lstrip()
        if not self._has_spoken and (not start or start[0] in "{["):
            return False
        at = min((place for mark in MARKS if (place := self._held.find(mark)) >= 0), default=-1)
        if at < 0:
            self._say(found, len(self._held) - self._may_begin())
            return False
        if self._held[:at].strip():
            self._say(found, at)
            return True
        end = self._held.find(CLOSE, at)
        if not self._held.startswith(OPEN, at) or end < 0:
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
    return Call(name, json.dumps(arguments, ensure_ascii=False))


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
