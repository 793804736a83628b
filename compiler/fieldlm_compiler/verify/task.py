"""Task score (exact match) as a user would get it: the runtime's own engine answers, greedily, and says how surely."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.errors import GateError
from fieldlm.engines import Sampling
from fieldlm.formats.bundle import Bundle, Gate
from fieldlm.formats.profile import Profile
from fieldlm.inference.confidence import SIGNALS
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.verify.confidence import TaskAnswer, signals_of
from fieldlm_compiler.verify.corpus import TaskExample
from fieldlm_compiler.verify.divergence import Mean
from fieldlm_compiler.verify.limits import MIN_TASK, Limits
from fieldlm_compiler.verify.served import open_served

SPARE_TOKENS = 16


def answer_task(
    draft: Bundle, examples: Sequence[TaskExample], profile: Profile, *, what: str, adapter: Path | None = None
) -> Ran:
    """Return for each of `examples` the `TaskAnswer`, as builtins, of the artefact in `draft` with `adapter`."""
    return call(answer_all, what=what)(
        bundle=draft,
        profile=profile,
        adapter=adapter,
        examples=[
            (example.prompt_tokens, len(example.answer_tokens), example.opening, example.answer) for example in examples
        ],
    )


def answer_all(
    bundle: Bundle, profile: Profile, adapter: Path | None, examples: list[tuple[Sequence[int], int, str, str]]
) -> list[dict[str, Any]]:
    """Answer every example; one whose prompt the served context does not hold is not right. Runs in a child process."""
    engine = open_served(bundle, profile)
    name = "adapter" if adapter is not None else None
    if adapter is not None:
        engine.load_adapter("adapter", adapter)
    given: list[TaskAnswer] = []
    for prompt, count, opening, wanted in examples:
        if len(prompt) >= engine.context:
            given.append(TaskAnswer(right=False, signals={}))
            continue
        # One at a time: which answers share a batch would depend on the moment, and near ties on the batch.
        answer = engine.start(prompt, Sampling(max_tokens=count + SPARE_TOKENS), adapter=name)
        right = is_same("".join(chunk.text for chunk in answer), wanted, opening)
        told = {name: signal(answer.timings) for name, signal in SIGNALS.items()}
        given.append(TaskAnswer(right=right, signals=signals_of(told)))
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
    except ValueError:
        return answer == wanted.strip()
    try:
        return json.loads(answer) == expected
    except ValueError:
        return False
