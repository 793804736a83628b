"""Stop strings end an answer, and doubts are about it: neither counts in the thought before."""

import numpy as np
import pytest

from fieldlm.engines import Sampling, Schedule, Timings
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.engines.request import Request, Words
from fieldlm.engines.stop_text import TextStream
from fieldlm.inference.thoughts.marks import KNOWN, ThoughtMarks
from fieldlm.inference.thoughts.thought_reader import ThoughtFirst
from tests.inference.test_thoughts import THINK, WRITTEN

STOP = 0
SURE, UNSURE = 8.0, 1.0


def written(pieces: list[str], stop: tuple[str, ...], thought: ThoughtFirst) -> str:
    """Return what is said of the text of `pieces`, a token each, until a stop string ends it."""
    stream, told = TextStream(stop, thought), ""
    for piece in pieces:
        text, is_over = stream.push(piece.encode())
        told += text
        if is_over:
            return told
    return told + stream.finish()


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("stop", ["a", "e", "<", "\n", "</", "ok"])
def test_a_stop_string_is_found_in_the_answer_alone_wherever_the_text_is_cut(name: str, stop: str) -> None:
    text, _, answer = WRITTEN[name]
    want = text.removesuffix(answer) + answer.partition(stop)[0]
    for cut in range(len(text)):
        assert written([text[:cut], text[cut:]], (stop,), ThoughtFirst(THINK)) == want, cut
    assert written([*text], (stop,), ThoughtFirst(THINK)) == want


@pytest.mark.parametrize("marks", KNOWN, ids=lambda marks: marks.opens)
def test_a_thought_that_the_prompt_began_is_not_stopped_either(marks: ThoughtMarks) -> None:
    for text in (f"no stop{marks.closes}\n\nyes, stop here", f"né{marks.closes}stop"):
        want = text[: text.rindex("stop")]
        for pieces in ([text], [*text]):
            assert written(pieces, ("stop", "\n"), ThoughtFirst(marks, is_open=True)) == want
    assert written(["so", " on\n"], ("on", "\n"), ThoughtFirst(marks, is_open=True)) == "so on\n"


def test_without_stop_strings_nothing_of_a_thought_is_held_back() -> None:
    stream = TextStream((), ThoughtFirst(THINK))
    assert stream.push(b"<think>I") == ("<think>I", False)
    assert stream.push(b" am</") == (" am</", False)
    assert stream.push(b"think>") == ("think>", False)
    assert stream.push(b"\n\nYes") == ("\n\nYes", False)
    assert stream.part == "answer"


Steps = list[tuple[str, float]]
# What is said token by token, how sure each is, and how many are of the answer; what ends it says nothing.
THOUGHT: Steps = [("<think>", UNSURE), ("hm", UNSURE), ("</think>", UNSURE)]
ENDED: Steps = [("", SURE)]
WEIGHED: dict[str, tuple[Steps, bool, int]] = {
    "a thought first": ([*THOUGHT, ("\n\n", UNSURE), (" ", UNSURE), ("Yes", SURE), *ENDED], False, 2),
    "space before an answer without one": ([("\n\n", SURE), ("Yes", SURE), *ENDED], False, 3),
    "two": ([*THOUGHT, ("\n", UNSURE), *THOUGHT, ("Yes", SURE), *ENDED], False, 2),
    "marks in pieces": (
        [("<", UNSURE), ("think>", UNSURE), ("a</th", UNSURE), ("ink>", UNSURE), ("Yes", SURE), *ENDED], False, 2,
    ),
    "begun in the prompt": ([("hm", UNSURE), ("</think>", UNSURE), ("Yes", SURE), *ENDED], True, 2),
    "ended within a token": ([*THOUGHT[:2], ("</think>Yes", UNSURE), (" it is", SURE), *ENDED], False, 2),
    "no mark after all": ([("<", SURE), ("thing>", SURE), *ENDED], False, 3),
    "cut before that is known": ([("<", SURE)], False, 1),
    "nothing behind it": ([*THOUGHT, *ENDED], False, 1),
    "no thought": ([("Yes", SURE), *ENDED], False, 2),
}  # fmt: skip
NEVER_ENDED: dict[str, tuple[Steps, bool]] = {
    "cut in it": (THOUGHT[:2], False),
    "ended in it": ([*THOUGHT[:2], ("", UNSURE)], False),
    "begun in the prompt": ([("hm", UNSURE)], True),
}


def weighed(steps: Steps, *, is_open: bool) -> Timings:
    """Return the timings of an answer that says `steps`, "" ending it, and is cut where that does not come."""
    sampling = Sampling(
        said=tuple((number, text) for number, (text, _) in enumerate(steps, 1) if text),
        preamble=ThoughtFirst(THINK, is_open=is_open),
    )
    answer = AnswerStream(prompt_tokens=1, wake=lambda: None)
    words = Words(lambda _: b"?", frozenset({STOP}))
    asked = Request(answer, [9], sampling, Schedule(), words=words, context=100)
    asked.prepare()
    asked.begin(0)
    for number, (text, height) in enumerate(steps, 1):
        logits = np.zeros(32, np.float32)
        logits[number if text else STOP] = height
        if not (asked.advance(logits) and asked.hand_over()):
            break
    asked.end("length")
    return answer.timings


@pytest.mark.parametrize("name", WEIGHED)
def test_how_sure_a_model_is_says_its_answer_and_not_its_thought(name: str) -> None:
    steps, is_open, count = WEIGHED[name]
    timings = weighed(steps, is_open=is_open)
    assert timings.completion_tokens == len([text for text, _ in steps if text])
    assert timings.free_tokens == count
    assert (timings.margin, timings.min_margin) == (SURE, SURE)
    assert timings.min_logprob == pytest.approx(timings.mean_logprob)


@pytest.mark.parametrize("name", NEVER_ENDED)
def test_of_a_thought_without_an_answer_nothing_is_said(name: str) -> None:
    steps, is_open = NEVER_ENDED[name]
    timings = weighed(steps, is_open=is_open)
    assert (timings.free_tokens, timings.margin) == (0, 0.0)
    assert (timings.min_margin, timings.min_logprob, timings.mean_logprob) == (None, None, None)
