"""The ledger, for who asks: the sums of a span of days by task and model, and what small models saved."""

from collections import defaultdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.escalation.ledger import COLUMNS, COUNTS, is_large
from fieldlm.escalation.policy import Escalation
from fieldlm.network.json_api import ApiError, as_json

DAYS = 30
MOST_DAYS = 400


def ledger_route(escalation: Escalation) -> Route:
    """Return GET /v1/fieldlm/ledger?days=N."""

    def ledger(request: Request) -> Response:
        # In a thread of its own: it waits for the disk.
        given = request.query_params.get("days", str(DAYS))
        if not given.isdecimal() or not 1 <= int(given) <= MOST_DAYS:
            raise ApiError(400, f"days is {given[:20]!r}; want 1–{MOST_DAYS}", param="days", code="invalid_value")
        return as_json(summary(escalation, int(given)))

    return Route("/v1/fieldlm/ledger", ledger)


def summary(escalation: Escalation, days: int) -> dict[str, Any]:
    """Return what the last `days` took: every row, sums by task and model, and over all.

    `without_small` is what the same answers would have cost, had the large model given them all.
    """
    rows = escalation.ledger.rows(days=days)
    tasks: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: dict.fromkeys(COLUMNS, 0))
    total: dict[str, float] = dict.fromkeys(COLUMNS, 0)
    by_large = 0.0
    for row in rows:
        for name in COLUMNS:
            tasks[row["task"], row["model"]][name] += row[name]
            total[name] += row[name]
        by_large += row["calls"] if is_large(row["why"]) and row["why"] != "not used" else 0
    wasted = sum(row["cost"] for row in rows if row["why"] == "not used")
    answered = total["calls"] - sum(row["calls"] for row in rows if row["why"] in ("replaced", "not used"))
    return {
        "days": days,
        "large": escalation.status(),
        "answers": int(answered),
        "by_large": int(by_large),
        "total": _rounded(total),
        "without_small": round(total["cost"] - wasted + total["saved"], 6),
        "tasks": [{"task": task, "model": model, **_rounded(sums)} for (task, model), sums in sorted(tasks.items())],
        "rows": [row | _rounded({name: row[name] for name in COLUMNS}) for row in rows],
    }


def _rounded(sums: dict[str, float]) -> dict[str, float]:
    return {name: int(value) if name in COUNTS else round(value, 6) for name, value in sums.items()}
