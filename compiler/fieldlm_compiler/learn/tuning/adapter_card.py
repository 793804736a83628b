"""The card of an adapter: README.md beside its weights, what it was made of and how, for whoever finds the folder.

PEFT writes one whose text is blanks to be filled in; its head, which hubs read, stays.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fieldlm.core.files import write_whole
from fieldlm_compiler.learn.tuning.recipe import NF4

CARD = "README.md"
_HEAD = re.compile(r"---\n.*?\n---\n", re.DOTALL)


def write_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the card of the adapter in `folder`, whose tune.json holds `facts`."""
    path = folder / CARD
    head = _HEAD.match(path.read_text(encoding="utf-8")) if path.is_file() else None
    write_whole(path, f"{head[0] if head else ''}{_text(facts)}".encode())


def _text(facts: Mapping[str, Any]) -> str:
    recipe = facts["recipe"]
    rows = [
        ("base, SHA-256 of its weights", facts["base_sha256"]),
        ("began at the adapter, SHA-256", facts["start_sha256"] or "none: afresh"),
        ("data set", facts["dataset"] or "without a name"),
        ("examples", facts["examples"]),
        ("rank, alpha", f"{recipe['rank']}, {recipe['alpha']}"),
        ("passes, steps", f"{recipe['epochs']:g}, {facts['steps']}"),
        ("computed on", f"{facts['device']}, {facts['precision']}"),
        ("the frozen base while it was tuned", _base(facts)),
        ("held for blocks", ", ".join(f"{count} × {kind}" for kind, count in facts["blocks"].items()) or "none"),
        ("held-out answers right to the token", _exact(facts)),
        ("loss on held-out answers, nats a token", f"{facts['eval_loss_before']} → {facts['eval_loss_after']}"),
        *_preferences(facts["preferences"]),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        "\n# A LoRA adapter\n\nTuned by `fieldlm tune` on the answers alone; `tune.json` beside it has all values.\n\n"
        f"| what | value |\n| --- | --- |\n{table}\n"
    )


def _base(facts: Mapping[str, Any]) -> str:
    held = "4 bits, NF4 (QLoRA, arXiv:2305.14314)" if facts["recipe"].get("base_weights") == NF4 else "whole"
    return f"{held}, {facts['base_mb']:g} MB"


def _exact(facts: Mapping[str, Any]) -> str:
    before, after = (list(facts[f"eval_exact_{when}"].values()) for when in ("before", "after"))
    total = sum(count for _, count in after)
    return f"{sum(right for right, _ in before)} → {sum(right for right, _ in after)} of {total}"


def _preferences(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return [("preferences", "none: trained on right answers alone")]
    pairs = found["pairs"]
    rows = [("preferences", f"ORPO (arXiv:2403.07691), weight {found['weight']:g}, {pairs['train']} pairs")]
    if found["eval_preferred_after"] is not None:
        before, after = found["eval_preferred_before"], found["eval_preferred_after"]
        rows.append((f"right answer likelier, of {pairs['eval']} held-out pairs", f"{before:.0%} → {after:.0%}"))
        rows.append(("log odds ratio on them", f"{found['eval_log_odds_before']} → {found['eval_log_odds_after']}"))
    return rows
