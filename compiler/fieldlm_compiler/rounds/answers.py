"""Whose answers are right: the runtime's own engine answers held-out questions as a device would, greedily."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile, profile_sha256
from fieldlm.inference.chat_template import Message
from fieldlm.inference.generations import load_adapters
from fieldlm.inference.router import task_adapter_of
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.evaluate import same_json
from fieldlm_compiler.learn.shapes import spoken
from fieldlm_compiler.pipeline.child import call
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify.exam import Exam, exam_facts, exam_prompt
from fieldlm_compiler.verify.served import open_served

ADAPTER = "adapter"


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
        **exam_facts(bundle),
    }
    _, made = stages.run(
        "answers", inputs, lambda _: call(answer_all, what=what)(bundle.folder, profile, list(questions))
    )
    return made.value


def answer_all(bundle: Path, profile: Profile, questions: list[HeldOutQuestion]) -> list[bool]:
    """Answer every question. Runs in a child process."""
    opened = open_bundle(bundle)
    engine = open_served(opened, profile)
    loaded = load_adapters(engine, opened, ADAPTER)
    first = next(iter(loaded.values()), None)
    exam = Exam(opened, engine)
    right: list[bool] = []
    for question in questions:
        try:
            prompt = exam_prompt(opened, question.messages, question.tools or None)
        except InputError:  # the template of this model takes no such conversation
            right.append(False)
            continue
        # Of several, the one that the device's router would take.
        adapter = loaded.get(task_adapter_of(opened, question.messages), first)
        most = len(engine.tokenize(question.answer))
        heard = exam.answer(prompt, engine.tokenize(prompt), most, adapter=adapter)
        right.append(heard is not None and is_right(heard.text, question))
    engine.close()
    return right


def is_right(answer: str, question: HeldOutQuestion) -> bool:
    """Say whether `answer`, without what was thought before it, is equal to the right one as JSON, or as text."""
    said = spoken(answer, question.tools)
    return same_json(said[0] if said else answer, question.answer)
