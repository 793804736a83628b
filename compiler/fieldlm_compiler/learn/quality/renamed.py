"""Renamed functions: one name that was called until a time, and another that like requests call from then on.

A schema drifts while records come in: `play` becomes `play_music`, and a model that learns from both says either. Two
names are one function where the newer one's calls came after the older one's, where requests of the one have those of
the other among their nearest neighbours as often as their own, and where no request was offered both. The newer name
counts.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from fieldlm.inference.chat_template import Message
from fieldlm.inference.tool_calls import CLOSE, OPEN
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.quality.label_errors import Classes, Floats, by_neighbours
from fieldlm_compiler.learn.shapes import call_of

if TYPE_CHECKING:
    from fieldlm_compiler.learn.embed import Embedder

LEAST = 10
"""Calls of a name without which nothing is said of it."""
AFTER = 0.95
"""Chance that a call of the newer name came after one of the older name. Devices do not change on one day."""
ALIKE = 0.5
"""Of the share that a function's own requests have among the neighbours of its requests, by the size of both."""
USUAL = 0.2
"""Share of a function's calls that have an argument, from which on it belongs to the function."""
CHANCE = 1e-4
"""Chance of an argument's absence, by Fisher's exact test, below which it belongs to one of the functions alone."""
NO_CALLS = frozenset({"text", "object"})
_NAMES = ("name", "function", "tool", "intent")
_ARGUMENTS = ("arguments", "args", "parameters", "slots")


class Renaming(msgspec.Struct, frozen=True, kw_only=True):
    """Two names of one function."""

    old: str
    new: str
    examples: int
    """Calls by the old name."""
    likeness: float
    new_arguments: bool = False
    """Whether the newer function has other arguments: a call of the older one cannot be written as one of it."""


def renamings(examples: Sequence[CuratedExample], load: Callable[[], "Embedder"]) -> list[Renaming]:
    """Return the functions that were renamed while these examples came in, the commonest first.

    `load` gets what reads sentences, where some names' times say that they may be one function.
    """
    calls = [call_of(example.answer) for example in examples]
    counts = Counter(name for (name, _), example in zip(calls, examples, strict=True) if example.at_ms)
    names = sorted(name for name, count in counts.items() if count >= LEAST and name not in NO_CALLS)
    rows = [at for at, example in enumerate(examples) if example.at_ms and calls[at][0] in set(names)]
    if len(names) < 2:
        return []
    labels = np.array([names.index(calls[at][0]) for at in rows])
    after = _after(np.array([examples[at].at_ms for at in rows]), labels)
    if not (after >= AFTER).any():
        return []
    points = load()([examples[at].utterance for at in rows]).astype(np.float64)
    alike = _alike(points, labels, [examples[at].voter for at in rows])
    alike[(after < AFTER) | _offered_together(examples, names)] = 0.0
    found: list[Renaming] = []
    for old, new in np.argwhere(alike >= ALIKE).tolist():
        likeness = alike[old, new]
        if likeness < max(alike[old].max(), alike[:, new].max()):
            continue
        before, then = ([set(calls[at][1]) for at in rows if calls[at][0] == names[each]] for each in (old, new))
        found.append(
            Renaming(
                old=names[old], new=names[new], examples=counts[names[old]], likeness=round(float(likeness), 3),
                new_arguments=_has_new_arguments(before, then),
            )
        )  # fmt: skip
    return sorted(found, key=lambda each: (-each.examples, each.old))


def renamed(example: CuratedExample, found: Sequence[Renaming]) -> CuratedExample | None:
    """Return the example with the newest name of the function it calls, all through; None where it cannot have that."""
    new_name = {each.old: each.new for each in found}
    lost = {each.old for each in found if each.new_arguments}
    called = {call_of(example.answer)[0], *map(_called, example.tool_calls)}
    if not called & new_name.keys():
        return example
    if any(each in lost for name in called for each in _names_of(name, new_name)):
        return None
    rejected, rejected_calls = _rejected(example, new_name, lost)
    return msgspec.structs.replace(
        example,
        answer=_in_json(example.answer, new_name),
        tool_calls=_in_values(example.tool_calls, new_name),
        rejected=rejected,
        rejected_calls=rejected_calls,
        tools=_in_values(example.tools, new_name),
        messages=[_in_message(message, new_name) for message in example.messages],
    )


def _rejected(example: CuratedExample, new_name: Mapping[str, str], lost: Collection[str]) -> tuple[str, list[Message]]:
    """Return the rejected answer with newest names and its calls; nothing where it cannot have them."""
    called = {call_of(example.rejected)[0], *map(_called, example.rejected_calls)} & new_name.keys()
    if not called:
        return example.rejected, example.rejected_calls
    if any(each in lost for name in called for each in _names_of(name, new_name)):
        return "", []
    return _in_json(example.rejected, new_name), _in_values(example.rejected_calls, new_name)


def _after(at_ms: Classes, labels: Classes) -> Floats:
    """Return the chance that a call of [older, newer] came in that order."""
    times = [np.sort(at_ms[labels == each]) for each in range(labels.max() + 1)]
    found = np.zeros((len(times), len(times)))
    for old, before in enumerate(times):
        for new, then in enumerate(times):
            found[old, new] = np.searchsorted(before, then, side="left").mean() / len(before)
    return found


def _alike(points: Floats, labels: Classes, voters: Sequence[str]) -> Floats:
    """Return how far two functions' requests are each other's neighbours [functions, functions], 1 for one function."""
    shares = by_neighbours(points, labels, voters) / np.bincount(labels)
    among = np.array([shares[labels == each].mean(axis=0) for each in range(labels.max() + 1)])
    own = np.maximum(among.diagonal(), 1e-9)
    ratio = among / own[:, None]
    return np.minimum(ratio, ratio.T)


def _offered_together(examples: Sequence[CuratedExample], names: Sequence[str]) -> Any:
    """Say of which functions a request was offered both [functions, functions]: they are two."""
    together = np.zeros((len(names), len(names)), bool)
    for offered in {tuple(sorted(map(_called, example.tools))) for example in examples if example.tools}:
        known = [names.index(name) for name in offered if name in names]
        together[np.ix_(known, known)] = True
    return together


def _has_new_arguments(before: Sequence[set[str]], then: Sequence[set[str]]) -> bool:
    """Say whether calls by one name have an argument that those by the other next to never have, and not by chance."""
    from scipy.stats import hypergeom

    counts = [Counter(name for call in calls for name in call) for calls in (before, then)]
    sizes = [len(before), len(then)]
    for own, other in ((0, 1), (1, 0)):
        for name, count in counts[own].items():
            there = counts[other][name]
            is_rarer = count >= USUAL * sizes[own] and there / sizes[other] < count / sizes[own] / 4
            if is_rarer and hypergeom.cdf(there, sum(sizes), count + there, sizes[other]) < CHANCE:
                return True
    return False


def _called(call: Message) -> str:
    function = call.get("function")
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def _names_of(name: str, new_name: Mapping[str, str]) -> list[str]:
    """Return what a function was called from `name` on; times of names only ever go on."""
    names = [name]
    while names[-1] in new_name:
        names.append(new_name[names[-1]])
    return names


def _newest(name: str, new_name: Mapping[str, str]) -> str:
    return _names_of(name, new_name)[-1]


def _in_message(message: Message, new_name: Mapping[str, str]) -> Message:
    if message.get("role") == "system" and isinstance(message.get("content"), str):
        either = "|".join(re.escape(name) for name in new_name)
        said = re.sub(rf"(?<!\w)(?:{either})(?!\w)", lambda found: _newest(found[0], new_name), message["content"])
        return message | {"content": said}
    return _in_values(message, new_name) if message.get("tool_calls") or message.get("role") == "tool" else message


def _in_json(text: str, new_name: Mapping[str, str]) -> str:
    """Return a call with its function's newest name, spelt as it was otherwise; marks around it stay."""
    said = text.strip().removeprefix(OPEN).partition(CLOSE)[0].strip()
    before, _, after = text.partition(said)
    called = json.loads(said)
    plain, dense = json.dumps(called, ensure_ascii=False), (",", ":")
    separators = dense if said != plain and said == json.dumps(called, ensure_ascii=False, separators=dense) else None
    return before + json.dumps(_in_values(called, new_name), ensure_ascii=False, separators=separators) + after


def _in_values(value: Any, new_name: Mapping[str, str]) -> Any:
    """Return tools or calls with newest names; what they are called with stays as it is."""
    if isinstance(value, list):
        return [_in_values(each, new_name) for each in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    made: dict[str, Any] = {}
    for key, each in cast(dict[str, Any], value).items():
        if key in _NAMES and isinstance(each, str):
            made[key] = _newest(each, new_name)
        else:
            made[key] = each if key in _ARGUMENTS else _in_values(each, new_name)
    return made
