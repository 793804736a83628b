"""An exam judges answers: a model that thinks is asked without a thought, or has room for one before it answers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile, load_profile
from fieldlm.inference.chat_template import ChatTemplate, render
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.rounds.answers import HeldOutQuestion
from fieldlm_compiler.rounds.answers import answer_all as answer_round
from fieldlm_compiler.verify import exam
from fieldlm_compiler.verify.corpus import Message, read_task
from fieldlm_compiler.verify.exam import SPARE_TOKENS, Exam, Heard, exam_facts, exam_prompt
from fieldlm_compiler.verify.served import open_served
from fieldlm_compiler.verify.task import AskedExample, answer_all
from tests.inference.test_thoughts import OPENED, QWEN3, template
from tests.support import material

ASKED: list[Message] = [{"role": "user", "content": "What is the sea?"}]
CONTEXT = 384
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "<|im_start|>system\n{{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
"""As SmolLM3's: what is told to the switch stands in the prompt, and in no answer of the past."""


@pytest.fixture(scope="module")
def profile() -> Profile:
    found = load_profile("generic-x86-64")
    gguf = msgspec.structs.replace(found.gguf, context=CONTEXT)
    return msgspec.structs.replace(found, gguf=gguf, runtime=msgspec.structs.replace(found.runtime, parallel=1))


@pytest.fixture(scope="module")
def dreamer(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose prompt begins a thought, which its own words never end."""
    return material.tiny_bundle(tmp_path_factory.mktemp("dreamer"), template=OPENED)


def heard(bundle: Bundle, profile: Profile, *, most: int) -> Heard | None:
    engine = open_served(bundle, profile)
    try:
        prompt = exam_prompt(bundle, ASKED)
        return Exam(bundle, engine).answer(prompt, engine.tokenize(prompt), most)
    finally:
        engine.close()


def test_a_model_with_a_switch_is_asked_without_a_thought(
    tmp_path: Path, base_bundle: Bundle, dreamer: Bundle, profile: Profile
) -> None:
    qwen = material.tiny_bundle(tmp_path / "qwen", template=QWEN3)
    assert exam_prompt(qwen, ASKED).endswith("assistant\n<think>\n\n</think>\n\n")
    assert exam_prompt(dreamer, ASKED) == render(dreamer, ASKED)
    assert exam_prompt(dreamer, ASKED).endswith("<think>\n")
    assert exam_prompt(base_bundle, ASKED) == render(base_bundle, ASKED)
    facts = [exam_facts(bundle) for bundle in (qwen, dreamer, base_bundle)]
    assert facts == [{"thinks": False}, {"thought_tokens": exam.THOUGHT_TOKENS}, {}]
    found = heard(qwen, profile, most=4)
    assert found is not None
    assert 0 < found.timings.completion_tokens <= 4 + SPARE_TOKENS


def test_a_thought_that_cannot_be_switched_off_has_room_and_ends(
    dreamer: Bundle, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exam, "THOUGHT_TOKENS", 48)
    found = heard(dreamer, profile, most=4)
    assert found is not None
    assert found.text.strip()
    assert "think>" not in found.text
    assert found.timings.completion_tokens > 2 * (4 + SPARE_TOKENS), "it thought before"
    assert found.timings.free_tokens <= 4 + SPARE_TOKENS + 1


def test_where_the_context_has_no_room_the_thought_is_short(dreamer: Bundle, profile: Profile) -> None:
    engine = open_served(dreamer, profile)
    prompt = exam_prompt(dreamer, [{"role": "user", "content": "sea " * (CONTEXT - 60)}])
    tokens = engine.tokenize(prompt)
    assert CONTEXT - 50 < len(tokens) < CONTEXT - 30
    found = Exam(dreamer, engine).answer(prompt, tokens, 1)
    assert found is not None
    assert found.text.strip()
    assert Exam(dreamer, engine).answer(prompt + prompt, tokens + tokens, 1) is None
    engine.close()


def test_a_round_and_a_task_count_what_was_answered_behind_a_thought(
    dreamer: Bundle, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exam, "THOUGHT_TOKENS", 24)
    monkeypatch.setattr(exam, "SPARE_TOKENS", 0)
    prompt = exam_prompt(dreamer, ASKED)
    engine = open_served(dreamer, profile)
    tokens, length = engine.tokenize(prompt), engine.tokenize
    # It never stops by itself: an answer that is cut where its text is cut alike. Each is asked of a new engine, as
    # what one remembers of a prompt rounds otherwise.
    found = (heard(dreamer, profile, most=most) for most in range(8, 24))
    most, said = next((len(length(each.text)), each.text) for each in found if each and is_cut_alike(each, length))
    engine.close()
    asked = [HeldOutQuestion(messages=ASKED, answer=answer) for answer in (said, "no")]
    assert answer_round(dreamer.folder, profile, asked) == [True, False]
    answers = answer_all(
        dreamer, profile, None, [AskedExample(prompt, tokens, most, "", each.answer) for each in asked]
    )
    assert [each["right"] for each in answers] == [True, False]
    assert answers[0]["signals"]["min_logprob"] < 0


def is_cut_alike(found: Heard, tokenize: Callable[[str], list[int]]) -> bool:
    return len(tokenize(found.text)) == found.timings.free_tokens


def writer(source: str) -> ChatTemplate:
    return template(source, "<|im_end|>")


@pytest.mark.parametrize("source", [QWEN3, SMOLLM3])
def test_the_right_answer_stands_behind_the_prompt_that_is_asked(source: str, tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    said: Message = {"role": "assistant", "content": '{"b": 1}'}
    path.write_text(json.dumps({"messages": [*ASKED, said]}) + "\n")

    def ask(messages: Sequence[Message]) -> str:
        return writer(source).render(messages, thinks=False)

    (example,) = read_task(path, tiny, writer(source).render, [2], ask=ask)
    (plain,) = read_task(path, tiny, writer(source).render, [2])
    assert example.prompt == ask(ASKED)
    assert example.opening == ""
    from tokenizers import Tokenizer

    reader = Tokenizer.from_file(str(tiny.folder / "tokenizer.json"))
    told: str = reader.decode(example.answer_tokens, skip_special_tokens=False)
    assert told.startswith('{"b": 1}<|im_end|>')
    assert plain.prompt == writer(source).render(ASKED)
