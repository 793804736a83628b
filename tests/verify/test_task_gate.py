"""The gate of a task says what it counted: answers that stayed right, interval and number, examples kept apart."""

import json
import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fieldlm.core.errors import GateError
from fieldlm.formats.bundle import Gate
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.verify.corpus import FEWEST_APART, Message, TaskExample, apart_for_the_end, read_corpus, read_task
from fieldlm_compiler.verify.divergence import is_clear, kept
from fieldlm_compiler.verify.gates import report_file
from fieldlm_compiler.verify.limits import Limits
from fieldlm_compiler.verify.task import is_same, task_gate


def test_an_answer_that_became_right_makes_up_for_none_that_broke() -> None:
    pairs = [(True, True)] * 39 + [(True, False)] * 3 + [(False, True)] * 6
    gate = task_gate("task", kept(pairs), Limits(min_task=0.98))
    assert not gate.passed
    assert gate.value == pytest.approx(39 / 42, abs=1e-4)
    assert (gate.count, gate.low, gate.high) == (42, pytest.approx(0.81, abs=0.01), pytest.approx(0.975, abs=0.01))
    assert gate.doubt == "95 %: 0.81 to 0.975, n = 42"


def of(right: int, count: int, least: float = 0.98) -> Gate:
    return task_gate("task", kept([(True, at < right) for at in range(count)]), Limits(min_task=least))


def test_of_so_few_examples_that_they_cannot_tell_it_is_said_how_many_would() -> None:
    missed, passed = of(46, 48), of(48, 48)
    assert (missed.passed, passed.passed) == (False, True), "what decides is the share, as before"
    assert missed.doubt.endswith(", n = 48: too few to tell from 0.98, about 160 would")
    assert passed.doubt.endswith(", n = 48: too few to tell from 0.98, about 189 would")
    assert of(49, 50).doubt.endswith(": too few to tell from 0.98, and so is any number"), "the very limit"
    assert of(48, 48, 1.0).doubt.endswith(": too few to tell from 1, and so is any number")


@pytest.mark.parametrize(("right", "count"), [(19, 20), (10, 10), (95, 100)])
def test_as_many_as_are_said_to_tell_do(right: int, count: int) -> None:
    needed = of(right, count).needed
    assert needed is not None
    assert of(right, count).is_open == (count < needed)
    times = -(-needed // count)
    assert not of(right * times, count * times).is_open


def test_the_report_says_which_gates_so_few_examples_cannot_decide() -> None:
    told = json.loads(report_file([], [of(46, 48), of(90, 100)]))
    assert list(told["doubts"]) == ["task"]
    assert told["doubts"]["task"].endswith("about 160 would")
    assert "doubts" not in json.loads(report_file([], [of(90, 100)]))


def test_without_a_right_answer_there_is_nothing_to_keep() -> None:
    with pytest.raises(GateError, match="full weights answer none of the task right"):
        task_gate("task-served", kept([(False, True)] * 5), Limits())


def test_the_last_gate_sees_examples_that_no_mixture_was_chosen_by(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fieldlm")
    examples = [
        TaskExample(messages=[], answer=str(number), prompt_tokens=[1], answer_tokens=[2])
        for number in range(FEWEST_APART)
    ]
    searched, last = apart_for_the_end(examples)
    answers = [{example.answer for example in part} for part in (searched, last)]
    assert not answers[0] & answers[1]
    assert len(answers[0] | answers[1]) == FEWEST_APART
    assert not caplog.records
    assert apart_for_the_end(examples[:16]) == (examples[:16], examples[:16])
    assert "16 examples, too few to keep some apart" in caplog.text


def test_text_is_not_calibrated_on_what_the_task_asks(
    tiny: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said(messages: Sequence[Message]) -> str:
        return "".join(str(message["content"]) for message in messages)

    def row(number: int) -> list[Message]:
        return [{"role": "user", "content": f"{number} " * 200}, {"role": "assistant", "content": "x"}]

    caplog.set_level(logging.INFO, "fieldlm")
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"messages": row(number)}) + "\n" for number in range(20)))
    whole = read_corpus([path], tiny, said)
    fewer = read_corpus([path], tiny, said, without=[row(number)[:1] for number in range(10)])
    assert len(fewer.learn) + len(fewer.hold) < len(whole.learn) + len(whole.hold)
    assert "10 conversations of" in caplog.text


def test_lines_that_a_text_and_a_task_share_are_named(
    tiny: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fieldlm")
    question = "where does the lighthouse keeper sleep?"
    (tmp_path / "text.txt").write_text(f"{question}\n" + "\n".join(str(number) for number in range(2000)))
    asked: list[Message] = [{"role": "system", "content": "0123456789" * 3}, {"role": "user", "content": question}]
    read_corpus([tmp_path / "text.txt"], tiny, str, without=[asked])
    assert "have 1 line of" in caplog.text
    assert "'where does the lighthouse keeper sleep?'" in caplog.text


def test_what_is_measured_on_lies_in_blocks_and_not_between_what_was_learned_from(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(" ".join(f"{number:05}" for number in range(6000)))
    corpus = read_corpus([tmp_path / "text.txt"], tiny, str)
    order = sorted([*corpus.learn, *corpus.hold], key=lambda window: first_number(tiny, window))
    held = [window in corpus.hold for window in order]
    assert len(held) == 96
    assert sum(held) == 32
    assert sum(one is not other for one, other in pairwise(held)) == 3
    assert abs(order.index(corpus.hold[0]) - order.index(corpus.hold[1])) > 16


def first_number(checkpoint: Checkpoint, window: list[int]) -> int:
    from tokenizers import Tokenizer

    text: str = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")).decode(window)
    return int(next(word for word in text.split()[1:] if len(word) == 5))


def test_who_looks_after_every_window_is_wrong_no_more_often_than_promised() -> None:
    """The mean lies on the limit: whatever is called clear is an error."""
    drawn = np.random.default_rng(0).normal(1.0, 0.3, (2000, 32))
    wrong = [any(is_clear(row[:count].tolist(), 1.0) for count in range(1, 32)) for row in drawn]
    assert np.mean(wrong) < 0.01
    apart = [any(is_clear(row[:count].tolist(), 0.5) for count in range(1, 32)) for row in drawn[:200]]
    assert np.mean(apart) > 0.95


def test_what_the_template_writes_before_an_answer_is_no_part_of_it(tiny: Checkpoint, tmp_path: Path) -> None:
    """Qwen3's template puts an empty thought there, which a model tuned on it says, too."""

    def said(messages: Sequence[Message]) -> str:
        asked = "".join(f"<|im_start|>user\n{message['content']}<|im_end|>\n" for message in messages[:1])
        answer = "".join(f"<think>\n\n</think>\n\n{message['content']}<|im_end|>\n" for message in messages[1:])
        return f"{asked}<|im_start|>assistant\n{answer}"

    path = tmp_path / "task.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": '{"b": 1}'}]}
    path.write_text(json.dumps(row) + "\n")
    (example,) = read_task(path, tiny, said, [2])
    assert example.opening == "<think>\n\n</think>\n\n"
    assert is_same('<think>\n\n</think>\n\n{"b":1}', example.answer, example.opening)
    assert is_same('{"b": 1}', example.answer, example.opening)
    assert not is_same('<think>\n\n</think>\n\n{"b": 2}', example.answer, example.opening)
