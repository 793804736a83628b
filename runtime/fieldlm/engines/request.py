"""One request's life, the same in every engine: deadline, stop strings, constraint, timings.

An engine computes what `tokens` holds (the prompt, the answer so far, what has to follow) and hands the logits behind
the last one to `advance`, which chooses and says what comes next, until the answer has ended.
"""

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fieldlm.core.errors import FieldlmError, InputError
from fieldlm.engines import Chunk, Guide, Outcome, Sampling, Schedule, TokenChoice
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.engines.sampling import Floats, Pick, Sampler
from fieldlm.engines.stop_text import Part, TextStream

CLASSES = ("safety", "interactive", "batch")

Phase = Literal["queue_s", "prefill_s", "decode_s"]

_arrivals = itertools.count()


@dataclass(frozen=True)
class Words:
    """What a model's tokens stand for: the bytes of one, and those that end an answer."""

    piece: Callable[[int], bytes]
    stop_tokens: frozenset[int]


class Request:
    """A prompt, what is wanted and until when, and what the answer has to remember between two steps.

    Only `fate` may be asked by other threads than the one that computes.
    """

    def __init__(
        self,
        answer: AnswerStream,
        prompt: Sequence[int],
        sampling: Sampling,
        terms: Schedule,
        *,
        words: Words,
        context: int,
    ) -> None:
        self.answer = answer
        self.tokens = list(prompt)
        self.terms = terms
        asked_s = self._since_s = time.monotonic()
        self.due_s = asked_s + _seconds(terms.deadline_s)
        self.start_by_s = asked_s + _seconds(terms.max_queue_s)
        self.urgency = (CLASSES.index(terms.priority), self.due_s, next(_arrivals))
        self.has_begun = False
        self.is_parked = False
        """Whether it gave its sequence up and waits for another one."""
        self.count = 0
        self._phase: Phase = "queue_s"
        self._piece = words.piece if not sampling.said else _spoken(words.piece, sampling.said)
        self._stop_tokens = frozenset[int]() if sampling.ignore_eos else words.stop_tokens
        self._limit = min(sampling.max_tokens, context - len(prompt))
        self._constraint = sampling.constraint
        self._guide: Guide | None = None
        self._ahead: list[int] = []
        self._sampler = Sampler(sampling, prompt)
        self._text = TextStream(sampling.stop, sampling.preamble)
        self._new_text = ""
        self._picks: list[Pick] = []
        self._held = _HeldChoices()
        self._chosen = 0
        self._undecided: list[Pick] = []
        """Free ones of which it is not known yet whether they are of the answer."""
        self._had_preamble = False

    @property
    def is_batch(self) -> bool:
        """Whether it gives way to every other class."""
        return self.terms.priority == "batch"

    @property
    def capacity(self) -> int:
        """The most tokens that prompt and answer can have."""
        return self.answer.timings.prompt_tokens + self._limit

    @property
    def most_left(self) -> int:
        """The most tokens that may still be computed for it."""
        return self.capacity - len(self.tokens) + (0 if self.count else self.answer.timings.prompt_tokens)

    def terminal_outcome(self) -> Outcome | None:
        """Return how the answer has to end now, wherever it is; None while it may go on."""
        if self.answer.cancelled:
            return "cancelled"
        now_s = time.monotonic()
        if not self.has_begun and self.start_by_s <= min(now_s, self.due_s):
            return "rejected"
        if now_s < self.due_s:
            return None
        return "preempted" if self.is_parked else "deadline_exceeded"

    def close(self) -> None:
        """End it because the engine ends, whatever it was about to say."""
        self.end("preempted" if self.is_parked and not self.answer.cancelled else "cancelled")

    def prepare(self) -> bool:
        """Append the tokens that the constraint forces first; False when the constraint fails."""
        if self._constraint is None or self._guide is not None:
            return True
        try:
            self._guide = self._constraint.guide()
            self._ahead = list(self._guide.forced())[: self._limit]
        except Exception as error:
            self.end("error", error=_reason(error))
            return False
        self.tokens += self._ahead
        return True

    def begin(self, cached: int) -> None:
        """Note that a sequence is there, now or again, which already holds `cached` of the tokens."""
        self.is_parked = False
        if not self.has_begun:
            self.has_begun = True
            self.answer.timings.cached_tokens = min(cached, self.answer.timings.prompt_tokens)
        self._enter("prefill_s")

    def park(self) -> None:
        """Note that the sequence was given up; the answer waits for another one."""
        self.is_parked = True
        self._enter("queue_s")

    def resume(self) -> None:
        """Note that it is computed from now on, alone: it waited since it was last."""
        phase, self._phase = self._phase, "queue_s"
        self._enter(phase)

    def rest(self) -> None:
        """Note that it is not computed any more, until `resume`."""
        self._enter(self._phase)

    def advance(self, logits: Floats, batch_size: int = 1) -> bool:
        """Choose what follows from `logits`, those behind the last of `tokens`; False when the answer has ended.

        `batch_size` is how many answers have a sequence now.

        What was chosen is said by the next `hand_over`. Whatever goes wrong here, in the constraint or in who reads, is
        this answer's end and nobody else's.
        """
        try:
            outcome = self._speak(logits, batch_size)
        except Exception as error:
            self.end("error", error=_reason(error))
            return False
        if outcome is not None:
            self.end(outcome)
        return outcome is None

    def hand_over(self) -> bool:
        """Give the reader what was chosen since the last time; False when the answer has ended by that.

        An engine does it last before it computes again: a reader that is woken earlier waits for Python's lock, and
        the engine for the reader.
        """
        try:
            self._hand_over()
        except Exception as error:
            self.end("error", error=_reason(error))
            return False
        return True

    def end(self, outcome: Outcome, error: str | None = None) -> None:
        """Hand over the last chunk, with what was held back."""
        self._enter(self._phase)
        self.answer.timings.completion_tokens = self.count
        self._count_undecided()
        self._new_text += self._text.finish(is_cut=outcome != "stop")
        with contextlib.suppress(Exception):
            self._hand_over(outcome, error)

    def _speak(self, logits: Floats, batch_size: int) -> Outcome | None:
        known = len(self.tokens)
        if self._ahead:
            ahead, self._ahead = self._ahead, []
            outcome = self._say_all(ahead) or self._follow()
            if outcome or len(self.tokens) > known:
                return outcome
        if self._guide is not None and self._guide.is_complete:
            return "stop"
        pick = self._sampler.pick(logits, self._guide)
        self._chosen += 1
        timings = self.answer.timings
        timings.batch_size += (batch_size - timings.batch_size) / self._chosen
        self.tokens.append(pick.token)
        return self._say(pick) or (None if self._guide is None else self._follow())

    def _follow(self) -> Outcome | None:
        """Say what has to come now, until there is a choice again."""
        while self._guide is not None and (forced := list(self._guide.forced())[: self._limit - self.count]):
            self.tokens += forced
            if outcome := self._say_all(forced):
                return outcome
        return None

    def _say_all(self, forced: Sequence[int]) -> Outcome | None:
        before = self.count
        outcome = None
        for token in forced:
            if outcome := self._say(self._sampler.force(token)):
                break
        self.answer.timings.forced_tokens += self.count - before  # the one that ends an answer is not in it
        return outcome

    def _say(self, pick: Pick) -> Outcome | None:
        """Take one token into the answer; return how it ends the answer, if it does."""
        token, part = pick.token, self._text.part
        if token in self._stop_tokens:
            self._weigh(pick, part, is_space=False)
            return "stop"
        if self._guide is not None:
            self._guide.accept(token)
        if self._phase != "decode_s":
            self._enter("decode_s")
        self.count += 1
        self._sampler.note(token)
        piece = self._piece(token)
        text, stopped = self._text.push(piece)
        if part != "answer" and self._text.part == "answer":
            self._hand_over()  # no chunk is in part thought and in part answer: who counts tokens counts chunks
        self._picks.append(pick)
        self._new_text += text
        if pick.choice is not None:
            self._held.add(pick.choice, self._text.begins_at, is_empty=not piece)
        self._weigh(pick, part, is_space=not piece.strip())
        if stopped or (self._guide is not None and self._guide.is_complete):
            return "stop"
        return "length" if self.count >= self._limit else None

    def _weigh(self, pick: Pick, before: Part, *, is_space: bool) -> None:
        """Count how sure the model was of `pick`, once it is known to be of the answer; `before` it the text ended so.

        Tokens of a thought say nothing of the answer; those of a mark are of the thought, and space behind it is of
        neither.
        """
        now = self._text.part
        if "preamble" in (before, now):
            self._undecided.clear()
            self._had_preamble = True
            return
        if is_space and self._had_preamble and now == "undecided":
            return
        if pick.is_free:
            self._undecided.append(pick)
        if now == "answer":
            self._count_undecided()

    def _count_undecided(self) -> None:
        for pick in self._undecided:
            self.answer.timings.chose(pick.margin, pick.logprob)
        self._undecided.clear()

    def _hand_over(self, outcome: Outcome | None = None, error: str | None = None) -> None:
        picks, self._picks = self._picks, []
        text, self._new_text = self._new_text, ""
        if not picks and outcome is None:
            return
        chunk = Chunk(
            text=text,
            tokens=tuple([pick.token for pick in picks]),
            margins=tuple([pick.margin for pick in picks]),
            choices=self._held.said(text, is_all=outcome is not None and not self._text.is_stopped),
            outcome=outcome,
            error=error,
        )
        self.answer.put(chunk)

    def _enter(self, phase: Phase) -> None:
        """Add the time since the last call to the phase that ends, and begin `phase`."""
        now_s = time.monotonic()
        timings = self.answer.timings
        setattr(timings, self._phase, getattr(timings, self._phase) + now_s - self._since_s)
        self._phase, self._since_s = phase, now_s


class _HeldChoices:
    """How likely tokens were whose text is not said yet: what a stop string takes away is no part of the answer."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenChoice]] = deque()
        self._said = 0

    def add(self, choice: TokenChoice, begins_at: int, *, is_empty: bool) -> None:
        """Take that of the next token, whose first byte is of character `begins_at` of the text.

        Characters are counted as they were decoded: what is no UTF-8 has another number of bytes when it is said.
        """
        self._waiting.append((begins_at - is_empty, choice))

    def said(self, text: str, *, is_all: bool) -> tuple[TokenChoice, ...]:
        """Return those of which `text` says something; all, where it is the last and no stop string ended it."""
        self._said += len(text)
        found: list[TokenChoice] = []
        while self._waiting and (is_all or self._waiting[0][0] < self._said):
            found.append(self._waiting.popleft()[1])
        return tuple(found)


def check_terms(terms: Schedule) -> None:
    """Raise InputError for terms that mean nothing."""
    if terms.priority not in CLASSES:
        raise InputError(f"priority is {terms.priority!r}, want one of {', '.join(CLASSES)}")
    for name, value in (("deadline_s", terms.deadline_s), ("max_queue_s", terms.max_queue_s)):
        if value is not None and math.isnan(value):
            raise InputError(f"{name} is not a number")


def _spoken(piece: Callable[[int], bytes], said: tuple[tuple[int, str], ...]) -> Callable[[int], bytes]:
    spoken = {token: text.encode() for token, text in said}
    return lambda token: spoken.get(token) or piece(token)


def _seconds(limit: float | None) -> float:
    return math.inf if limit is None else limit


def _reason(error: Exception) -> str:
    """Return one line: our own errors say enough, another's begins with who failed."""
    if isinstance(error, FieldlmError):
        return str(error)
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"the engine failed: {what}"
