"""Chat-template tests: conversations that templates get wrong, and what transformers makes of them."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fieldlm.core.errors import InputError
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.chat_template import Message, render
from fieldlm_compiler.checkpoints.checkpoint import chat_template

TOOLS: list[Message] = [
    {
        "type": "function",
        "function": {
            "name": "turn_on",
            "description": "Turn a light on <b>now</b> & tell how bright it is.",
            "parameters": {
                "type": "object",
                "properties": {"room": {"type": "string", "enum": ["Küche", "hall"]}, "level": {"type": "number"}},
                "required": ["room"],
            },
        },
    }
]
_ASK: Message = {"role": "user", "content": "  Turn on the light in the “Küche”,\nplease! <|x|> 漢字 \n"}
_SAY: Message = {"role": "assistant", "content": "It is on."}
_RULES: Message = {"role": "system", "content": "Be brief & kind.\n\n- no 'quotes'\n"}
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "turn_on", "arguments": {"room": "Küche", "level": 0.5}},
        }
    ],
}
_RESULT: Message = {"role": "tool", "tool_call_id": "call00001", "name": "turn_on", "content": '{"ok": true, "W": 9}'}
# What is said, and with which tools at hand.
DIALOGUES: tuple[tuple[list[Message], list[Message] | None], ...] = (
    ([_ASK], None),
    ([_RULES, _ASK], None),
    ([_ASK, _SAY, _ASK], None),
    ([_RULES, _ASK, _SAY, _ASK, _SAY, _ASK], None),
    ([{"role": "user", "content": ""}], None),
    ([_ASK], TOOLS),
    ([_RULES, _ASK], TOOLS),
    ([_RULES, _ASK, _CALL, _RESULT], TOOLS),
    ([_ASK, _CALL, _RESULT, _SAY, _ASK], TOOLS),
)


def reference(folder: Path, messages: Sequence[Message], tools: Sequence[Message] | None) -> str | None:
    """Return the prompt that transformers makes with the tokenizer files in `folder`; None when they refuse."""
    return _render_with(_tokenizer(folder), chat_template(folder), messages, tools)


def difference(folder: Path, bundle: Bundle) -> tuple[int, str | None]:
    """Return how many dialogues `bundle` renders as transformers does, and one line about the first it does not.

    What a template refuses, the other side must refuse too. Dialogues with tools are left out where the template knows
    none: the runtime then spells them as text, which transformers does not.
    """
    template = chat_template(folder)
    if template is None:
        return 0, None
    tokenizer, system = _tokenizer(folder), bundle.manifest.system_prompt
    asked = [each for each in DIALOGUES if each[1] is None or "tools" in template]
    for messages, tools in asked:
        front = [{"role": "system", "content": system}] if system and messages[0]["role"] != "system" else []
        wanted = _render_with(tokenizer, template, [*front, *messages], tools)
        try:
            found = render(bundle, messages, tools=tools)
        except InputError:
            found = None
        if found != wanted:
            roles = ", ".join(message["role"] for message in messages)
            return 0, f"{roles}{' with tools' if tools else ''}: {_parting(wanted, found)}"
    return len(asked), None


def _tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def _render_with(
    tokenizer: Any, template: str | None, messages: Sequence[Message], tools: Sequence[Message] | None
) -> str | None:
    from jinja2 import TemplateError

    # A template may change what it is given; the other side must not see that.
    messages, tools = json.loads(json.dumps([messages, tools]))
    try:
        return tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError, LookupError):
        return None


def _parting(wanted: str | None, found: str | None) -> str:
    if wanted is None or found is None:
        return f"{'transformers' if wanted is None else 'this runtime'} refuses it, the other does not"
    pairs = itertools.zip_longest(wanted, found)
    at = next(place for place, (one, other) in enumerate(pairs) if one != other)
    return f"{wanted[at : at + 30]!r} by transformers and {found[at : at + 30]!r} by this runtime, at character {at}"
