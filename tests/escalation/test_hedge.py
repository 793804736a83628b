"""Both models asked at once, where the small one may miss a deadline: the first whole answer without a doubt counts."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from fieldlm.engines import Chunk, Outcome, Timings
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.escalation.cascade import Cascade, Consultation
from fieldlm.escalation.large_model import REMEMBERED, AskHandle
from fieldlm.escalation.large_reply import LargeModelError, LargeReply
from fieldlm.escalation.policy import EscalationRequest
from fieldlm.escalation.verdict import Verdict
from tests.support.pairs import Pair, Start, saying

LONG_S = 60.0


@dataclass
class Race:
    """A cascade whose two answers end when the test says so."""

    doubt: str = ""
    can_stream: bool = False
    small: AnswerStream = field(init=False)
    reply: LargeReply | LargeModelError = field(default_factory=lambda: LargeReply(text="from the large one"))
    decided: list[Verdict] = field(default_factory=list[Verdict])
    can_reply: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def __post_init__(self) -> None:
        self.small = AnswerStream(prompt_tokens=3, wake=lambda: None)
        terms = Consultation(
            first="small", why="", ask=self._ask, fit=lambda reply: reply.text,
            doubt=lambda _timings, _outcome: self.doubt,
            withheld=str, start_small=lambda: self.small, on_decided=self.decided.append, can_stream=self.can_stream,
            hedge="hedged",
        )  # fmt: skip
        self.cascade = Cascade(terms, self._run)

    def _run(self, ask: Callable[[], None]) -> None:
        thread = threading.Thread(target=ask, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _ask(self, say: Callable[[str], None], handle: AskHandle) -> LargeReply:
        assert self.can_reply.wait(LONG_S)
        if isinstance(self.reply, LargeModelError):
            raise self.reply
        say(self.reply.text)
        return self.reply

    def small_says(self, text: str, outcome: Outcome = "stop") -> None:
        self.small.put(Chunk(text=text, tokens=()))
        self.small.put(Chunk(text="", tokens=(), outcome=outcome))

    def large_says(self) -> None:
        self.can_reply.set()
        for thread in self.threads:
            thread.join(LONG_S)
            assert not thread.is_alive()

    def heard(self) -> str:
        return "".join(chunk.text for chunk in self.cascade)


@pytest.mark.parametrize("can_stream", [False, True])
def test_the_large_one_is_first_and_the_small_one_stops(can_stream: bool) -> None:
    race = Race(can_stream=can_stream)
    race.small.put(Chunk(text="half", tokens=()))
    race.large_says()
    assert race.small.cancelled
    race.small_says(" an answer", "cancelled")
    assert race.heard() == "from the large one"
    last = race.decided[-1]
    assert (last.by, last.why, last.small is race.small.timings) == ("large", "hedged", True)


def test_the_small_one_is_first_and_what_the_large_one_says_is_paid_for() -> None:
    race = Race()
    race.small_says("from the small one")
    race.large_says()
    assert race.heard() == "from the small one"
    assert [(each.by, each.why, each.large is None) for each in race.decided] == [
        ("small", "", True),
        ("small", "", False),
    ]


def test_an_answer_in_doubt_waits_for_the_large_one() -> None:
    race = Race(doubt="unsure")
    race.small_says("from the small one")
    assert not race.decided
    race.large_says()
    assert race.heard() == "from the large one"


@pytest.mark.parametrize("is_small_first", [False, True])
def test_where_the_large_one_fails_the_small_one_answers_doubt_or_not(is_small_first: bool) -> None:
    away = LargeModelError("it is away")
    away.partial = LargeReply(text="it", prompt_tokens=5)
    race = Race(doubt="unsure", reply=away)
    if is_small_first:
        race.small_says("from the small one")
    race.large_says()
    if not is_small_first:
        race.small_says("from the small one")
    assert race.heard() == "from the small one"
    (verdict,) = race.decided
    assert (verdict.by, verdict.why, verdict.note) == ("small", "hedged", "it is away")
    assert verdict.large is not None


def test_who_leaves_ends_both() -> None:
    race = Race()
    race.cascade.cancel()
    assert race.small.cancelled
    assert [chunk.outcome for chunk in race.cascade] == ["cancelled"]
    race.small_says("", "cancelled")
    race.large_says()


def waited(start: Start, **more: Any) -> Pair:
    """Return a pair whose small model had its last answers wait two minutes in its queue."""
    pair = start(**{"hedge": "yes"} | more)
    before = Verdict(by="small", small=Timings(queue_s=120.0))
    for _ in range(REMEMBERED):
        pair.escalation.count([before], model="small", wanted=EscalationRequest(task="before"), is_failed=False)
    return pair


def test_both_are_asked_where_a_deadline_is_near_and_nowhere_else(start: Start) -> None:
    pair = waited(start)
    soon = EscalationRequest(due_s=time.monotonic() + 60)
    assert pair.escalation.hedge(soon) == "hedged"
    assert not pair.escalation.hedge(EscalationRequest())
    assert not pair.escalation.hedge(EscalationRequest(due_s=time.monotonic() + 3600))
    assert not pair.escalation.hedge(EscalationRequest(due_s=soon.due_s, wish="never"))


def test_without_the_setting_nobody_is_asked_beside_the_small_one(start: Start) -> None:
    pair = waited(start, hedge="no")
    assert pair.ask(deadline_ms=60_000).json()["fieldlm"]["answered_by"] == "small"
    assert not pair.large.asked


def test_a_request_with_a_deadline_reaches_both(start: Start) -> None:
    pair = waited(start, says={"say": saying(503)})
    for _ in range(50):  # whoever is done first stops the other, which then may not have begun
        answer = pair.ask(max_tokens=64, deadline_ms=60_000)
        assert (answer.status_code, answer.json()["fieldlm"]["answered_by"]) == (200, "small")
        if pair.large.asked:
            return
    pytest.fail("the large one was never asked")
