"""One answer's way through an engine, with logits made by hand: what is said when, and how it ends."""

import codecs
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fieldlm.core.errors import InputError
from fieldlm.engines import Chunk, Outcome, Priority, Sampling, Schedule
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.engines.request import Request, Words, check_terms
from fieldlm.engines.request_queue import DeadlineTimer, RequestQueue
from fieldlm.engines.sampling import CERTAIN, Floats
from tests.support.engines import OneOf

STOP = 0
WORDS = Words(lambda token: bytes([64 + token]), frozenset({STOP}))
SOON = Schedule(deadline_s=3600.0)


def nothing() -> None: ...


def request(sampling: Sampling, terms: Schedule | None = None, *, context: int = 100) -> Request:
    answer = AnswerStream(prompt_tokens=2, wake=nothing)
    return Request(answer, [9, 9], sampling, terms or Schedule(), words=WORDS, context=context)


def logits(best: int) -> Floats:
    values = np.zeros(16, np.float32)
    values[best] = 8.0
    return values


def run(asked: Request, best: Sequence[int]) -> list[Chunk]:
    """Hand over logits in which `best` is chosen, one after the other, until the answer ends."""
    if asked.prepare():
        asked.begin(0)
        for token in best:
            if not (asked.advance(logits(token)) and asked.hand_over()):
                break
    return list(asked.answer)


def said(chunks: Sequence[Chunk]) -> tuple[str, Outcome | None]:
    return "".join(chunk.text for chunk in chunks), chunks[-1].outcome


def test_an_answer_goes_on_until_a_stop_token() -> None:
    assert said(run(request(Sampling()), [1, 2, STOP])) == ("AB", "stop")


def test_what_every_sequence_begins_with_is_computed_with_the_prompt() -> None:
    asked = request(Sampling(constraint=OneOf(((3, 4, 5), (3, 4, 6)))))
    assert asked.prepare()
    assert asked.tokens == [9, 9, 3, 4]
    assert asked.prepare()
    assert asked.tokens == [9, 9, 3, 4]


def test_forced_tokens_come_in_one_piece_with_the_choice_that_forced_them() -> None:
    chunks = run(request(Sampling(constraint=OneOf(((3, 4, 5, 7, 8, 1), (3, 6, 5, 7, 8, 2))))), [6, 2])
    assert [chunk.tokens for chunk in chunks] == [(3, 6, 5, 7, 8, 2)]
    assert chunks[0].margins[0] == CERTAIN


def test_a_choice_between_forced_tokens_waits_for_their_logits() -> None:
    asked = request(Sampling(constraint=OneOf(((3, 1, 4, 5), (3, 2, 4, 5), (3, 2, 4, 6)))))
    chunks = run(asked, [2, 6])
    assert [chunk.tokens for chunk in chunks] == [(3, 2, 4), (6,)]
    assert [len(chunk.margins) for chunk in chunks] == [3, 1]
    assert said(chunks) == ("CBDF", "stop")


def test_the_mean_margin_is_that_of_the_tokens_that_were_chosen() -> None:
    asked = request(Sampling(constraint=OneOf(((3, 1, 4), (3, 2, 4)))))
    run(asked, [1])
    assert asked.answer.timings.margin == 8.0
    assert asked.answer.timings.completion_tokens == 3


def test_how_sure_an_answer_is_says_its_free_tokens_alone() -> None:
    asked = request(Sampling(constraint=OneOf(((3, 1, 4, 5, 7), (3, 2, 4, 5, 7), (3, 2, 4, 6, 7)))))
    assert asked.prepare()
    asked.begin(0)
    doubtful = logits(2)
    doubtful[1] = 7.0
    assert asked.advance(doubtful)
    assert not asked.advance(logits(6))
    timings = asked.answer.timings
    assert (timings.completion_tokens, timings.free_tokens, timings.forced_tokens) == (5, 2, 3)
    assert (timings.margin, timings.min_margin) == (4.5, 1.0)
    assert timings.min_logprob == pytest.approx(logprob_of(doubtful, 2), abs=1e-4)
    assert timings.mean_logprob == pytest.approx((logprob_of(doubtful, 2) + logprob_of(logits(6), 6)) / 2, abs=1e-4)


def test_the_log_probability_is_the_models_own_where_a_constraint_overrules_it() -> None:
    """What the model would have said instead is forbidden; that it would have is the sign that something is wrong."""
    asked = request(Sampling(constraint=OneOf(((1,), (2,)))))
    wish = logits(9)
    wish[1] = 4.0
    asked.prepare()
    asked.advance(wish)
    assert asked.answer.timings.min_margin == 4.0
    assert asked.answer.timings.min_logprob == pytest.approx(logprob_of(wish, 1), abs=1e-4)
    assert logprob_of(wish, 1) < -4


def test_where_everything_is_forced_there_is_no_free_token() -> None:
    asked = request(Sampling(constraint=OneOf(((3, 4, 5),))))
    run(asked, [1])
    timings = asked.answer.timings
    assert (timings.completion_tokens, timings.free_tokens, timings.margin) == (3, 0, 0.0)
    assert timings.forced_tokens == 3
    assert (timings.min_margin, timings.min_logprob, timings.mean_logprob) == (None, None, None)


def test_the_token_that_ends_an_answer_is_free_as_any_other() -> None:
    asked = request(Sampling())
    run(asked, [1, STOP])
    assert (asked.answer.timings.completion_tokens, asked.answer.timings.free_tokens) == (1, 2)


def logprob_of(values: Floats, token: int) -> float:
    return float(values[token]) - math.log(sum(math.exp(float(value)) for value in values))


def test_choices_are_there_for_every_token_when_asked_for() -> None:
    chunks = run(request(Sampling(logprobs=1, constraint=OneOf(((3, 1), (3, 2))))), [2])
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.token for choice in choices] == [3, 2]
    assert choices[0].logprob == 0.0 > choices[1].logprob
    assert not run(request(Sampling(max_tokens=1)), [1])[0].choices


@pytest.mark.parametrize(
    ("stop", "best", "text", "known"),
    [
        (("CD",), [1, 2, 3, 4], "AB", [1, 2]),
        (("CD",), [1, 3, 5, STOP], "ACE", [1, 3, 5]),
        (("CD",), [1, 3, STOP], "AC", [1, 3]),
        (("A",), [1], "", []),
        (("he end",), [11, 12], "T", [11]),
        (("nd",), [13, 14, 12], "😀 e", [13, 14, 12]),
        (("😀",), [1, 13, 14], "A", [1]),
        (("B",), [10, 1, 10, 2], "A", [10, 1, 10]),
        # A byte that is no UTF-8 is said as U+FFFD, which has three.
        (("CDE",), [15, 15, 15, 15, 6, 7, 3, 4, 5], "\ufffd" * 4 + "FG", [15, 15, 15, 15, 6, 7]),
        (("CD",), [13, 1, 3, 4], "\ufffdA", [13, 1]),  # the half of a character, and no other half
        (("A",), [13, 1], "\ufffd", [13]),
        (("\ufffd",), [1, 15, 2], "A", [1]),
        (("A",), [13, 13, 14, 1], "\ufffd😀", [13, 13, 14]),
        (("😀",), [13, 13, 14, 1], "\ufffd", [13]),
        (("C",), [13, 10, 14, 10, 3], "😀", [13, 10, 14, 10]),
    ],
)
def test_what_a_stop_string_takes_away_has_no_log_probability(
    stop: tuple[str, ...], best: list[int], text: str, known: list[int]
) -> None:
    pieces = {10: b"", 11: b"The", 12: b" end", 13: b"\xf0\x9f", 14: b"\x98\x80", 15: b"\xff"}
    words = Words(lambda token: pieces.get(token, bytes([64 + token])), frozenset({STOP}))
    answer = AnswerStream(prompt_tokens=2, wake=nothing)
    asked = Request(answer, [9, 9], Sampling(logprobs=0, stop=stop), Schedule(), words=words, context=100)
    chunks = run(asked, best)
    assert said(chunks)[0] == text
    assert [choice.token for chunk in chunks for choice in chunk.choices] == known
    # Who reads along has never more of them than words.
    for end in range(1, len(chunks)):
        begun = [choice.token for chunk in chunks[:end] for choice in chunk.choices]
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        assert "".join(chunk.text for chunk in chunks[:end]).startswith(decode(b"".join(map(words.piece, begun[:-1]))))


def test_max_tokens_and_stop_strings_hold_for_forced_tokens() -> None:
    forced = OneOf(((3, 4, 5, 6),))
    assert said(run(request(Sampling(max_tokens=3, constraint=forced)), [1])) == ("CDE", "length")
    assert said(run(request(Sampling(stop=("E",), constraint=forced)), [1])) == ("CD", "stop")


@pytest.mark.parametrize("stop", [(), ("stop",)])
def test_an_answer_that_is_cut_within_a_character_ends_before_it(stop: tuple[str, ...]) -> None:
    words = Words(lambda token: "A😀".encode()[token - 1 : token], frozenset({STOP}))

    def made(sampling: Sampling, terms: Schedule | None = None) -> Request:
        answer = AnswerStream(prompt_tokens=2, wake=nothing)
        return Request(answer, [9, 9], replace(sampling, stop=stop), terms or Schedule(), words=words, context=100)

    assert said(run(made(Sampling(max_tokens=3)), [1, 2, 3])) == ("A", "length")
    assert said(run(made(Sampling(max_tokens=5)), [1, 2, 3, 4, 5])) == ("A😀", "length")
    assert said(run(made(Sampling()), [1, 2, STOP])) == ("A\ufffd", "stop")  # the model's own end
    ends: tuple[Outcome, ...] = ("cancelled", "deadline_exceeded", "preempted")
    for outcome in ends:
        late = made(Sampling())
        assert late.prepare()
        late.begin(0)
        assert late.advance(logits(1))
        assert late.advance(logits(2))
        late.end(outcome)
        assert said(list(late.answer)) == ("A", outcome)


def test_a_constraint_never_fills_more_than_the_context() -> None:
    asked = request(Sampling(constraint=OneOf(((3, 4, 5, 6),))), context=4)
    assert said(run(asked, [1])) == ("CD", "length")
    assert len(asked.tokens) == 4


def test_a_constraint_is_met_whatever_the_model_would_say() -> None:
    assert said(run(request(Sampling(constraint=OneOf(((3, 1), (4, 2))))), [STOP, STOP]))[1] == "stop"


def test_a_constraint_that_raises_ends_its_answer_with_what_was_said() -> None:
    broken = OneOf(((3, 4, 5), (3, 4, 6)), breaks_after=2)
    (last,) = run(request(Sampling(constraint=broken)), [5])
    assert (last.text, last.outcome) == ("C", "error")
    assert last.error == "the engine failed: this constraint is broken"


def test_a_reader_that_raises_ends_its_own_answer() -> None:
    def receive(chunk: Chunk) -> None:
        raise RuntimeError("the loop is closed")

    asked = request(Sampling())
    asked.answer.subscribe(receive)
    assert asked.prepare()
    asked.begin(0)
    assert not (asked.advance(logits(1)) and asked.hand_over())


def test_an_answer_that_was_parked_goes_on_where_it_was() -> None:
    asked = request(Sampling(temperature=1.0, seed=5, stop=("never",)))
    whole = run(request(Sampling(temperature=1.0, seed=5, stop=("never",), max_tokens=6)), [1] * 6)
    asked.begin(0)
    for place in range(6):
        assert asked.advance(logits(1))
        assert asked.hand_over()
        if place == 2:
            asked.park()
            asked.begin(0)
    asked.end("length")
    assert said(list(asked.answer)) == said(whole)


def test_the_times_of_a_parked_answer_add_up() -> None:
    asked = request(Sampling())
    asked.begin(5)
    asked.advance(logits(1))
    asked.park()
    asked.begin(1)
    asked.advance(logits(1))
    asked.end("cancelled")
    timings = asked.answer.timings
    assert min(timings.queue_s, timings.prefill_s, timings.decode_s) > 0
    assert timings.cached_tokens == 2


@pytest.mark.parametrize(
    ("terms", "begun", "fate"),
    [
        (Schedule(), False, None),
        (Schedule(deadline_s=3600, max_queue_s=3600), False, None),
        (Schedule(deadline_s=0), False, "deadline_exceeded"),
        (Schedule(deadline_s=0), True, "deadline_exceeded"),
        (Schedule(max_queue_s=0), False, "rejected"),
        (Schedule(max_queue_s=0), True, None),
        (Schedule(max_queue_s=0, deadline_s=-1), False, "deadline_exceeded"),
        (Schedule(max_queue_s=-1, deadline_s=0), False, "rejected"),
    ],
)
def test_terms_that_ran_out_have_their_own_outcome(terms: Schedule, begun: bool, fate: Outcome | None) -> None:
    asked = request(Sampling(), terms)
    if begun:
        asked.begin(0)
    assert asked.terminal_outcome() == fate
    asked.answer.cancel()
    assert asked.terminal_outcome() == "cancelled"


def test_who_gave_way_and_got_no_sequence_again_was_preempted() -> None:
    asked = request(Sampling(), Schedule(priority="batch", deadline_s=0))
    asked.begin(0)
    asked.park()
    assert asked.terminal_outcome() == "preempted"
    asked.begin(0)
    assert asked.terminal_outcome() == "deadline_exceeded"
    asked.park()
    asked.answer.cancel()
    assert asked.terminal_outcome() == "cancelled"
    asked.close()
    assert [chunk.outcome for chunk in asked.answer] == ["cancelled"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"priority": "urgent"}, "priority is 'urgent', want one of safety"), ({"deadline_s": math.nan}, "deadline_s is")],
)
def test_terms_that_mean_nothing_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_terms(replace(Schedule(), **change))


def test_the_line_is_in_order_of_class_then_deadline_then_arrival() -> None:
    line: RequestQueue[Request] = RequestQueue()
    order: list[tuple[Priority, float | None]] = [
        ("batch", None),
        ("interactive", None),
        ("safety", None),
        ("batch", 50.0),
        ("interactive", 90.0),
        ("interactive", 60.0),
        ("interactive", None),
    ]
    asked = [request(Sampling(), Schedule(priority=name, deadline_s=deadline)) for name, deadline in order]
    for one in asked:
        line.add(one)
    assert [asked.index(one) for one in line] == [2, 5, 4, 1, 6, 3, 0]


def test_who_leaves_the_line_leaves_it_once() -> None:
    line: RequestQueue[Request] = RequestQueue()
    asked = request(Sampling(), Schedule(max_queue_s=0))
    line.add(asked)
    line.sweep()
    assert not line.take(asked)
    line.end_all("error")
    assert [chunk.outcome for chunk in asked.answer] == ["rejected"]


def ringing(asked: Sequence[Request], line: RequestQueue[Request]) -> Callable[[], None]:
    alarm = DeadlineTimer(line.sweep)
    for one in asked:
        line.add(one)
        alarm.set(one)
    return alarm.close


def test_the_alarm_ends_who_waits_too_long_and_nobody_else() -> None:
    line: RequestQueue[Request] = RequestQueue()
    soon = [request(Sampling(), Schedule(deadline_s=limit)) for limit in (0.02, 0.01, 0.0)]
    late = request(Sampling(), SOON)
    close = ringing([*soon, late], line)
    assert [list(one.answer)[-1].outcome for one in soon] == ["deadline_exceeded"] * 3
    assert list(line) == [late]
    close()
