"""Tool calling (function calling): what a request may call, and the grammar of a call that must come."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.engines.constraint import Rule
from fieldlm.engines.json_schema import checked
from fieldlm.inference.tool_calls import CLOSE, OPEN, Plain
from fieldlm.network.json_api import ApiError

ANYTHING: dict[str, Any] = {"type": "object"}


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
