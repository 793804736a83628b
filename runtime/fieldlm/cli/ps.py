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
    rows = [_row(model, readiness["status"]) for model in listed["data"] if not model["fieldlm"].get("large")]
    rows += [_large(model) for model in listed["data"] if model["fieldlm"].get("large")]
    seen = ("model", "generation", "engine", "quant", "context", "running")
    header = (*seen, "memory MB", "idle", "expires", "state")
    terminal.show({"models": listed["data"], "ready": readiness}, terminal.table(rows, header), as_json=args.json)
    return 0 if status == OK else 1


def _large(model: dict[str, Any]) -> list[object]:
    own = model["fieldlm"]
    state = own["problem"] or "reachable"
    return [model["id"], "", "large", own["url"], "", "", "", "", "", state]


def _row(model: dict[str, Any], readiness: str) -> list[object]:
    own = model["fieldlm"]
    memory = round(sum(own["memory_mb"].values()))
    several = own.get("adapters")
    quant = own["quant"] + (f" + {len(several)} adapters" if several else " + adapter" if own["adapter"] else "")
    seen = [model["id"], own["generation"], own["engine"], quant, own["context"], own["requests"], memory]
    return [*seen, _seconds(own["idle_s"]), _expiry(own), _state(own, readiness)]


def _state(own: dict[str, Any], readiness: str) -> str:
    """Return how the model is; only one that is awake is as ready as its server."""
    words = [readiness if own["state"] == "awake" else own["state"]]
    words += [f"{own['waiting']} waiting"] * bool(own["waiting"])
    words += ["pinned"] * bool(own["pinned"] and own["state"] != "asleep")
    return ", ".join([*words, *["unproved"] * (not own.get("proved", True))])


def _expiry(own: dict[str, Any]) -> str:
    if own["state"] == "asleep":
        return ""
    return "never" if own["expires_s"] is None else f"in {_seconds(own['expires_s'])}"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
