"""Which tasks have answers from a closed set, and a classifier fitted to their examples.

A task is closed where few answers make up nearly all of its examples, and each of them came from several customers: a
label, or one function whose arguments are few. What else is asked, and every rare answer, is one more class.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fieldlm.core.errors import InputError
from fieldlm.core.wording import counted
from fieldlm.formats.classifier import (
    SYSTEM,
    Classifier,
    ClassifierFacts,
    ClosedAnswer,
    ClosedCall,
    context_key,
    head_of,
    only_question,
)
from fieldlm.formats.confidence import Confidence
from fieldlm.inference.chat_template import Message, as_served
from fieldlm_compiler.learn.agreement import answer_key
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.router import FittedHead, drawn, fit_head, softmax

COVERED = 0.9
"""Least share of a task's examples that the answers of its closed set make up."""
LEAST_EXAMPLES = 16
"""Of a task."""
LEAST_OF_ANSWER, LEAST_CUSTOMERS = 3, 2
"""Examples of an answer, and customers who gave it: what one alone said does not travel in a bundle.

Who names no session is not told from others of that device: all of them count as one (`CuratedExample.voter`).
"""
MOST_ANSWERS = 64
"""Of a task."""
MOST_CONTEXTS = 64
LEAST_CHANCE = 1e-12
_HIDDEN = re.compile(r"<[A-Z]+(?:_\d+)?>")
_Key = tuple[str, bool, str]


@dataclass(frozen=True, kw_only=True)
class ClosedTask:
    """A task with its answers, the most frequent one first, and how many examples it has."""

    id: str
    answers: tuple[ClosedAnswer, ...]
    examples: int


@dataclass(frozen=True, kw_only=True)
class OpenTask:
    """A task that no classifier can answer, and why."""

    id: str
    why: str


@dataclass(frozen=True, kw_only=True)
class FittedClassifier:
    """A classifier without its calibration, and what that is made on.

    `left_out` holds, for each example that was taken for one of the answers while its customer was left out, the log
    probability of that and whether it was right.
    """

    head: FittedHead
    answers: tuple[ClosedAnswer, ...]
    contexts: tuple[str, ...]
    left_out: tuple[tuple[float, bool], ...]

    def calibrated(self, confidence: Confidence, least: float) -> Classifier:
        """Return the classifier that answers where it is right with probability `least` or more."""
        facts = ClassifierFacts(answers=self.answers, contexts=self.contexts, least=least, confidence=confidence)
        return Classifier(facts=facts, head=head_of(self.head.weights, self.head.scales, self.head.biases))


def closed_tasks(examples: Iterable[CuratedExample], tasks: Iterable[str]) -> list[ClosedTask | OpenTask]:
    """Return what there is to say of each of `tasks`, by `examples` with their labels."""
    of: defaultdict[str, list[CuratedExample]] = defaultdict(list)
    for example in examples:
        of[example.task].append(example)
    return [_looked_at(task, of[task]) for task in tasks]


def as_heard(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """Return a recorded conversation as a device hears it whose bundle has `system_prompt`, or none of its own.

    Where a device told it redacted, the bundle's own prompt was, too, and stands for itself here.
    """
    heard = as_served([dict(message) for message in messages], system_prompt)
    systems = _systems(heard)
    if not system_prompt or systems == [system_prompt] or systems != [_redacted(system_prompt)]:
        return heard
    return [each | {"content": system_prompt} if each.get("role") in SYSTEM else each for each in heard]


def fit_classifier(
    examples: Sequence[CuratedExample], closed: Sequence[ClosedTask], *, system_prompt: str | None = None
) -> FittedClassifier:
    """Return the classifier of the `closed` tasks, fitted to all of `examples`, for a bundle with `system_prompt`.

    Raises InputError where there is nothing to tell apart, or where it would say nothing on a device.
    """
    answers = tuple(answer for task in closed for answer in task.answers)
    places = {_key_of(answer): place for place, answer in enumerate(answers)}
    asked = [each for each in examples if only_question(each.messages)]
    asked = [asked[row] for row in drawn(range(len(asked)))]
    classes = [places.get(_key(each), len(answers)) for each in asked]
    if len(set(classes)) < 2:
        raise InputError("there is one answer to everything, or no question; a classifier has nothing to tell apart")
    head = fit_head(
        [each.utterance for each in asked], classes, len(answers) + 1, groups=[each.voter for each in asked]
    )
    chances = softmax(head.left_out)
    left_out: list[tuple[float, bool]] = []
    for example, best, chance in zip(asked, chances.argmax(axis=1).tolist(), chances.max(axis=1).tolist(), strict=True):
        if best < len(answers):
            is_right = _key_of(answers[best])[1:] == _key(example)[1:]
            left_out.append((float(np.log(max(chance, LEAST_CHANCE))), is_right))
    own = {task.id for task in closed}
    contexts = _contexts([each for each in asked if each.task in own], system_prompt)
    return FittedClassifier(head=head, answers=answers, contexts=contexts, left_out=tuple(left_out))


def _contexts(asked: Sequence[CuratedExample], system_prompt: str | None) -> tuple[str, ...]:
    """Return digests of what stands around `asked` on a device, sorted; raises InputError where it is something else.

    Another prompt with something hidden is one that no device has: its digest would let nothing through.
    """
    behind: defaultdict[bool, Counter[str]] = defaultdict(Counter)
    for each in asked:
        heard = as_heard(each.messages, system_prompt)
        is_own = _systems(heard) == ([system_prompt] if system_prompt else [])
        if is_own or not any(map(_HIDDEN.search, _systems(heard))):
            behind[is_own][context_key(heard, each.tools)] += 1
    often = (behind[True] + behind[False]).most_common(MOST_CONTEXTS)
    taken = {context for context, count in often if count >= LEAST_OF_ANSWER}
    if system_prompt and not taken & behind[True].keys():
        raise InputError("its examples have other system prompts than the bundle's own, behind which it says nothing")
    if not taken:
        raise InputError("no system prompt of its examples is known as devices have it: each is redacted, or is rare")
    return tuple(sorted(taken))


def _systems(messages: Sequence[Message]) -> list[str]:
    return [str(each.get("content") or "") for each in messages if each.get("role") in SYSTEM]


@lru_cache(maxsize=4)
def _redacted(system_prompt: str) -> str:
    """Return a system prompt as a device in mode "redacted" records it."""
    from fieldlm.telemetry.redaction.redact import redact

    return redact(system_prompt)


def _looked_at(task: str, examples: Sequence[CuratedExample]) -> ClosedTask | OpenTask:
    count = len(examples)
    if count < LEAST_EXAMPLES:
        return OpenTask(id=task, why=f"{counted(count, 'example')} to learn from, want {LEAST_EXAMPLES}")
    asked = [each for each in examples if only_question(each.messages)]
    if len(asked) < COVERED * count:
        return OpenTask(id=task, why=f"{count - len(asked)} of {count} examples have turns before the question")
    said: defaultdict[_Key, list[CuratedExample]] = defaultdict(list)
    for each in asked:
        if all(isinstance(call["function"]["arguments"], dict) for call in each.tool_calls):
            said[_key(each)].append(each)
    often = [
        those
        for those in said.values()
        if len(those) >= LEAST_OF_ANSWER and len({each.voter for each in those}) >= LEAST_CUSTOMERS
    ]
    often.sort(key=lambda those: (-len(those), _key(those[0])))
    covered = sum(map(len, often))
    if covered < COVERED * count or len(often) > MOST_ANSWERS:
        return OpenTask(
            id=task,
            why=f"its answers are open: {counted(len(said), 'answer')} in {count} examples, and those that several "
            f"customers gave make up {covered / count:.0%} of them",
        )
    return ClosedTask(id=task, answers=tuple(_answer(those) for those in often), examples=count)


def _answer(said: Sequence[CuratedExample]) -> ClosedAnswer:
    """Return what all of `said` answer, spelt as most of them do."""
    spelt = Counter(each.answer for each in said).most_common()
    usual = min(spelt, key=lambda pair: (-pair[1], pair[0]))[0]
    example = next(each for each in said if each.answer == usual)
    if not example.tool_calls:
        return ClosedAnswer(task=example.task, text=usual)
    return ClosedAnswer(task=example.task, calls=tuple(_call(call) for call in example.tool_calls))


def _call(call: Mapping[str, Any]) -> ClosedCall:
    function: dict[str, Any] = call["function"]
    return ClosedCall(name=function["name"], arguments=function["arguments"])


def _key(example: CuratedExample) -> _Key:
    """Return what examples of one task have in common that want the same answer."""
    return example.task, bool(example.tool_calls), answer_key(example.answer)


def _key_of(answer: ClosedAnswer) -> _Key:
    if not answer.calls:
        return answer.task, False, answer_key(answer.text)
    calls = [{"name": call.name, "arguments": call.arguments} for call in answer.calls]
    return answer.task, True, answer_key(json.dumps(calls[0] if len(calls) == 1 else calls))
