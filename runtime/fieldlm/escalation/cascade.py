"""Cascade: one answer to the client, of the small model or of the large one, whoever may and can.

Small first, what it says is held back until it is whole and its confidence known; where that is too low the large model
is asked, and where that one fails, what the small one said is the answer. Large first, the small one stands in for it.
Hedged, both are asked at once and the first whole answer that is not in doubt is taken.
What a client has been told cannot be taken back: a large answer that breaks off after its first words is an error.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from fieldlm.core.errors import FieldlmError
from fieldlm.core.logs import logger
from fieldlm.engines import Chunk, Outcome, RunningAnswer, Timings
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.escalation.large_model import AskHandle
from fieldlm.escalation.large_reply import LargeModelError, LargeReply
from fieldlm.escalation.verdict import Verdict, Who

log = logger(__name__)

_OUTCOMES: dict[str, Outcome] = {"length": "length"}
_REFUSED = "content_filter"


@dataclass(frozen=True, kw_only=True)
class Consultation:
    """How one request may be answered.

    `ask` blocks until the large model's reply is there, and raises LargeModelError. `fit` returns the text of a reply
    as the request wants it, and raises LargeModelError where it is not that. `doubt` says why the small model's answer
    should not be the last word, or nothing; `withheld` why the large model may not be asked, or nothing.
    """

    first: Who
    why: str
    ask: Callable[[Callable[[str], None], AskHandle], LargeReply]
    fit: Callable[[LargeReply], str]
    doubt: Callable[[Timings, Outcome], str]
    withheld: Callable[[], str]
    start_small: Callable[[], RunningAnswer] | None
    on_decided: Callable[[Verdict], None]
    can_stream: bool
    """Whether words may go out before the reply is whole: it has no form, and the client reads a stream."""
    hedge: str = ""
    """Why the large model is asked while the small one answers; empty where it is not."""


class Cascade:
    """A `RunningAnswer` of two models. `run` starts a function in a thread that may wait for a network."""

    def __init__(self, terms: Consultation, run: Callable[[Callable[[], None]], object]) -> None:
        self._terms = terms
        self._run = run
        self._lock = threading.Lock()
        self._handle = AskHandle()
        self._out = AnswerStream(prompt_tokens=0, wake=self._cancelled)
        self._small: RunningAnswer | None = None
        self._held: list[Chunk] = []
        self._is_hedged = terms.first == "small" and bool(terms.hedge)
        self._asks_large = terms.first == "large" or self._is_hedged
        self._winner: Who | None = None
        """Of two that answer at once, whose words go out."""
        self._small_ended = False
        self._failed: tuple[str, LargeReply | None] = "", None
        """Why the large model had no answer, of two that were asked at once, and what was paid for."""
        self._has_spoken = False
        self.timings = self._out.timings
        """One object from the beginning: whoever watches an answer keeps it."""
        self._began_s = time.monotonic()
        if terms.first == "large":
            run(lambda: self._answer_large(terms.why))
        else:
            self._start_small(self._hold)
        if self._is_hedged:
            self._ask_beside(terms.hedge)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._out)

    def subscribe(self, receive: Callable[[Chunk], None]) -> None:
        self._out.subscribe(receive)

    def cancel(self) -> None:
        self._out.cancel()

    def _cancelled(self) -> None:
        with self._lock:
            small, asks_large = self._small, self._asks_large
        if small is not None:
            small.cancel()
        self._handle.stop()
        if asks_large:
            # The network may hold its thread for a while yet; who has left does not wait for that.
            self._out.put(Chunk(text="", tokens=(), outcome="cancelled"))

    def _start_small(self, receive: Callable[[Chunk], None]) -> None:
        assert self._terms.start_small, "somebody has to answer"
        small = self._terms.start_small()
        with self._lock:
            self._small = small
        if self._out.cancelled:
            small.cancel()
        small.subscribe(receive)

    def _ask_beside(self, why: str) -> None:
        """Ask the large model while the small one answers."""
        try:
            self._run(lambda: self._answer_large(why))
        except RuntimeError:  # there are too many threads
            self._lose(why, "no thread is free", None)

    def _hold(self, chunk: Chunk) -> None:
        """Take a piece of the small model's answer; in the engine's thread, so that nothing here may wait."""
        self._held.append(chunk)
        if chunk.outcome is None:
            return
        assert self._small, "it speaks"
        doubt = self._terms.doubt(self._small.timings, chunk.outcome)
        if self._is_hedged:
            self._end_small(doubt)
            return
        withheld = self._terms.withheld() if doubt else ""
        if doubt and not withheld and not self._out.cancelled:
            with self._lock:
                self._asks_large = True  # before its thread runs: who leaves now does not wait for it
            try:
                self._run(lambda: self._answer_large(doubt))
                return
            except RuntimeError:  # there are too many threads
                with self._lock:
                    self._asks_large = False
                withheld = "no thread is free"
        self._say_small(note=withheld and f"{doubt}, but {withheld}")

    def _end_small(self, doubt: str) -> None:
        """Say what the small model said, unless the large one, asked beside it, has spoken or may know better."""
        with self._lock:
            self._small_ended = True
            asks_large = self._asks_large
            if self._winner is not None or (doubt and asks_large):
                return
            self._winner = "small"
            note, reply = self._failed
        if asks_large:
            self._handle.stop()
        self._say_small(why=doubt and self._terms.hedge, note=note, reply=reply)

    def _is_taken(self) -> bool:
        """Have the large model's words taken, if the small one's are not."""
        if not self._is_hedged:
            return True
        with self._lock:
            is_first = self._winner is None
            self._winner = self._winner or "large"
            small, winner = self._small, self._winner
        if is_first and small is not None:
            small.cancel()
        return winner == "large"

    def _lose(self, why: str, note: str, reply: LargeReply | None) -> None:
        """Take note that the large model, asked beside the small one, has no answer or came second."""
        with self._lock:
            self._asks_large = False
            self._failed = note, reply
            winner, ended = self._winner, self._small_ended
            if winner is None and ended:
                self._winner = "small"
        if winner == "small" and reply is not None:  # it was paid for all the same
            self._decide_small("", "", reply)
        elif winner is None and ended:
            self._say_small(why=why, note=note, reply=reply)

    def _say_small(self, *, why: str = "", note: str = "", reply: LargeReply | None = None) -> None:
        assert self._small, "it has spoken"
        self._take_time(self._small.timings)
        self._decide_small(why, note, reply)
        for chunk in self._held:
            self._out.put(chunk)

    def _decide_small(self, why: str, note: str, reply: LargeReply | None) -> None:
        assert self._small, "it has answered"
        self._terms.on_decided(Verdict(by="small", why=why, note=note, small=self._small.timings, large=reply))

    def _answer_large(self, why: str) -> None:
        began_s, first_s = time.monotonic(), 0.0

        def say(text: str) -> None:
            nonlocal first_s
            first_s = first_s or time.monotonic()
            if self._terms.can_stream and self._is_taken():
                if not self._has_spoken:
                    self._decide(why)
                self._out.put(Chunk(text=text, tokens=()))

        reply: LargeReply | None = None
        try:
            reply = self._terms.ask(say, self._handle)
            if reply.outcome == _REFUSED:
                raise LargeModelError("the large model's operator held its answer back")
            if not reply.text and not reply.calls:
                raise LargeModelError(f"the large model said nothing (finish_reason {reply.outcome})")
            text = self._terms.fit(reply)
        except Exception as error:  # whatever it is: somebody waits for an answer
            if not isinstance(error, FieldlmError):
                log.error(f"the large model's reply could not be taken: {type(error).__name__}")
            with self._lock:
                self._asks_large = False
            note = str(error) if isinstance(error, FieldlmError) else "the large model's reply could not be taken"
            failed: Outcome = "error"
            if isinstance(error, LargeModelError):
                reply = reply or error.partial
                failed = "deadline_exceeded" if error.is_late else failed
            if self._is_hedged and not self._has_spoken and not self._out.cancelled:
                self._lose(why, note, reply)
                return
            self._without_large(why, note, reply, failed)
            return
        if not self._is_taken():
            self._lose(why, "", reply)
            return
        # Whole answers, and calls, come at the end: they were looked at first.
        rest = text[len(reply.text) :] if self._has_spoken else text
        self._decide(why, reply)
        self._time(reply, queued_s=began_s - self._began_s, first_s=(first_s or time.monotonic()) - began_s)
        self._out.put(Chunk(text=rest, tokens=(), outcome=_OUTCOMES.get(reply.outcome, "stop")))

    def _decide(self, why: str, reply: LargeReply | None = None) -> None:
        """Say that the large model answers: before its first words, and again when its reply is whole."""
        self._has_spoken = True
        small = self._small.timings if self._small else None
        self._terms.on_decided(Verdict(by="large", why=why, small=small, large=reply))

    def _without_large(self, why: str, note: str, reply: LargeReply | None, failed: Outcome) -> None:
        """Go on after the large model has failed; a reply that was no use was paid for all the same.

        Where nobody can answer in its place, the outcome is `failed`.
        """
        if self._out.cancelled:
            self._end("cancelled", why, note, reply)
        elif self._has_spoken or (not self._held and self._terms.start_small is None):
            self._end(failed, why, note, reply)
        elif self._held:
            self._say_small(why=why, note=note, reply=reply)
        else:
            self._fall_back(why, note, reply)

    def _fall_back(self, why: str, note: str, reply: LargeReply | None) -> None:
        def say(chunk: Chunk) -> None:
            assert self._small, "it speaks"
            if chunk.outcome is not None:
                self._take_time(self._small.timings)
                self._decide_small(why, note, reply)
            self._out.put(chunk)

        try:
            self._start_small(say)
        except FieldlmError as error:
            self._end("error", why, f"{note}; {error}", reply)

    def _end(self, outcome: Outcome, why: str, note: str, reply: LargeReply | None) -> None:
        by: Who = "large" if self._has_spoken or self._terms.start_small is None else "small"
        small = self._small.timings if self._small else None
        self._terms.on_decided(Verdict(by=by, why=why, note=note, small=small, large=reply))
        self._out.put(Chunk(text="", tokens=(), outcome=outcome, error=note))

    def _time(self, reply: LargeReply, *, queued_s: float, first_s: float) -> None:
        """Write down what the endpoint counted; how unsure the small model was stays what it is."""
        margin = self._small.timings.margin if self._small else 0.0
        self._take_time(
            Timings(
                prompt_tokens=reply.prompt_tokens,
                cached_tokens=min(reply.cached_tokens, reply.prompt_tokens),
                completion_tokens=reply.completion_tokens,
                queue_s=queued_s,
                prefill_s=first_s,
                decode_s=max(0.0, reply.duration_s - first_s),
                margin=margin,
            )
        )

    def _take_time(self, timings: Timings) -> None:
        for each in fields(timings):
            setattr(self.timings, each.name, getattr(timings, each.name))
