"""Tool calling (function calling): what a request may call, and the grammar of a call that must come."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.engines.rules.json_schema import checked, loosened
from fieldlm.engines.rules.rule import Rule
from fieldlm.inference.call_formats import HERMES, CallFormat
from fieldlm.inference.call_grammar import CallGrammar, UnspeakableError, json_rule
from fieldlm.inference.call_spellings import MARKS
from fieldlm.inference.tool_calls import OPEN, Plain
from fieldlm.network.json_api import ApiError

if TYPE_CHECKING:
    from fieldlm.engines.constraint import CompiledRule

ANYTHING: dict[str, Any] = {"type": "object"}
_SLASH = re.compile(r"(?<!\\)((?:\\\\)*)/")  # one that no backslash escapes
_TEXT = "TEXT: /([^\\[{{<]|<[^t|])(.|\\n)*/ & ~/(.|\\n)*({})(.|\\n)*/"
"""Free text is what cannot be taken for a call."""
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
"""OpenAI: "Omitting parameters defines a function with an empty parameter list"."""


class Function(msgspec.Struct, frozen=True):
    """What a tool is for, and the schema of its arguments."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of its arguments, as it was given."""
        return NOTHING if self.parameters is None else self.parameters or ANYTHING


class Tool(msgspec.Struct, frozen=True):
    """One tool of a request."""

    type: Literal["function"]
    function: Function

    def plain(self) -> Plain:
        """Return the tool as templates know it."""
        described = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**described, "parameters": self.function.schema}}


class FunctionName(msgspec.Struct, frozen=True):
    """`function_call` of one function."""

    name: str


class NamedChoice(msgspec.Struct, frozen=True, tag="function", tag_field="type"):
    """`tool_choice` of one function."""

    function: FunctionName


class AllowedTools(msgspec.Struct, frozen=True):
    """Which of the tools may be called, and whether one has to be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], msgspec.Meta(min_length=1)]


class AllowedChoice(msgspec.Struct, frozen=True, tag="allowed_tools", tag_field="type"):
    """`tool_choice` of some of the functions."""

    allowed_tools: AllowedTools


Choice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


class AskedFunction(msgspec.Struct, frozen=True):
    """What was called, and with what."""

    name: str
    arguments: str | dict[str, Any] = "{}"

    def plain(self) -> Plain:
        """Return it as templates know it: arguments are an object there, not its JSON; a text where they are none."""
        try:
            given = self.arguments or "{}"
            arguments = msgspec.json.decode(given) if isinstance(given, str) else given
        except (ValueError, RecursionError):
            arguments = None  # a model wrote it, and is told what it wrote
        return {"name": self.name, "arguments": arguments if isinstance(arguments, dict) else self.arguments}


class AskedCall(msgspec.Struct, frozen=True):
    """A call as a client sends it back, in the assistant's message."""

    function: AskedFunction
    id: str | None = None
    type: Literal["function"] = "function"

    def plain(self) -> Plain:
        """Return the call as templates know it."""
        return {"id": self.id, "type": "function", "function": self.function.plain()}


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
    def schemas(self) -> dict[str, dict[str, Any]]:
        return {tool.function.name: tool.function.schema for tool in self.tools}

    @property
    def binds(self) -> bool:
        """Whether an answer without a form is held to anything: a call must come, or must be right if it comes."""
        return self.must or any(tool.function.strict for tool in self.tools)

    def rule(
        self,
        form: Rule | None,
        compile: "Callable[[Rule], CompiledRule]",
        *,
        format: CallFormat = HERMES,
        said: tuple[tuple[int, str], ...] = (),
        stops: frozenset[int] = frozenset(),
    ) -> Rule | None:
        """Return the grammar of what must come; `compile` says of a tool's schema whether it can be honoured.

        That is a call as `format` has it, or what `form` asks for, or any text that cannot be taken for a call its tool
        would not understand; None where nothing must. `said` are the control tokens of calls, `stops` those that end an
        answer. Raises ApiError for a strict tool, or a form, that cannot be held to.
        """
        if form is None and not self.binds:
            return None
        is_free = form is None and not self.must
        if is_free and not format.opens:
            format = HERMES  # any text could be such a call
        schemas = {tool.function.name: _arguments(tool.function, compile) for tool in self.tools}
        calls = CallGrammar(format, said, stops)
        try:
            rules = [calls.rules(schemas, several=self.several)]
        except UnspeakableError:
            calls = CallGrammar(HERMES, said, stops)
            rules = [calls.rules(schemas, several=self.several)]
        begins = calls.format.mark
        if is_free:
            marks = sorted({OPEN, begins} & MARKS.keys())
            rules += ["start: calls | TEXT", _TEXT.format("|".join(map(re.escape, marks)))]
        elif form is not None and not self.must:  # where a call must come, no form matters
            rules += ["start: calls | form", _formed(form)]
        else:
            rules.append("start: calls")
        json_after = begins if is_free else ""
        return Rule("grammar", "\n".join(rules), json_after=json_after, texts=tuple(calls.texts), said=said)


def toolbox(
    declared: list[Tool],
    choice: Choice | None,
    *,
    several: bool,
    names: tuple[str, str] = ("tool_choice", "tools"),
) -> Toolbox | None:
    """Return what may be called; raises ApiError for a choice that names no tool, or a tool that cannot be honoured.

    `names` are those of the parameters that hold the choice and the tools.
    """
    if isinstance(choice, AllowedChoice):
        allowed = {tool.function.name for tool in choice.allowed_tools.tools}
        if unknown := allowed - {tool.function.name for tool in declared}:
            what = f"{names[0]} allows {min(unknown)!r}, which is none of {names[1]}"
            raise ApiError(400, what, param=names[0], code="invalid_value")
        declared = [tool for tool in declared if tool.function.name in allowed]
        choice = choice.allowed_tools.mode
    if isinstance(choice, NamedChoice):
        declared = [tool for tool in declared if tool.function.name == choice.function.name]
    if choice in (None, "none", "auto") and (not declared or choice == "none"):
        return None
    if not declared:
        what = f"{names[0]} names none of {names[1]}"
        if choice == "required":
            what = f"{names[0]} is required, and there are no {names[1]}; send {names[1]}, or auto"
        raise ApiError(400, what, param=names[0], code="invalid_value")
    for tool in declared:
        _check(tool.function, declared, names[1])
    must = choice == "required" or isinstance(choice, NamedChoice)
    return Toolbox(tools=tuple(declared), must=must, several=several and not isinstance(choice, NamedChoice))


def _check(function: Function, declared: list[Tool], param: str) -> None:
    """Raise ApiError for what no call can be meant by: arguments that are no object, a name that two tools have."""
    if function.schema.get("type", "object") != "object":
        what = f"{param}: {function.name}: its parameters are no object"
        raise ApiError(400, what, param=param, code="invalid_value")
    if sum(tool.function.name == function.name for tool in declared) > 1:
        raise ApiError(400, f"{param}: two are called {function.name!r}", param=param, code="invalid_value")


def _arguments(function: Function, compile: "Callable[[Rule], CompiledRule]") -> dict[str, Any]:
    """Return the schema of `function`'s arguments to hold a call to; who is not strict is held to what can be."""
    try:
        compile(_schema_rule(function.schema))
        return checked(function.schema)
    except InputError as error:
        if function.strict:
            raise ApiError(400, f"tools: {function.name}: {error}", param="tools", code="invalid_value") from error
    try:
        schema = loosened(function.schema)
        compile(_schema_rule(schema))
    except InputError:
        return ANYTHING
    return schema


def _schema_rule(schema: dict[str, Any]) -> Rule:
    return Rule("json_schema", msgspec.json.encode(schema).decode())


def _formed(form: Rule) -> str:
    """Return the rule of a form that an answer with tools may have instead of a call."""
    if form.kind == "grammar":
        raise ApiError(400, "an answer follows tools or a grammar, not both", param="tools", code="invalid_value")
    if form.kind == "regex":
        return "form: /" + _SLASH.sub(r"\1\/", form.text).replace("\n", r"\n") + "/"
    schema = msgspec.json.decode(form.text)
    return f"form: {json_rule(checked(schema) if form.kind == 'json_schema' else schema)}"
