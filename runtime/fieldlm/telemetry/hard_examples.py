"""Hard-example selection: which exchanges are worth most to the next model.

When bytes are scarce, on the disk or on the link, hard examples keep their text and easy ones give theirs up; the
numbers of both travel. Unsure is who is among the least sure of its own generation: no constant fits two models.
"""

import threading
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from typing import Literal

from fieldlm.formats.record import Record

Reason = Literal["margin", "repair", "fallback", "deadline", "failed", "corrected", "escalated"]
"""`margin` is the name, of old, for an answer of which the model was unsure."""
UNSURE = 0.1
"""The share of a generation's answers that are unsure, where its bundle does not say itself which are."""
RECENT, FEWEST = 300, 50
"""Answers of a generation that one is ranked among; before there were the fewest, none has a rank."""
GENERATIONS = 64
_ROUTES: dict[str, Reason] = {
    "repair": "repair", "repaired": "repair", "fallback": "fallback", "escalate": "escalated", "escalated": "escalated",
    "cloud": "escalated", "large": "escalated",
}  # fmt: skip
_OUTCOMES: dict[str, Reason] = {"deadline_exceeded": "deadline", "error": "failed", "rejected": "failed"}


class RecentAnswers:
    """How sure the last answers of each generation were, by one signal. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[str, tuple[deque[float], list[float]]] = OrderedDict()

    def rank(self, generation: str, value: float | None) -> float | None:
        """Return the share of the last answers that were no surer than `value`, which is one of them from now on.

        They are those of `generation`, which may be one adapter of it.
        """
        if value is None:
            return None
        with self._lock:
            order, ranked = self._values.setdefault(generation, (deque(), []))
            self._values.move_to_end(generation)
            if len(self._values) > GENERATIONS:
                self._values.popitem(last=False)
            rank = bisect_right(ranked, value) / len(ranked) if len(ranked) >= FEWEST else None
            if len(order) == RECENT:
                del ranked[bisect_left(ranked, order.popleft())]
            order.append(value)
            insort(ranked, value)
            return rank


def is_unsure(told: bool | None, rank: float | None) -> bool:
    """Say whether an answer is among the least sure: as its bundle `told`, or else by its `rank`."""
    return told if told is not None else rank is not None and rank < UNSURE


def reasons(*, is_unsure: bool, outcome: str, route: str, used_fallback: bool = False) -> list[Reason]:
    """Return why an exchange was hard; nothing when it was easy."""
    found: list[Reason] = ["margin"] if is_unsure else []
    if used_fallback or outcome in _OUTCOMES:
        found.append("deadline" if used_fallback else _OUTCOMES[outcome])
    if route.casefold() in _ROUTES:
        found.append(_ROUTES[route.casefold()])
    return found


def is_hard(record: Record) -> bool:
    """Say whether `record` was hard when it was made; what somebody said of it later is not in it."""
    return "hard" in record.detail
