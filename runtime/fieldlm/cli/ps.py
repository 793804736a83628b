"""`fieldlm ps`: what a running server serves."""

from collections.abc import Sequence
from typing import Any

from fieldlm.core import terminal
from fieldlm.network.http_client import OK, server_at


def main(argv: Sequence[str]) -> int:
    """Show what a running server serves; exit code 1 when it is not ready."""
    parser = terminal.parser(
        "ps", "show what a running server serves", "fieldlm ps", "fieldlm ps --url http://192.168.1.7:8080"
    )
    parser.add_argument("--url", help="the server: http, https or unix:/PATH; default: as configured")
    args = parser.parse_args(argv)
    server = server_at(args.url)
    _, listed = server.get("/v1/models")
    status, readiness = server.get("/ready")
    rows = [_row(model, readiness["status"]) for model in listed["data"]]
    header = ("model", "generation", "engine", "quant", "context", "requests", "memory MB", "state")
    terminal.show({"models": listed["data"], "ready": readiness}, terminal.table(rows, header), as_json=args.json)
    return 0 if status == OK else 1


def _row(model: dict[str, Any], state: str) -> list[object]:
    own = model["fieldlm"]
    kind = state if own.get("proved", True) else f"{state}, unproved"
    memory = round(sum(own["memory_mb"].values()))
    quant = own["quant"] + (" + adapter" if own["adapter"] else "")
    return [model["id"], own["generation"], own["engine"], quant, own["context"], own["requests"], memory, kind]
