"""Hard-example selection: which exchanges are worth most to the next model.

When bytes are scarce, on the disk or on the link, hard examples keep their text and easy ones give theirs up; the
numbers of both travel.
"""

from typing import Literal

from fieldlm.formats.record import Record

Reason = Literal["margin", "repair", "fallback", "deadline", "failed", "corrected", "escalated"]
LOW_MARGIN = 1.0
"""A mean gap of the two best logits below it: e to one, the model hardly decided."""
_ROUTES: dict[str, Reason] = {
    "repair": "repair", "repaired": "repair", "fallback": "fallback", "escalate": "escalated", "escalated": "escalated",
    "cloud": "escalated", "large": "escalated",
}  # fmt: skip
_OUTCOMES: dict[str, Reason] = {"deadline_exceeded": "deadline", "error": "failed", "rejected": "failed"}


def reasons(*, margin: float, tokens: int, outcome: str, route: str, used_fallback: bool = False) -> list[Reason]:
    """Return why an exchange was hard; nothing when it was easy."""
    found: list[Reason] = ["margin"] if tokens and margin < LOW_MARGIN else []
    if used_fallback or outcome in _OUTCOMES:
        found.append("deadline" if used_fallback else _OUTCOMES[outcome])
    if route.casefold() in _ROUTES:
        found.append(_ROUTES[route.casefold()])
    return found


def is_hard(record: Record) -> bool:
    """Say whether `record` was hard when it was made; what somebody said of it later is not in it."""
    return "hard" in record.detail
