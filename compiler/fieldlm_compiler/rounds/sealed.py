"""The sealed split: what was held out stays held out, and what was trained on stays in training, from round to round.

`curate` splits by customer, for ever. A later round may still have the words of a held-out customer from another mouth:
people vote on a prompt, and another one may have the last word. Such an example stays with the customer it was held out
of, with the answer that people agree on now. Words that an accepted round was trained on are no exam any more, whoever
says them. All that a device says without a session is one customer's; where earlier rounds parted it answer by answer,
as older versions did, what was held out stays so, and the rest of that device is trained on. A part of the training
customers is kept to watch the training with, so that nothing is chosen by the exam.

Rehearsal: what the last accepted round was trained on stays in, as long as its words are in the store and nobody has
corrected them since, also where `curate` passes it over because somebody has too large a share of what there is now.
Without rehearsal a model forgets (catastrophic forgetting: M. McCloskey and N. Cohen, 1989).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.files import sha256_bytes
from fieldlm.inference.chat_template import as_served
from fieldlm_compiler.collect.sink import Sink
from fieldlm_compiler.learn.agreement import answer_key, prompt_key
from fieldlm_compiler.learn.curate import share_of
from fieldlm_compiler.learn.curated import CuratedExample, read_examples
from fieldlm_compiler.learn.quality.near_copies import parted
from fieldlm_compiler.learn.shapes import spoken
from fieldlm_compiler.rounds.state import FinishedRound, last_accepted

WATCH = 0.1
"""Share of the training customers that are kept to watch with."""
_ALIVE = """SELECT DISTINCT response, prompt FROM records
WHERE kind = 'generation' AND prompt <> '' AND list_contains($1, response)"""
_SAID = """SELECT g.prompt, f.correction FROM records g JOIN records f ON f.response = g.response
WHERE g.kind = 'generation' AND f.kind = 'feedback' AND f.correction <> '' AND list_contains($1, g.prompt)"""


@dataclass(frozen=True, kw_only=True)
class EarlierRounds:
    """What earlier rounds held out and trained on, by what was said, and the customers whose words those were."""

    held: dict[str, CuratedExample]
    trained: frozenset[str]
    rehearsed: list[CuratedExample]
    held_customers: frozenset[str] = frozenset()
    trained_customers: frozenset[str] = frozenset()
    taught_devices: frozenset[str] = frozenset()
    """Devices that were trained on by what they gave no session for."""


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """The examples of a round, and how many were moved or left out, by why."""

    examples: list[CuratedExample]
    counts: dict[str, int]


def earlier(rounds: list[FinishedRound]) -> EarlierRounds:
    """Read what the rounds so far held out, and what the accepted ones were trained on."""
    held: dict[str, CuratedExample] = {}
    trained: set[str] = set()
    held_customers: set[str] = set()
    trained_customers: set[str] = set()
    taught: set[str] = set()
    last = last_accepted(rounds)
    rehearsed: list[CuratedExample] = []
    for each in rounds:
        examples = read_examples(each.examples)
        for example in examples:
            if example.split == "eval":
                held.setdefault(words(example), example)
                held_customers.add(example.customer)
        learned = [example for example in examples if example.split == "train"]
        taught.update(example.voter for example in learned if example.names_nobody)
        if each.is_accepted:
            trained.update(map(words, learned))
            trained_customers.update(example.customer for example in learned)
        if last and each.number == last.number:
            rehearsed = learned
    return EarlierRounds(
        held=held,
        trained=frozenset(trained - held.keys()),
        rehearsed=rehearsed,
        held_customers=frozenset(held_customers - taught),
        trained_customers=frozenset(trained_customers - held_customers),
        taught_devices=frozenset(taught),
    )


def seal(
    current: Sequence[CuratedExample],
    before: EarlierRounds,
    store: Sink,
    *,
    consents: Collection[str],
    system_prompt: str | None,
) -> Sealed:
    """Return what is trained on and what is held out of `current`, the examples that the store gives now.

    With `system_prompt`, conversations that have none get it: a device will answer them behind it.
    """
    counts: Counter[str] = Counter()
    alive = _alive(store, [example.response for example in (*before.held.values(), *before.rehearsed)])
    kept: list[CuratedExample] = []
    for example in (_as_taught(each, before) for each in current):
        said = words(example)
        old = before.held.get(said)
        # Held out by time, a customer would come over to training when the time moves on.
        is_held = example.split == "eval" or bool({example.customer, example.voter} & before.held_customers)
        if old is not None and old.response in alive:
            counts["held out before, stays so"] += example.response != old.response
            kept.append(_as_held_out(example, old))
        elif is_held and (said in before.trained or example.customer in before.trained_customers):
            counts["held out, but trained on before"] += 1
        elif is_held:
            counts["new words of who was held out before"] += example.split == "train"
            kept.append(msgspec.structs.replace(example, split="eval"))
        elif old is None:
            kept.append(example)
        else:
            counts["held out before, of somebody who is gone"] += 1
    now = {words(example) for example in current}
    missing = [e for e in before.rehearsed if words(e) not in now and e.response in alive and e.consent in consents]
    rehearsed = _undisputed(store, missing, alive)
    counts["rehearsed"] = len(rehearsed)
    served = [
        msgspec.structs.replace(example, messages=as_served(example.messages, system_prompt), task="")
        for example in [*kept, *rehearsed]
    ]
    kept_apart = parted(served)
    counts["near copies of what is held out"] = len(served) - len(kept_apart)
    return Sealed(examples=kept_apart, counts={why: count for why, count in counts.items() if count})


def _as_taught(example: CuratedExample, before: EarlierRounds) -> CuratedExample:
    """Return the example, to be trained on where it can judge nothing any more.

    That is one of a device without sessions that was trained on; or, of those that stand each for itself, one whose
    words were.
    """
    if example.is_alone:
        is_taught = words(example) in before.trained
    else:
        is_taught = example.names_nobody and example.voter in before.taught_devices
    return msgspec.structs.replace(example, split="train") if is_taught else example


def _as_held_out(example: CuratedExample, old: CuratedExample) -> CuratedExample:
    """Return the example as that of the customer whose words `old` were, without what another one's device answered."""
    made = msgspec.structs.replace(
        example,
        session=old.session,
        response=old.response,
        device=old.device,
        is_alone=old.is_alone,
        split="eval",
    )
    return made if example.response == old.response else msgspec.structs.replace(made, rejected="", rejected_calls=[])


def words(example: CuratedExample) -> str:
    """Return a digest of what is said in a conversation, whatever system prompt stands before it."""
    said = [
        (message.get("role"), prompt_key(str(message.get("content") or "")))
        for message in example.messages
        if message.get("role") not in ("system", "developer")
    ]
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()


def to_watch(example: CuratedExample) -> bool:
    """Say whether the customer of a training example is one to watch with, the same for ever."""
    return share_of(f"watch {example.customer}") < WATCH


def labelled(folder: Path) -> list[CuratedExample]:
    """Return the labelled examples in `folder` of the customers who are trained on, or watched."""
    return [each for each in read_examples(folder) if each.split == "train" and each.label_source != "none"]


def draw_watched(
    examples: Iterable[CuratedExample], groups: Iterable[Collection[str]], most: int
) -> list[CuratedExample]:
    """Return what customers to watch asked, of each of `groups` of tasks `most` in a draw that is always the same."""
    order = sorted(filter(to_watch, examples), key=lambda each: sha256_bytes(each.response.encode()))
    return [example for tasks in groups for example in [each for each in order if each.task in tasks][:most]]


def _alive(store: Sink, responses: Iterable[str]) -> dict[str, str]:
    """Return the prompt of each response that the store still has the words of."""
    asked = sorted(set(responses))
    return {row["response"]: row["prompt"] for row in store.query(_ALIVE, [asked])} if asked else {}


def _undisputed(store: Sink, examples: Sequence[CuratedExample], alive: dict[str, str]) -> list[CuratedExample]:
    """Return the examples whose prompts nobody in the store answers otherwise."""
    if not examples:
        return []
    rows: list[dict[str, Any]] = store.query(_SAID, [sorted({alive[example.response] for example in examples})])
    corrections: dict[str, set[str]] = {}
    for row in rows:
        corrections.setdefault(row["prompt"], set()).add(row["correction"])
    return [
        example
        for example in examples
        if {_key(said, example) for said in corrections.get(alive[example.response], ())}
        <= {answer_key(example.answer)}
    ]


def _key(correction: str, example: CuratedExample) -> str:
    said = spoken(correction, example.tools)
    return answer_key(said[0] if said else correction)
