"""What an answer does: which function it calls with which arguments; and requests with names for arguments' values.

"play {music_genre} in the {house_place}" is nearer to other requests of its kind than "play some jazz in the attic".
"""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from fieldlm.inference.chat_template import Message
from fieldlm.inference.tool_calls import CLOSE, OPEN, Call, CallReader

Shape = tuple[str, dict[str, Any]]
_TEXT: Shape = ("text", {})


def signature(answer: str) -> tuple[str, ...]:
    """Return what an answer does: the called function, then its arguments' names. Plain text does "text"."""
    name, arguments = call_of(answer)
    return (name, *(f"{name}.{key}" for key in sorted(arguments)))


def call_of(answer: str) -> Shape:
    """Return the function that an answer calls first, and the arguments; ("text", {}) where it calls none."""
    try:
        call: Any = json.loads(answer.strip().removeprefix(OPEN).partition(CLOSE)[0])
    except (ValueError, RecursionError):
        return _TEXT
    if isinstance(call, dict) and isinstance(cast(dict[str, Any], call).get("tool_calls"), list):
        call = cast(dict[str, Any], call)["tool_calls"]
    if isinstance(call, list) and call:
        call = cast(list[Any], call)[0]
    if not isinstance(call, dict):
        return _TEXT
    fields = cast(dict[str, Any], call)
    if isinstance(fields.get("function"), dict):
        fields = cast(dict[str, Any], fields["function"])
    name = next((str(fields[key]) for key in ("name", "function", "tool", "intent") if key in fields), "object")
    arguments = next((fields[key] for key in ("arguments", "args", "parameters", "slots") if key in fields), fields)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    return name, cast(dict[str, Any], arguments) if isinstance(arguments, dict) else {}


def spoken(text: str, tools: Sequence[Message]) -> tuple[str, list[Message]] | None:
    """Return an answer and the tool calls that it is, if it is some; None where its calls cannot be read.

    Calls are what the API writes (`{"tool_calls": […]}`), OpenAI's own list, or what a model said to call `tools`.
    """
    calls = _listed(text)
    if calls is None:
        functions = [cast(dict[str, Any], tool.get("function", {})) for tool in tools]
        schemas = {str(function.get("name")): function.get("parameters") or {} for function in functions}
        reader = CallReader(frozenset(schemas), schemas=schemas)
        parts = [*reader.push(text), *reader.finish()] if tools else []
        found = [part for part in parts if isinstance(part, Call)]
        if not found or any(isinstance(part, str) and part.strip() for part in parts):
            return text, []
        calls = [{"name": call.name, "arguments": call.arguments} for call in found]
    try:
        plain = [_plain_call(call) for call in calls]
    except (KeyError, TypeError, ValueError):
        return None
    called = [call["function"] for call in plain]
    return json.dumps(called[0] if len(called) == 1 else called, ensure_ascii=False), plain


def _listed(text: str) -> list[Any] | None:
    """Return the calls of a text that is a list of them in OpenAI's shape, alone or in an object; None if it is not."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = cast(dict[str, Any], said).get("tool_calls") if isinstance(said, dict) else said
    if not isinstance(calls, list) or not calls:
        return None
    listed = cast(list[Any], calls)
    is_openai = all(isinstance(c, dict) and isinstance(cast(dict[str, Any], c).get("function"), dict) for c in listed)
    return [call["function"] for call in listed] if is_openai else None


def _plain_call(function: dict[str, Any]) -> Message:
    arguments = function.get("arguments") or {}
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"type": "function", "function": {"name": str(function["name"]), "arguments": arguments}}


def without_values(text: str, arguments: dict[str, Any]) -> str:
    """Return the text with each value of an argument that it says replaced by the argument's name."""
    names: dict[str, str] = {}
    for name, value in arguments.items():
        values: Sequence[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
        spoken = [str(one).casefold() for one in values if isinstance(one, str | int | float) and str(one).strip()]
        names |= {one: re.sub(r"[\W_]+", " ", name).strip() for one in spoken}
    if not names:
        return text
    # Longer values first: a part of one may be another.
    either = "|".join(re.escape(value) for value in sorted(names, key=lambda value: (-len(value), value)))
    return re.sub(rf"(?<!\w)(?:{either})(?!\w)", lambda found: names[found[0].casefold()], text, flags=re.IGNORECASE)


def spelling(text: str) -> str:
    """Return a text as it is compared: no capitals, single blanks."""
    return " ".join(text.casefold().split())
