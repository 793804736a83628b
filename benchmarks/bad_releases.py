"""Bad releases of every kind against a running device: how long until it is back on the good generation, and why.

    .venv/bin/python -m benchmarks.bad_releases [--json] [--rounds 1]

A device process serves the real small model to two customers who never stop asking. Each bad release is made from that
model, published, and asked for; the clock runs until the device answers with the good generation again and nothing is
on trial. `lost` counts the customers' requests that were not answered: only a crash among people may cost any.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fieldlm.formats.bundle import open_bundle
from tests.support import device_process
from tests.support.bad_releases import KINDS, LONG, Kind, Workshop
from tests.support.device_process import DEVICE, FLEET, DeviceProcess, Home

CUSTOMERS = 2


@dataclass
class Customers:
    """Keep asking, and note who was not answered."""

    device: DeviceProcess
    statuses: list[int] = field(default_factory=list[int])
    is_over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CUSTOMERS)]
        for thread in threads:
            thread.start()
        return threads

    def _ask(self) -> None:
        while not self.is_over.is_set():
            self.statuses.append(self.device.chat("Name a colour.", 8)[0])
            time.sleep(0.2)


def run(name: str, kind: Kind, shop: Workshop, device: DeviceProcess, home: Home) -> dict[str, Any]:
    kind.make(shop)
    bad = open_bundle(shop.folder / "bad").generation
    customers = Customers(device)
    threads = customers.start()
    ends, runs = len(device.ends), device.ask("GET", "/v1/fieldlm/update")[1]["runs"]
    began_s = time.monotonic()
    device.ask("POST", "/v1/fieldlm/update", {})
    if kind.said:
        device.wait_until("people get the new one", lambda: device.generation() == bad)
        for text in kind.said:
            device.chat(text)
    result = device.updated(runs, ends)
    # Customers go on: what no trial found, they find.
    is_good = is_seen(device, lambda: device.generation() == shop.base.generation)
    back_s = time.monotonic() - began_s
    is_seen(device, lambda: bool(reasons(home, bad)))
    told = next(iter(reasons(home, bad)), dict[str, str]())
    customers.is_over.set()
    for thread in threads:
        thread.join()
    return {
        "kind": name,
        "caught": is_good and told.get("reason") in kind.reasons,
        "reason": told.get("reason", ""),
        "detail": told.get("detail", ""),
        "back_s": round(back_s, 1),
        "restarts": len(device.ends) - ends,
        "answered": sum(status == 200 for status in customers.statuses),
        "lost": sum(status != 200 for status in customers.statuses),
        "outcome": result["outcome"] if result else "crashed",
    }


def is_seen(device: DeviceProcess, is_true: Callable[[], bool]) -> bool:
    """Say whether it comes true within the time that the device has."""
    try:
        device.wait_until("", is_true)
    except AssertionError:
        return False
    return True


def reasons(home: Home, bad: str) -> list[dict[str, str]]:
    return [told for told in home.told(bad) if "reason" in told]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device_process.PATIENCE_S = 300.0  # how late it is belongs in the table
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop.open(Path(folder) / "shop")
        shop.publish(shop.base)
        with Home(Path(folder)) as home:
            arguments = [
                str(shop.base.folder), "--state", f"{folder}/state", "--profile", str(shop.profile), "--no-discovery",
                "--device", DEVICE, "--fleet", FLEET, "--broker", home.broker.url, "--repository",
                str(shop.repository), "--trust", str(shop.root), "--context", "512",
            ]  # fmt: skip
            device = DeviceProcess(arguments, Path(folder))
            try:
                device.wait_ready()
                for _ in range(args.rounds):
                    for name, kind in (KINDS | LONG).items():
                        rows.append(run(name, kind, shop, device, home))
                        print(rows[-1], file=sys.stderr, flush=True)
            finally:
                device.stop()
    summary = {
        "kinds": len(KINDS | LONG),
        "releases": len(rows),
        "caught": sum(row["caught"] for row in rows),
        "longest_back_s": max(row["back_s"] for row in rows),
        "lost_without_a_crash": sum(row["lost"] for row in rows if not row["restarts"]),
        "rows": rows,
    }
    print(json.dumps(summary, indent=None if args.json else 2))
    return 0 if summary["caught"] == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
