"""An adapter arrives while customers ask: does any request fail, and how much later do answers come for it?

    .venv/bin/python -m benchmarks.update_under_load [--customers 2] [--updates 3] [--json]

A device process serves the real small model with an adapter of rank 16 on every linear layer and takes others like it;
each customer asks for 16 tokens, again and again, without an update as with one. The delay of an update is how much
longer the slowest answer took while it ran than the slowest one without: both in one run, on one machine, under
the same load.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.bad_releases import Workshop, idle_lora
from tests.support.device_process import DEVICE, DeviceProcess

TOKENS = 16
RANK = 16


@dataclass
class Load:
    """Answers as (began, took, status), until told to stop."""

    device: DeviceProcess
    answers: list[tuple[float, float, int]] = field(default_factory=list[tuple[float, float, int]])
    is_over: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        while not self.is_over.is_set():
            began_s = time.monotonic()
            status, _ = self.device.chat("Name three colours.", TOKENS)
            self.answers.append((began_s, time.monotonic() - began_s, status))

    def between(self, begin_s: float, end_s: float) -> list[float]:
        """Return how long the answers took that ran at any time between the two."""
        return [took for began, took, _ in self.answers if began < end_s and began + took > begin_s]

    def within(self, begin_s: float, end_s: float) -> list[float]:
        """Return how long the answers took that began and ended between the two."""
        return [took for began, took, _ in self.answers if began >= begin_s and began + took <= end_s]


def offer(shop: Workshop, number: int) -> None:
    adapter = idle_lora(shop.folder / f"tuned-{number}.gguf", rank=RANK, seed=number, half=True)
    shop.publish(shop.bundle(f"tuned-{number}", adapter=adapter))


def measure(device: DeviceProcess, shop: Workshop, customers: int, updates: int) -> dict[str, Any]:
    load = Load(device)
    threads = [threading.Thread(target=load.ask, daemon=True) for _ in range(customers)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    rows: list[dict[str, Any]] = []
    for number in range(updates):
        offer(shop, number + 1)
        quiet_s = time.monotonic()
        time.sleep(15)
        begin_s = time.monotonic()
        result = device.update()
        end_s = time.monotonic()
        time.sleep(2)
        assert result
        assert result["outcome"] == "updated", result
        usual, during = load.within(quiet_s, begin_s), load.between(begin_s, end_s)
        rows.append(
            {
                "update_s": round(end_s - begin_s, 2),
                "answers": len(during),
                "median_ms": round(1000 * statistics.median(during)),
                "usual_median_ms": round(1000 * statistics.median(usual)),
                "slowest_ms": round(1000 * max(during)),
                "usual_slowest_ms": round(1000 * max(usual)),
                "delay_ms": round(1000 * (max(during) - max(usual))),
                "share_of_the_bytes": round(result["bytes_fetched"] / result["bytes_bundle"], 4),
                **{f"{step['step']}_s": step["took_s"] for step in result["timeline"]},
                "slowest_ms_by_step": {
                    step["step"]: round(1000 * max(load.between(began_s, began_s + step["took_s"]), default=0))
                    for step in result["timeline"]
                    if (began_s := begin_s + step["at_s"])
                },
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    load.is_over.set()
    for thread in threads:
        thread.join()
    failed = sum(status != 200 for _, _, status in load.answers)
    return {"requests": len(load.answers), "failed": failed, "worst_delay_ms": max(r["delay_ms"] for r in rows),
            "updates": rows}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=2)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop.open(Path(folder) / "shop")
        shop.publish(shop.base)
        arguments = [
            str(shop.base.folder), "--state", f"{folder}/state", "--profile", str(shop.profile), "--no-discovery",
            "--device", DEVICE, "--repository", str(shop.repository), "--trust", str(shop.root), "--context", "512",
        ]  # fmt: skip
        device = DeviceProcess(arguments, Path(folder))
        try:
            device.wait_ready()
            offer(shop, 0)
            first = device.update()
            assert first
            assert first["outcome"] == "updated", first
            found = measure(device, shop, args.customers, args.updates)
        finally:
            device.stop()
    print(json.dumps(found, indent=None if args.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
