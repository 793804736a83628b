"""Whose answers are right: the runtime's own engine answers held-out questions as a device would, greedily."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes
from fieldlm.engines import Sampling
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile, profile_sha256
from fieldlm.inference.chat_template import Message, render, thought_marks
from fieldlm.inference.generations import load_adapters
from fieldlm.inference.router import task_adapter_of
from fieldlm.inference.thoughts.marks import ThoughtMarks
from fieldlm.inference.thoughts.thought_reader import parted_thought
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.evaluate import same_json
from fieldlm_compiler.learn.shapes import spoken
from fieldlm_compiler.pipeline.child import call
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify.served import open_served

ADAPTER = "adapter"
SPARE_TOKENS = 16
"""Beyond the length of the right answer: one that goes on is wrong."""


class HeldOutQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, the tools at hand, and the right answer: text, or the JSON of calls."""

    messages: list[Message]
    answer: str
    tools: list[Message] = []


def questions_of(examples: Sequence[CuratedExample]) -> list[HeldOutQuestion]:
    return [HeldOutQuestion(messages=each.messages, answer=each.answer, tools=each.tools) for each in examples]


def examine(
    bundle: Bundle, questions: Sequence[HeldOutQuestion], profile: Profile, stages: Stages, *, what: str
) -> list[bool]:
    """Return for each question whether the bundle, with its adapters, answers it exactly right; kept in `stages`."""
    inputs = {
        "bundle": bundle.id,
        "profile": profile_sha256(profile),
        "questions": sha256_bytes(canonical_json(list(questions))),
    }
    _, made = stages.run(
        "answers", inputs, lambda _: call(answer_all, what=what)(bundle.folder, profile, list(questions))
    )
    return made.value


def answer_all(bundle: Path, profile: Profile, questions: list[HeldOutQuestion]) -> list[bool]:
    """Answer every question. Runs in a child process.

    One at a time: which answers share a batch would depend on the moment, and near ties on the batch.
    """
    opened = open_bundle(bundle)
    engine = open_served(opened, profile)
    loaded = load_adapters(engine, opened, ADAPTER)
    first = next(iter(loaded.values()), None)
    right: list[bool] = []
    for question in questions:
        try:
            prompt = engine.tokenize(render(opened, question.messages, tools=question.tools or None))
        except InputError:  # the template of this model takes no such conversation
            right.append(False)
            continue
        most = len(engine.tokenize(question.answer)) + SPARE_TOKENS
        if len(prompt) >= engine.context:
            right.append(False)
            continue
        # Of several, the one that the device's router would take.
        adapter = loaded.get(task_adapter_of(opened, question.messages), first)
        chunks = engine.start(prompt, Sampling(max_tokens=most), adapter=adapter)
        right.append(is_right("".join(chunk.text for chunk in chunks), question, thought_marks(opened)))
    engine.close()
    return right


def is_right(answer: str, question: HeldOutQuestion, marks: ThoughtMarks | None = None) -> bool:
    """Say whether `answer`, as the model said it, is equal to the right one as JSON, or as text.

    What a model thinks between `marks` before it is no part of it, as on a device: Qwen3 begins with an empty thought.
    """
    _, answer = parted_thought(answer, marks, "stop")
    said = spoken(answer, question.tools)
    return same_json(said[0] if said else answer, question.answer)
