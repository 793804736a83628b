"""Task score (exact match) as a user would get it: the runtime's own engine answers, greedily, and says how surely."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fieldlm.core.errors import GateError
from fieldlm.formats.bundle import Bundle, Gate
from fieldlm.formats.profile import Profile
from fieldlm.inference.confidence import signals
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.verify.confidence import TaskAnswer, signals_of
from fieldlm_compiler.verify.corpus import TaskExample
from fieldlm_compiler.verify.divergence import Mean
from fieldlm_compiler.verify.exam import Exam
from fieldlm_compiler.verify.limits import MIN_TASK, Limits
from fieldlm_compiler.verify.served import open_served


class AskedExample(NamedTuple):
    """What of a `TaskExample` is needed to ask it: the prompt and its tokens, and the right answer with its length."""

    prompt: str
    tokens: Sequence[int]
    most: int
    opening: str
    answer: str

    @classmethod
    def of(cls, example: TaskExample) -> "AskedExample":
        most = len(example.answer_tokens)
        return cls(example.prompt, example.prompt_tokens, most, example.opening, example.answer)


def answer_task(
    draft: Bundle, examples: Sequence[TaskExample], profile: Profile, *, what: str, adapter: Path | None = None
) -> Ran:
    """Return for each of `examples` the `TaskAnswer`, as builtins, of the artefact in `draft` with `adapter`."""
    return call(answer_all, what=what)(
        bundle=draft,
        profile=profile,
        adapter=adapter,
        examples=[AskedExample.of(example) for example in examples],
    )


def answer_all(
    bundle: Bundle, profile: Profile, adapter: Path | None, examples: list[AskedExample]
) -> list[dict[str, Any]]:
    """Answer every example; one whose prompt the served context does not hold is not right. Runs in a child process."""
    engine = open_served(bundle, profile)
    name = "adapter" if adapter is not None else None
    if adapter is not None:
        engine.load_adapter("adapter", adapter)
    exam = Exam(bundle, engine)
    given: list[TaskAnswer] = []
    for asked in examples:
        heard = exam.answer(asked.prompt, asked.tokens, asked.most, adapter=name)
        if heard is None:
            given.append(TaskAnswer(right=False, signals={}))
            continue
        right = is_same(heard.text, asked.answer, asked.opening)
        given.append(TaskAnswer(right=right, signals=signals_of(signals(heard.timings))))
    engine.close()
    return msgspec.to_builtins(given)


def task_gate(name: str, kept: Mean | None, limits: Limits) -> Gate:
    """Return the gate of a task: the share of full weights' right answers that stay right, with its interval.

    Raises GateError where full weights have none right: then there is nothing to keep.
    """
    if kept is None:
        raise GateError("full weights answer none of the task right: it needs a model that was tuned for it")
    value, least = round(kept.value, 4), limits.min_task or MIN_TASK
    return Gate(
        name=name,
        value=value,
        limit=least,
        passed=value >= least,
        unit="of full weights",
        low=round(kept.low, 4),
        high=round(kept.high, 4),
        count=kept.count,
    )


def is_same(answer: str, wanted: str, opening: str = "") -> bool:
    """Say whether two answers are equal as JSON, or as text where the right one is no JSON.

    `opening` is what the template puts before an answer; one that a model says itself is no part of it.
    """
    answer = answer.strip().removeprefix(opening.strip()).strip()
    try:
        expected = json.loads(wanted)
    except (ValueError, RecursionError):
        return answer == wanted.strip()
    try:
        return json.loads(answer) == expected
    except (ValueError, RecursionError):
        return False
