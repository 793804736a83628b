"""What the story came to, in lines for a terminal."""

import json
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm_compiler.learn.evaluate import Score

Facts = dict[str, Any]
UNSEEN = "not measured: an earlier run saw it"


def candidates(bundle: Path) -> list[Facts]:
    """Return size and speed of every candidate that was compiled on the way to `bundle`."""
    report = json.loads(bundle.with_name(f"{bundle.name}.report.json").read_text())
    return [
        {
            "name": row["quant"],
            "size_mb": row["bytes"] / 1e6,
            "tokens_per_s": row["tokens_per_s"],
            "agreement": row["agreement"],
            "chosen": row["quant"] == report["chosen"],
        }
        for row in report["candidates"]
    ]


def words(report: Facts, folder: Path) -> str:
    """Return the figures of `report`, and where the rest of them lies."""
    update, telemetry = report["update"], report["telemetry"]
    produced = sum(side["produced"] for side in telemetry["streams"].values())
    stored = sum(side["stored"] for side in telemetry["streams"].values())
    before, after = report["before"], report["after"]
    asked, fetched = update["requests"], update["fetched_bytes"]
    rows = [
        ("exact match before", _share(before)),
        ("exact match after", _share(after)),
        ("  of strangers, who order in new words", _share(after["strangers"])),
        ("records made on the device", f"{produced:,}"),
        ("records in the store", f"{stored:,}"),
        ("requests during the update", UNSEEN if asked is None else f"{asked:,}, {update['failed']} failed"),
        ("adapter", f"{update['adapter_bytes'] / 1e6:.2f} MB"),
        ("whole bundle", f"{update['bundle_bytes'] / 1e6:.1f} MB"),
        ("update fetched", _fetched(fetched, update["bundle_bytes"])),
        *((stage["title"], f"{stage['seconds']:.0f} s{_resumed(stage)}") for stage in report["stages"]),
        ("all stages", time_of(report)),
    ]
    return "\n" + terminal.table(rows, ("what", "result")) + f"\n\n{folder / 'report.json'}\n{folder / 'report.html'}"


def time_of(report: Facts) -> str:
    """Return how long the story took beside what was foreseen; of one that was interrupted only what was measured."""
    took = f"{report['wall_s'] / 60:.1f} minutes"
    if report["interrupted"]:
        return f"{took} at least: it was interrupted, and of a stage that went on only the last run is counted"
    return f"{took}, {report['foreseen_s'] / 60:.1f} were foreseen"


def _fetched(fetched: int | None, whole: int) -> str:
    if fetched is None:
        return UNSEEN
    return f"{fetched / 1e6:.2f} MB, 1/{whole / max(1, fetched):.0f} of it"


def _resumed(stage: Facts) -> str:
    return ", went on after an interruption" if stage["resumed"] else ""


def _share(facts: Facts) -> str:
    return str(Score(right=facts["right"], total=facts["total"]))
