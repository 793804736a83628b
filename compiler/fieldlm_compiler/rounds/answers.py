"""Whose answers are right: the runtime's own engine answers held-out questions as a device would, greedily."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile, profile_sha256
from fieldlm.inference.chat_template import Message
from fieldlm.inference.classifiers.closed_answers import classify, text_of
from fieldlm.inference.generations import load_adapters
from fieldlm.inference.router import task_adapter_of
from fieldlm_compiler.learn.classifier import as_heard
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
    _, made = stages.run(
        "answers",
        _inputs(bundle, questions, profile),
        lambda _: call(answer_all, what=what)(bundle.folder, profile, list(questions)),
    )
    return made.value


def answer_seconds(
    bundle: Bundle, questions: Sequence[HeldOutQuestion], profile: Profile, stages: Stages, *, what: str
) -> float:
    """Return how many seconds the bundle takes here to answer one of `questions`, without loading; kept in `stages`."""
    _, made = stages.run(
        "timed",
        _inputs(bundle, questions, profile),
        lambda _: call(time_all, what=what)(bundle.folder, profile, list(questions)),
    )
    return made.value


def _inputs(bundle: Bundle, questions: Sequence[HeldOutQuestion], profile: Profile) -> dict[str, object]:
    return {
        "bundle": bundle.id,
        "profile": profile_sha256(profile),
        "questions": sha256_bytes(canonical_json(list(questions))),
        **exam_facts(bundle),
    }


def answer_all(bundle: Path, profile: Profile, questions: list[HeldOutQuestion]) -> list[bool]:
    """Answer every question. Runs in a child process."""
    return [right for right, _ in _answered(bundle, profile, questions)]


def time_all(bundle: Path, profile: Profile, questions: list[HeldOutQuestion]) -> float:
    """Answer every question, and return the seconds that one takes. Runs in a child process."""
    took_s = [seconds for _, seconds in _answered(bundle, profile, questions)]
    return sum(took_s) / max(1, len(took_s))


def _answered(bundle: Path, profile: Profile, questions: Sequence[HeldOutQuestion]) -> Iterator[tuple[bool, float]]:
    """Yield for each question whether it was answered right, and in how many seconds."""
    opened = open_bundle(bundle)
    engine = open_served(opened, profile)
    loaded = load_adapters(engine, opened, ADAPTER)
    first = next(iter(loaded.values()), None)
    exam = Exam(opened, engine)
    asked = [as_heard(question.messages, opened.manifest.system_prompt) for question in questions]
    for question, said in zip(questions, asked, strict=True):
        began_s = time.monotonic()
        # As on a device: the classifier where the bundle has one that is sure, else the model, with the adapter of
        # several that the router would take.
        if (found := classify(opened, said, question.tools)) is not None:
            yield is_right(text_of(found.answer), question), time.monotonic() - began_s
            continue
        try:
            prompt = exam_prompt(opened, question.messages, question.tools or None)
        except InputError:  # the template of this model takes no such conversation
            yield False, time.monotonic() - began_s
            continue
        adapter = loaded.get(task_adapter_of(opened, question.messages), first)
        most = len(engine.tokenize(question.answer))
        heard = exam.answer(prompt, engine.tokenize(prompt), most, adapter=adapter)
        yield heard is not None and is_right(heard.text, question), time.monotonic() - began_s
    engine.close()


def is_right(answer: str, question: HeldOutQuestion) -> bool:
    """Say whether `answer`, without what was thought before it, is equal to the right one as JSON, or as text."""
    said = spoken(answer, question.tools)
    return same_json(said[0] if said else answer, question.answer)
