"""The second pass: what a device redacted is redacted again at home, whose rules are newer than those in the field.

Then a learned finder (`name_finder`) looks for persons whom no form and no list has: names that nobody listed, in lower
case, last names alone. What it finds in a message is hidden in all of the record. Words of the system prompt and of the
tools name nobody: they are the bundle's own. A record that holds no sign of redaction (mode `full`) stays as its owner
wanted it.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

from fieldlm.telemetry.redaction.names import names_in
from fieldlm.telemetry.redaction.numbered import Numbered
from fieldlm.telemetry.redaction.redact import redact
from fieldlm.telemetry.redaction.seen import as_seen
from fieldlm_compiler.learn.redacted.name_features import tokens_of
from fieldlm_compiler.learn.redacted.name_finder import found_names

Names = Literal["learned", "listed"]
"""How names are looked for: by the learned finder as well, or by forms and lists alone."""
NAMES: tuple[Names, ...] = get_args(Names)
NAMES_HELP = "how names are looked for in what devices redacted: by a learned finder, too, or by forms and lists alone"
_PLACEHOLDER = re.compile(r"<[A-Z]{2,8}(?:_\d+)?>")
_PERSON = r"<NAME(?:_\d{1,9})?>"
_NEIGHBOURS = re.compile(rf"{_PERSON}(?: {_PERSON})+")
_TEXTS = ("prompt", "answer", "correction")


def again(row: dict[str, Any], *, names: Names = "learned") -> dict[str, Any]:
    """Return a joined row with its texts redacted once more, if a device has redacted it; else the row itself.

    With names "listed" the learned finder is not asked.
    """
    texts = {name: str(row.get(name) or "") for name in _TEXTS}
    if not row.get("redacted") and not any(map(_PLACEHOLDER.search, texts.values())):
        return row
    known = names_in("\n".join([*_said(texts["prompt"]), texts["answer"], texts["correction"]]))
    made = _cleaned(texts, known)
    if names == "learned" and (more := _learned(made, str(row.get("context") or ""))):
        made = _cleaned(texts, known | more)
    return row | made


def _cleaned(texts: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    put = Numbered.after(texts.values())

    def clean(text: str) -> str:
        return redact(text, names=names, put=put)

    made = {name: _in_messages(text, clean) if name == "prompt" else clean(text) for name, text in texts.items()}
    return _joined(made, frozenset(found for text in texts.values() for found in re.findall(_PERSON, text)))


def _joined(texts: Mapping[str, str], old: frozenset[str]) -> dict[str, str]:
    """Return texts in which a name found beside a placeholder of the device's is that person: "<NAME_1> Berg"."""
    whose: dict[str, str] = {}

    def one(found: re.Match[str]) -> str:
        people = found[0].split(" ")
        mine = [person for person in people if person in old]
        if not mine or len(mine) == len(people):
            return found[0]
        whose.update((person, mine[0]) for person in people if person not in old and person not in whose)
        return " ".join(mine)

    made = {name: _NEIGHBOURS.sub(one, text) for name, text in texts.items()}
    return {name: re.sub(_PERSON, lambda found: whose.get(found[0], found[0]), text) for name, text in made.items()}


def _learned(texts: Mapping[str, str], context: str) -> frozenset[str]:
    """Return the words, in folded case, by which the finder says that persons are named in what was said."""
    never = _words("\n".join([context, *_said(texts["prompt"], of="system")]))
    told = [*_said(texts["prompt"]), texts["answer"], texts["correction"]]
    spoken = (as_seen(text) for text in told if text[:1] not in ("{", "["))
    return frozenset(text[start:end].casefold() for text in spoken for start, end in found_names(text, never=never))


@functools.lru_cache(maxsize=64)
def _words(text: str) -> frozenset[str]:
    """Return the words of a text in folded case; the same few system prompts and tools stand around all records."""
    return frozenset(token.low for token in tokens_of(as_seen(text)))


def _said(prompt: str, *, of: str = "") -> list[str]:
    """Return what was said in a prompt, or by one role; a system prompt names nobody."""
    try:
        messages = json.loads(prompt)
    except (ValueError, RecursionError):
        return []
    found: list[dict[str, Any]] = messages if isinstance(messages, list) else []
    messages = [m for m in found if isinstance(cast(Any, m), dict)]
    return [str(m.get("content") or "") for m in messages if (m.get("role") == of if of else m.get("role") != "system")]


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
