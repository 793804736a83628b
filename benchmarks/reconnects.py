"""A fleet loses its broker in one moment: how many connections a second does it ask for until all are back?

    .venv/bin/python -m benchmarks.reconnects [--clients 1000000] [--outage-s 3600] [--window-s 600] [--json]

Virtual time, the very `Backoff` that devices use. Every try during the outage fails, the first one after it succeeds.
A town that gets its power back is the other storm: every device starts in the same second. Exit code 1: with the window
the peak is above --most.
"""

import argparse
import json
import sys
import time

from fieldlm.telemetry.backoff import Backoff
from tests.support.reconnects import MOST_A_SECOND, power_back, storm


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--outage-s", type=float, default=3600, help="how long the broker is away")
    parser.add_argument("--window-s", type=float, default=600, help="the policy's reconnect_window_s")
    parser.add_argument("--most", type=int, default=MOST_A_SECOND, help="connections a second that the broker bears")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    began_s = time.monotonic()
    found: dict[str, dict[str, float]] = {}
    for window_s in (args.window_s, 0.0):
        backoff = Backoff(window_s=window_s)
        for outage_s in (0.0, args.outage_s):
            asked = storm(backoff, clients=args.clients, outage_s=outage_s, seed=args.seed)
            found[f"window {window_s:g} s, broker away for {outage_s:g} s"] = _row(asked)
        found[f"window {window_s:g} s, all started at once"] = _row(
            power_back(backoff, clients=args.clients, seed=args.seed)
        )
    held = max(row["peak"] for name, row in found.items() if name.startswith(f"window {args.window_s:g} s"))
    document = {
        "clients": args.clients,
        "seed": args.seed,
        "storms": found,
        "seconds": round(time.monotonic() - began_s),
    }
    lines = [
        f"{name:<48} {row['peak']:>9,.0f} a second at most, all back after {row['back_s']:,.0f} s"
        for name, row in found.items()
    ]
    print(json.dumps(document) if args.json else "\n".join(lines))
    return 1 if held > args.most else 0


def _row(asked: list[int]) -> dict[str, float]:
    return {"peak": max(asked), "back_s": len(asked)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
