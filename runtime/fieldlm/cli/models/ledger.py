"""`fieldlm ledger`: who answered what, the small model or the large one, and what that cost and saved."""

from collections.abc import Sequence
from typing import Any

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.wording import counted
from fieldlm.network.http_client import OK, refusal, server_at


def main(argv: Sequence[str]) -> int:
    """Show the ledger of a running server."""
    parser = terminal.parser(
        "ledger",
        "show who answered what, the small model or the large one, and what that cost",
        "fieldlm ledger",
        "fieldlm ledger --days 7 --json",
    )
    parser.add_argument("--url", help="the server: http, https or unix:/PATH; default: as configured")
    parser.add_argument("--days", type=options.whole(1, 400), default=30, help="how many days back, today included")
    args = parser.parse_args(argv)
    status, document = server_at(args.url).get(f"/v1/fieldlm/ledger?days={args.days}")
    if status != OK:
        hint = "start it with --large URL: without a large model there is no ledger"
        raise InputError(f"the server keeps no ledger ({refusal(document)}); {hint}")
    terminal.show(document, _text(document), as_json=args.json)
    return 0


def _text(document: dict[str, Any]) -> str:
    rows = [_row(each) for each in document["tasks"]]
    head = ("task", "model", "calls", "failed", "read", "written", "seconds", "joules", "liked", "cost", "saved")
    table = terminal.table(rows, head)
    total, large = document["total"], document["large"]
    reach = f"is out of reach ({large['problem']})" if large["problem"] else "can be reached"
    return (
        f"{table}\n\nanswers in {counted(document['days'], 'day')}: "
        f"{document['answers']}, {document['by_large']} of them by "
        f"{large['model']}, which {reach}; cost {total['cost']:.4f}, saved {total['saved']:.4f}; "
        f"the large model alone would have cost {document['without_small']:.4f}"
    )


def _row(sums: dict[str, Any]) -> list[object]:
    tokens = [sums["prompt_tokens"], sums["completion_tokens"]]
    money = [f"{sums['cost']:.4f}", f"{sums['saved']:.4f}"]
    return [
        sums["task"] or "–",
        sums["model"],
        sums["calls"],
        sums["failed"],
        *tokens,
        f"{sums['seconds']:.1f}",
        f"{sums['joules']:.1f}" if sums["joules"] else "–",
        f"{sums['liked']}/{judged}" if (judged := sums["liked"] + sums["disliked"]) else "–",
        *money,
    ]
