"""A shadow period: before a candidate is switched to, it answers what people ask, beside the generation that serves.

Nobody sees these answers. A request is asked again once its own answer has ended, while nobody else asks anything;
whoever comes meanwhile goes first, and the shadow answer is begun anew. What stays are numbers. fieldlm executes
no calls of tools, it hands them to whoever asked: those of a candidate go to nobody, so that nothing happens twice.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from fieldlm.blobs.sources import StoppedError
from fieldlm.formats.release import Offer
from fieldlm.formats.shadow import MOST, End, ShadowAnswer, ShadowFigures, meaning
from fieldlm.inference.probe import LoadedModel
from fieldlm.updates.gates import UnhealthyError
from fieldlm.updates.slots import Slots
from fieldlm.updates.trial import Loaded

QUEUE = 16
"""Requests that wait for the candidate; of those that come meanwhile none is asked."""
IDLE_S, BUSY_S = 0.5, 0.05
"""So often somebody looks whether there is a request, and whether its turn has come."""
CHECK_S = 600.0
"""So often is looked whether the release is still the one that is offered, and noted how long it has been."""

Candidate_contra = TypeVar("Candidate_contra", bound=LoadedModel, contravariant=True)
Look = Callable[[], None]
OnPair = Callable[[str, dict[str, str]], None]
"""Hears of each pair: the answer's id and what is told of it, in words and numbers."""


class AskedBefore(Protocol[Candidate_contra]):
    """A live request that has been answered, and can be asked again of another generation."""

    @property
    def id(self) -> str:
        """The id of the answer that the client got."""
        ...

    @property
    def generation(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def question(self) -> bytes:
        """What was asked, digested; the same for requests that ask the same."""
        ...

    @property
    def is_formed(self) -> bool:
        """Whether the answer has a form, so that one that is right is right to the letter."""
        ...

    @property
    def served(self) -> ShadowAnswer: ...
    def ask(self, candidate: Candidate_contra, gives_way: Callable[[], bool]) -> ShadowAnswer | None:
        """Return what `candidate` answers, None when `gives_way` said that somebody comes first."""
        ...


class Pair:
    """Both answers to one request, and what people said of the first."""

    def __init__(self, *, is_formed: bool) -> None:
        self.served: ShadowAnswer | None = None
        self.shadow: ShadowAnswer | None = None
        self.correction: bytes | None = None
        self.is_liked = False
        self._is_formed = is_formed

    @property
    def truth(self) -> bytes | None:
        """What the answer should say. Of words that somebody liked nothing follows: others may be as good."""
        if self.correction is not None or not (self.is_liked and self._is_formed and self.served):
            return self.correction
        return self.served.meaning


class ShadowPeriod(Generic[Loaded]):
    """One candidate's time in the shadow. Live requests and feedback come from other threads."""

    def __init__(self, candidate: str, before: str, wanted: int) -> None:
        self.candidate = candidate
        self.before = before
        self.wanted = wanted
        self.end: End = ""
        self.news = threading.Event()
        self._lock = threading.Lock()
        self._pairs: dict[str, Pair] = {}
        self._questions: set[bytes] = set()
        self._waiting: deque[AskedBefore[Loaded]] = deque()
        self._passed = 0
        self._figures: ShadowFigures | None = None

    def hear(self, request: AskedBefore[Loaded]) -> None:
        """Take note of a live request that was answered; never waits."""
        if request.generation != self.before or self.end:
            return
        question = request.question
        with self._lock:
            if self.end:
                return
            self._figures = None
            if question in self._questions or len(self._waiting) >= QUEUE or len(self._pairs) >= self.wanted:
                self._passed = min(MOST, self._passed + 1)
                return
            self._questions.add(question)
            self._pairs[request.id] = Pair(is_formed=request.is_formed)
            self._waiting.append(request)
        self.news.set()

    def judge(self, response: str, correction: str | None, *, is_liked: bool) -> None:
        """Take note of what somebody said of an answer."""
        with self._lock:
            if not self.end and (pair := self._pairs.get(response)) is not None:
                self._figures = None
                pair.correction = meaning(correction) if correction is not None else None
                pair.is_liked = is_liked

    def next(self) -> AskedBefore[Loaded] | None:
        """Return the request whose turn it is, which stays until it is `answered`."""
        with self._lock:
            self.news.clear()
            return self._waiting[0] if self._waiting else None

    def answered(self, request: AskedBefore[Loaded], shadow: ShadowAnswer) -> dict[str, str]:
        """Take note of the candidate's answer; return what is told of the pair."""
        served = request.served
        with self._lock:
            self._figures = None
            self._waiting.popleft()
            pair = self._pairs[request.id]
            pair.served, pair.shadow = served, shadow
        told: dict[str, str] = {"task": request.task, "agrees": _word(served.meaning == shadow.meaning)}
        for name, answer in (("serving_", served), ("", shadow)):
            told[f"{name}valid"] = _word(answer.is_valid)
            told[f"{name}tokens"] = str(answer.tokens)
            told[f"{name}ms"] = f"{1000 * answer.duration_s:.0f}"
            if answer.confidence is not None:
                told[f"{name}confidence"] = f"{answer.confidence:.3g}"
        return told

    def close(self, end: End) -> ShadowFigures:
        """Hear nothing more, and keep no request."""
        with self._lock:
            self.end, self._figures = end, None
            self._waiting.clear()
        return self.figures()

    def figures(self) -> ShadowFigures:
        with self._lock:
            if self._figures is None:
                self._figures = self._summed()
            return self._figures

    def _summed(self) -> ShadowFigures:
        both = [(p.served, p.shadow, p.truth) for p in self._pairs.values() if p.served and p.shadow]
        valid = [(new.is_valid, old.is_valid) for old, new, _ in both]
        right = [(new.meaning == truth, old.meaning == truth) for old, new, truth in both if truth is not None]
        return ShadowFigures(
            wanted=self.wanted,
            answers=len(both),
            agreed=sum(old.meaning == new.meaning for old, new, _ in both),
            valid=sum(new for new, _ in valid),
            valid_lost=valid.count((False, True)),
            valid_won=valid.count((True, False)),
            judged=len(right),
            right=sum(new for new, _ in right),
            right_lost=right.count((False, True)),
            right_won=right.count((True, False)),
            passed=self._passed,
            end=self.end,
        )


class Shadow(Generic[Loaded]):
    """Where live requests are heard of, whether a candidate is in the shadow or not. Safe from any thread.

    `is_busy` says whether anybody waits for an answer, `on_pair` hears of each request that both have answered.
    """

    def __init__(self, *, is_busy: Callable[[], bool], on_pair: OnPair = lambda response, told: None) -> None:
        self._is_busy = is_busy
        self._on_pair = on_pair
        self._period: ShadowPeriod[Loaded] | None = None

    @property
    def figures(self) -> ShadowFigures | None:
        """How the candidate does that is in the shadow, or how the last one did."""
        return None if self._period is None else self._period.figures()

    def hear(self, request: AskedBefore[Loaded]) -> None:
        """Take note of a live request that was answered; in the event loop, and quick."""
        if (period := self._period) is not None:
            period.hear(request)

    def judge(self, response: str, correction: str | None, *, is_liked: bool) -> None:
        """Take note of what somebody said of an answer: what it should have been, or that it was right."""
        if (period := self._period) is not None:
            period.judge(response, correction, is_liked=is_liked)

    def readings(self) -> Iterable[tuple[str, str, dict[str, str], float]]:
        """Yield the gauges of the candidate that is in the shadow, or was the last."""
        if (period := self._period) is None:
            return
        figures = period.figures()
        labels = {"generation": period.candidate}
        yield "fieldlm_shadow_active", "1 while a candidate answers in the shadow.", labels, not figures.end
        for what in ("wanted", "answers", "agreed", "valid", "serving_valid", "judged", "right", "serving_right"):
            kinds = {"generation": period.candidate, "what": what}
            count: int = getattr(figures, what)
            yield "fieldlm_shadow_answers", "Shadow answers; serving_ is the generation that serves.", kinds, count

    def fulfil(
        self,
        offer: Offer,
        candidate: Loaded,
        before: str,
        *,
        slots: Slots,
        stop: threading.Event,
        check: Callable[[], None],
    ) -> ShadowFigures:
        """Run as `offer` wishes; `slots` keep for how long, so that a device that is off each night ends it, too.

        `check` is asked every ten minutes and at the end, and raises when the release is not to be had any more. Raises
        StoppedError, without a verdict, when `stop` is set.
        """
        spent_s, began_s = slots.shadow_s(candidate.bundle), time.monotonic()
        checked_s = began_s

        def note() -> None:
            slots.shadowed(candidate.bundle, spent_s + time.monotonic() - began_s)

        def look() -> None:
            nonlocal checked_s
            if stop.is_set():
                note()
                raise StoppedError("something more urgent came while it was in the shadow; it is tried again later")
            if time.monotonic() - checked_s >= CHECK_S:
                checked_s = time.monotonic()
                note()
                check()

        note()
        wanted, for_s = min(offer.shadow, MOST), max(0.0, offer.shadow_s - spent_s)
        figures = self.run(candidate, before, wanted=wanted, for_s=for_s, stop=stop, look=look)
        note()
        check()
        return figures

    def run(
        self, candidate: Loaded, before: str, *, wanted: int, for_s: float, stop: threading.Event, look: Look
    ) -> ShadowFigures:
        """Let `candidate` answer `wanted` of the requests that `before` answers from now on, `for_s` seconds at most.

        Ends sooner when it is worse. `look` is called every half second, and raises what is to end the period without
        a verdict; who sets `stop` has it called at once.
        """
        period: ShadowPeriod[Loaded] = ShadowPeriod(candidate.bundle.generation, before, wanted)
        self._period = period
        end_s = time.monotonic() + for_s
        try:
            while not (end := _end(period.figures(), end_s)):
                look()
                if (request := period.next()) is None:
                    period.news.wait(min(IDLE_S, max(0.0, end_s - time.monotonic())))
                elif self._is_busy() or stop.is_set():
                    stop.wait(BUSY_S)
                elif (shadow := request.ask(candidate, lambda: self._is_busy() or stop.is_set())) is not None:
                    self._on_pair(request.id, {"candidate": period.candidate, **period.answered(request, shadow)})
        except BaseException:
            self._period = None
            raise
        return period.close(end)


def check_shadow(figures: ShadowFigures) -> None:
    """Raise UnhealthyError when a candidate did worse in the shadow than the generation that serves."""
    if (worse := figures.worse()) is not None:
        raise UnhealthyError(*worse)


def _end(figures: ShadowFigures, end_s: float) -> End:
    if figures.worse() is not None:
        return "worse"
    if figures.answers >= figures.wanted:
        return "full"
    return "time" if time.monotonic() >= end_s else ""


def _word(is_so: bool) -> str:
    return "yes" if is_so else "no"
