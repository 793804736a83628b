"""The gate of a task says what it counted: answers that stayed right, interval and number, examples kept apart."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from fieldlm.core.errors import GateError
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.verify.corpus import FEWEST_APART, Message, TaskExample, apart_for_the_end, read_corpus
from fieldlm_compiler.verify.divergence import kept
from fieldlm_compiler.verify.limits import Limits
from fieldlm_compiler.verify.task import task_gate


def test_an_answer_that_became_right_makes_up_for_none_that_broke() -> None:
    pairs = [(True, True)] * 39 + [(True, False)] * 3 + [(False, True)] * 6
    gate = task_gate("task", kept(pairs), Limits(min_task=0.98))
    assert not gate.passed
    assert gate.value == pytest.approx(39 / 42, abs=1e-4)
    assert (gate.count, gate.low, gate.high) == (42, pytest.approx(0.81, abs=0.01), pytest.approx(0.975, abs=0.01))
    assert gate.doubt == "95 %: 0.81 to 0.975, n = 42"


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
    assert "16 examples are too few to keep some apart" in caplog.text


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
