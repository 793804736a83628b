"""What an answer does: which function it calls with which arguments; and requests with names for arguments' values.

"play {music_genre} in the {house_place}" is nearer to other requests of its kind than "play some jazz in the attic".
"""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from fieldlm.inference.tool_calls import CLOSE, OPEN

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
