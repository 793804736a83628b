"""The policy of escalation: which requests the large model answers, and which it may not see.

A request is refused to the large model for one of four reasons: it says so, what it holds may not leave, the budget of
the day is spent, or no answer can be there in time. It is meant for the large model where it names it, where the device
says "always", where there is no small model, where the small one failed or cannot hold the prompt, where the bundle's
router knows no task that it could be, and where the small one is unsure: its confidence is below a threshold. Without a
calibrated confidence the least sure answers are those in the lowest share of what this generation has answered.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.config import Config
from fieldlm.core.errors import ConfigError
from fieldlm.core.tasks import PROCESS, Tasks
from fieldlm.engines import Outcome, Timings
from fieldlm.escalation.energy_shares import EnergyShares
from fieldlm.escalation.large_model import REMEMBERED, LargeModel, foreseen_s
from fieldlm.escalation.ledger import Entry, Ledger, Prices, is_large
from fieldlm.escalation.verdict import Verdict, Who, Wish
from fieldlm.formats.record import LARGE
from fieldlm.inference.classifiers.closed_answers import CLASSIFIER
from fieldlm.inference.confidence import confidence
from fieldlm.inference.generations import Serving
from fieldlm.inference.model_pool import LATEST
from fieldlm.telemetry.hard_examples import RecentAnswers
from fieldlm.telemetry.redaction.put import Patterns

FAILED: frozenset[Outcome] = frozenset({"error", "rejected", "preempted"})
AT_ONCE = 128
"""Requests that wait for the large model at a time. Nobody queues for that: a deadline would pass meanwhile."""


MOST_ANSWERED = 10_000
"""Answers that are remembered, for what people think of them."""


@dataclass
class _Answered:
    """Which row of the ledger an answer is in, and what was thought of it."""

    model: str
    task: str
    why: str
    is_right: bool | None = None


def _unmeasured() -> float | None:
    return None


@dataclass(frozen=True, kw_only=True)
class EscalationRequest:
    """What a request says that bears on who answers it; `due_s` by the monotonic clock."""

    wish: Wish = "auto"
    names_large: bool = False
    session: str = ""
    task: str = ""
    is_unknown: bool = False
    """Whether the bundle's router knows no task that this could be."""
    can_be_told: bool = True
    """Whether OpenAI's API has words for it: there are none for a regex, and nobody else has this model's tokens."""
    due_s: float | None = None

    def left_s(self) -> float | None:
        """Return how much time is left; None where there is no limit."""
        return None if self.due_s is None else max(0.0, self.due_s - time.monotonic())


class Escalation:
    """The large model beside a device's small one: decides, asks, counts. Safe from any thread."""

    def __init__(
        self,
        config: Config,
        *,
        has_small: bool = True,
        tasks: Tasks | None = None,
        patterns: Callable[[], Patterns] = tuple,
        joules: Callable[[], float | None] = _unmeasured,
    ) -> None:
        """`patterns` are what else a fleet calls personal, where text leaves redacted; `joules` a running total."""
        self._config = config
        self.has_small = has_small
        self.patterns = patterns
        self.model = LargeModel(config.large, name=config.large_model, key=read_key(config.large_key))
        if tasks is not None:
            self.model.watch(tasks)
        self.ledger = Ledger(config.state / "ledger.db")
        self.prices = Prices(prompt=config.large_prompt_price, completion=config.large_completion_price)
        self.energy = EnergyShares(joules)
        self._lock = threading.Lock()
        self._answered: OrderedDict[str, _Answered] = OrderedDict()
        self._waiting = 0
        self._small_took_s: deque[float] = deque(maxlen=REMEMBERED)
        self._small_waited_s: deque[float] = deque(maxlen=REMEMBERED)
        """What its answers took with their wait in the queue."""
        self._recent = RecentAnswers()

    def run(self, ask: Callable[[], None]) -> None:
        """Run what waits for the network, in a thread of its own, which no end of the process waits for.

        Raises RuntimeError when there are too many threads.
        """

        def wait() -> None:
            try:
                ask()
            finally:
                with self._lock:
                    self._waiting -= 1

        with self._lock:
            self._waiting += 1
        try:
            PROCESS.start("large-answer", wait)
        except RuntimeError:
            with self._lock:
                self._waiting -= 1
            raise

    def first(self, wanted: EscalationRequest) -> tuple[Who, str]:
        """Return who begins to answer, and why where it is the large model."""
        why = ""
        if wanted.names_large or wanted.wish == "always":
            why = "asked"
        elif not self.has_small:
            why = "no small model"
        elif self._config.large_when == "always" and wanted.can_be_told:
            why = "always"
        elif wanted.is_unknown and self.is_option(wanted):
            why = "unknown task"
        if why and (not self.withheld(wanted) or not self.has_small):
            return "large", why
        return "small", ""

    def hedge(self, wanted: EscalationRequest) -> str:
        """Return why the large model should be asked while the small one answers, or nothing.

        It should where the small one is not likely to make its deadline, by the slower ones of its last answers.
        """
        left_s = wanted.left_s()
        if not self._config.large_hedge or left_s is None or not self.has_small or not self.is_option(wanted):
            return ""
        with self._lock:
            takes_s = foreseen_s(self._small_waited_s)
        return "hedged" if takes_s > left_s and not self.withheld(wanted) else ""

    def is_option(self, wanted: EscalationRequest) -> bool:
        """Whether the small model's answer may give way to the large one's."""
        return wanted.can_be_told and wanted.wish != "never" and self._config.large_when != "asked"

    def doubt(self, serving: Serving, timings: Timings, outcome: Outcome) -> str:
        """Return why an answer of the small model should not be the last word, or nothing."""
        if outcome in FAILED:
            return "failed"
        if outcome not in ("stop", "length"):
            return ""
        return "unsure" if self._is_unsure(serving, timings) else ""

    def withheld(self, wanted: EscalationRequest) -> str:
        """Return why the large model may not answer this, or nothing."""
        model = self.model
        reasons: tuple[tuple[str, Callable[[], bool]], ...] = (
            ("the request forbids it", lambda: wanted.wish == "never"),
            ("nothing may leave the device", lambda: self._config.large_text == "nothing"),
            (f"the large model is out of reach ({model.problem})", lambda: not model.is_reachable),
            (f"{AT_ONCE} requests wait for the large model", lambda: self._waiting > AT_ONCE),
            ("the budget of the day is spent", self._is_spent),
            ("this customer's budget of the day is spent", lambda: self._is_spent_by(wanted.session)),
            ("its answer would come after the deadline", lambda: self._is_late(wanted)),
        )
        return next((why for why, is_so in reasons if is_so()), "")

    def small_s(self) -> float:
        """Return how long an answer of the small model takes, by the slower ones of the last; 0 while none is known."""
        with self._lock:
            return foreseen_s(self._small_took_s)

    def must_redact(self, wanted: EscalationRequest) -> bool:
        return self._config.large_text == "redacted" or wanted.wish == "redacted"

    def count(
        self,
        verdicts: Sequence[Verdict],
        *,
        model: str,
        wanted: EscalationRequest,
        is_failed: bool,
        response: str = "",
        joules: float = 0.0,
    ) -> None:
        """Write into the ledger what the answers to one request took; `response` is its id."""
        by_small = [verdict.small for verdict in verdicts if verdict.by == "small" and verdict.small is not None]
        by_small = [small for small in by_small if small.classified is None]  # that is no measure of the model
        took_s = [small.prefill_s + small.decode_s for small in by_small]
        entries = [entry for verdict in verdicts for entry in self._entries(verdict, model, wanted.task, is_failed)]
        said = next(
            (e for e in entries if is_large(e.why) == (verdicts[0].by == "large") and e.why != "not used"), None
        )
        with self._lock:
            self._small_took_s.extend(took_s)
            self._small_waited_s.extend(s.queue_s + took for s, took in zip(by_small, took_s, strict=True))
            if response and said is not None:
                self._answered[response] = _Answered(said.model, said.task, said.why)
                while len(self._answered) > MOST_ANSWERED:
                    self._answered.popitem(last=False)
        if said is not None:
            entries[entries.index(said)] = msgspec.structs.replace(said, joules=joules)
        self.ledger.add(entries, session=wanted.session)

    def judged(self, response: str, *, is_right: bool) -> None:
        """Count what somebody thought of an answer since the start; who thinks again takes the first word back."""
        with self._lock:
            known = self._answered.get(response)
            if known is None or known.is_right == is_right:
                return
            before, known.is_right = known.is_right, is_right
        entry = Entry(
            model=known.model,
            task=known.task,
            why=known.why,
            is_call=False,
            liked=is_right - (before is True),
            disliked=(not is_right) - (before is False),
        )
        self.ledger.add([entry])

    def count_late(self, verdict: Verdict, *, wanted: EscalationRequest) -> None:
        """Add what the large model counted for a request that is in the ledger already."""
        entries = [entry for entry in self._entries(verdict, "", wanted.task, False) if is_large(entry.why)]
        self.ledger.add(
            [msgspec.structs.replace(entry, is_call=False, failed=False) for entry in entries], session=wanted.session
        )

    def is_named(self, model: str) -> bool:
        """Whether `model` in a request means the large one: by its own name, or by that which it has everywhere."""
        return not {model, model.removesuffix(LATEST)}.isdisjoint((LARGE, self.model.label))

    def described(self, created_s: int) -> dict[str, Any]:
        """Return the large model as /v1/models lists one."""
        own = {"large": True, **self.model.status()}
        return {"id": self.model.label, "object": "model", "created": created_s, "owned_by": "large", "fieldlm": own}

    def status(self) -> dict[str, Any]:
        spent = self.ledger.tokens_today()
        return {
            **self.model.status(),
            "when": self._config.large_when,
            "text": self._config.large_text,
            "tokens_today": spent,
        }

    def close(self) -> None:
        self.model.close()
        self.ledger.close()

    def _is_spent(self) -> bool:
        limit = self._config.large_daily_tokens
        return bool(limit) and self.ledger.tokens_today() >= limit

    def _is_spent_by(self, session: str) -> bool:
        limit = self._config.large_session_tokens
        return bool(limit and session) and self.ledger.tokens_today(session) >= limit

    def _is_late(self, wanted: EscalationRequest) -> bool:
        left_s = wanted.left_s()
        return left_s is not None and self.model.foreseen_s() > left_s

    def _is_unsure(self, serving: Serving, timings: Timings) -> bool:
        below = self._config.large_below / 100
        chance = confidence(serving, timings)
        if chance is not None:
            return chance < below
        # Without a free token there is no rank: it could say nothing else.
        rank = self._recent.rank(f"{serving.bundle.generation}:{serving.task_adapter}", timings.min_logprob)
        return rank is not None and rank < 1 - below

    def _entries(self, verdict: Verdict, model: str, task: str, is_failed: bool) -> list[Entry]:
        found: list[Entry] = []
        if (small := verdict.small) is not None:
            saved = self.prices.of(small.prompt_tokens, small.completion_tokens) if verdict.by == "small" else 0.0
            found.append(
                Entry(
                    model=model if small.classified is None else CLASSIFIER,
                    task=task,
                    why="replaced" if verdict.by == "large" else verdict.why and "stood in",
                    failed=is_failed and verdict.by == "small",
                    prompt_tokens=small.prompt_tokens,
                    completion_tokens=small.completion_tokens,
                    seconds=small.prefill_s + small.decode_s,
                    saved=saved,
                )
            )
        if (large := verdict.large) is not None:
            found.append(
                Entry(
                    model=self.model.label,
                    task=task,
                    why=verdict.why if verdict.by == "large" else "not used",
                    failed=is_failed and verdict.by == "large",
                    prompt_tokens=large.prompt_tokens,
                    completion_tokens=large.completion_tokens,
                    seconds=large.duration_s,
                    cost=self.prices.of(large.prompt_tokens, large.completion_tokens),
                )
            )
        elif verdict.by == "large":
            found.append(Entry(model=self.model.label, task=task, why=verdict.why, failed=True))
        return found


def read_key(path: str) -> str:
    """Return the key in the file `path`; raises ConfigError where it holds none."""
    if not path:
        return ""
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"large_key {path} cannot be read: {error}") from error
    if not key or "\n" in key or not key.isascii():
        raise ConfigError(f"large_key {path} should hold the large model's key, one line and nothing else")
    return key
