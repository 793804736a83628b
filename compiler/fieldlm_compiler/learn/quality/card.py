"""A data card: what a data set holds, where it comes from and what was left out, for people and for programs.

card.md   card.json   beside train.jsonl and eval.jsonl; of what customers said only tasks' names
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

FORMAT = "fieldlm.card/1"
JSON, MARKDOWN = "card.json", "card.md"
Line = Mapping[str, Any]


def card(dataset: Mapping[str, Any], lines: Mapping[str, Sequence[Line]], origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card of the data set whose dataset.json and lines these are.

    `origin` is what is known of how its examples were made: names of tasks, tasks left out, what `curate` dropped.
    """
    from fieldlm_compiler.learn.quality.near_copies import conversation, near_copies

    train, held = lines["train"], lines["eval"]
    of = {split: Counter(str(line["task"]) for line in lines[split]) for split in lines}
    customers = {split: {customer_of(line) for line in lines[split]} for split in lines}
    names: Mapping[str, str] = origin.get("names", {})
    texts = [[conversation(line["messages"][:-1]) for line in side] for side in (held, train)]
    answers = [[_answer(line) for line in side] for side in (held, train)]
    copies = near_copies(texts[0], texts[1])
    alike = near_copies(texts[0], texts[1], (answers[0], answers[1]))
    total = of["train"] + of["eval"]
    return {
        "format": FORMAT,
        "dataset": dataset["id"],
        "examples": {split: len(lines[split]) for split in lines},
        "customers": {split: len(customers[split]) for split in lines},
        "customers_in_both": len(customers["train"] & customers["eval"]),
        "held_out_from": origin.get("held_out_from"),
        "near_copies_across": sum(copies),
        "near_copies_with_the_same_answer": sum(alike),
        "tasks": [
            {"id": task, "name": names.get(task, task), "train": of["train"][task], "eval": of["eval"][task]}
            for task in sorted(total, key=lambda task: (-total[task], task))
            if task
        ],
        "without_task": total[""],
        "balance": round(_balance(of["train"]), 3) if any(total) else None,
        "pairs": dataset.get("pairs"),
        "with_tools": sum(bool(line.get("tools")) for line in (*train, *held)),
        "labels": dataset.get("labels", {}),
        "consents": dataset.get("consents", {}),
        "generations": dataset.get("generations", {}),
        "licence": origin.get("licence", ""),
        "left_out": sorted(origin.get("left_out", ())),
        "dropped": origin.get("dropped"),
        "redacted": origin.get("redacted"),
        "replaces": dataset.get("replaces", []),
    }


def customer_of(line: Line) -> str:
    """Return whose a line is: the device's where it gave no session, which older versions did not write."""
    return str(line.get("customer", line["session"]))


def markdown(facts: Mapping[str, Any]) -> str:
    """Return the card as people read it."""
    examples, customers = facts["examples"], facts["customers"]
    split = [(name, f"{examples[name]:,}", f"{customers[name]:,}") for name in examples]
    tasks = [(task["id"], task["name"], task["train"], task["eval"]) for task in facts["tasks"]]
    parts = [
        f"# Data set {facts['dataset']}",
        "What people asked devices and said the right answer was, under the terms of consent below.",
        "## Splits",
        _table(("split", "examples", "customers"), split),
        _about_splits(facts),
        "## Tasks",
        _table(("id", "name", "train", "eval"), tasks, none="No tasks found yet; `fieldlm cluster` finds them."),
        _about_tasks(facts),
        "## Terms",
        _table(("term of consent", "examples"), sorted(facts["consents"].items())),
        f"Licence: {_plain(facts['licence']) or 'not stated; the terms of consent say what it may be used for'}.",
        "## Labels",
        _table(("label", "examples"), sorted(facts["labels"].items())),
        _about_pairs(facts["pairs"]),
        "## What was dropped, and why",
        _counts(("why", "records"), facts["dropped"]),
        "## What stands for what was redacted",
        _counts(("kind", "examples"), facts["redacted"]),
    ]
    return "\n\n".join(parts) + "\n"


def _about_splits(facts: Mapping[str, Any]) -> str:
    since = facts.get("held_out_from")
    both = facts["customers_in_both"]
    told = ["Customers are parted by a digest of their id, for ever: each is on one side with all they said."]
    if both:
        told = ["Some devices name nobody, and their answers are parted one by one: who asked may be on both sides."]
    told += [f"What was said from {since} on is held out as well; nothing in training is newer."] if since else []
    told += [
        f"On both sides: {both}.",
        "Held-out prompts with a near copy in training (Jaccard index of runs of four letters 0.8 or more): "
        f"{facts['near_copies_across']}, with the same answer {facts['near_copies_with_the_same_answer']}.",
    ]
    return " ".join(told)


def _about_pairs(pairs: Mapping[str, int] | None) -> str:
    if not pairs or not any(pairs.values()):
        return "No answer that was corrected stands beside its correction."
    told = ", ".join(f"{count:,} {split}" for split, count in pairs.items())
    return f"Corrections with the answer that they reject beside them, for `fieldlm tune --preferences`: {told}."


def _about_tasks(facts: Mapping[str, Any]) -> str:
    told = [f"Left out by people: {', '.join(facts['left_out']) or 'none'}."]
    if facts["tasks"]:
        about = "entropy of the training examples over tasks, 1 where all are as large"
        told.insert(0, f"Balance ({about}): {facts['balance']:g}.")
    if facts["tasks"] and facts["without_task"]:
        told.append(f"Examples without a task: {facts['without_task']}.")
    return " ".join(told)


def _answer(line: Line) -> str:
    answer = line["messages"][-1]
    return json.dumps(answer.get("tool_calls"), sort_keys=True) if answer.get("tool_calls") else str(answer["content"])


def _balance(counts: Counter[str]) -> float:
    """Return the entropy of the counts as a share of the most that there could be."""
    if len(counts) < 2:
        return 1.0
    shares = [count / counts.total() for count in counts.values()]
    return -sum(share * math.log(share) for share in shares) / math.log(len(counts))


def _counts(head: Sequence[str], counts: Mapping[str, int] | None) -> str:
    """Return a table of counts; that there are none is told apart from that nobody knows."""
    return "Nothing is known of it." if counts is None else _table(head, sorted(counts.items()))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, none: str = "None.") -> str:
    if not rows:
        return none
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Return a text that no Markdown is made of."""
    return " ".join("".join(f"\\{each}" if each in "\\`*_[]<>|#" else each for each in text).split())
