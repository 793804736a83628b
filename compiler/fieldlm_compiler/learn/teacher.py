"""Labels of a large model: how far its answers to a prompt agree with each other, and with customers' corrections."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fieldlm.core.wording import counted
from fieldlm_compiler.learn.agreement import answer_key

ROUTE = "large"
"""What a record's `route` says where the large model answered."""


class Labelled(Protocol):
    """What is read of an example."""

    @property
    def prompt_key(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def label_source(self) -> str: ...


def is_taught(row: Mapping[str, Any]) -> bool:
    """Whether the large model gave the answer of a joined row, and nobody disliked it."""
    return str(row.get("route") or "").casefold() == ROUTE and row["rating"] != "down"


def answers_of(examples: Sequence[Labelled]) -> dict[str, Counter[str]]:
    """Return for each prompt that the large model answered what it said, and how often."""
    said: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        if example.label_source == ROUTE:
            said[example.prompt_key][answer_key(example.answer)] += 1
    return dict(said)


def rate(said: Counter[str], answer: str) -> float:
    """Return the share of the large model's answers to a prompt that say what `answer` does."""
    return round(said[answer_key(answer)] / said.total(), 3)


def report(examples: Sequence[Labelled], said: Mapping[str, Counter[str]]) -> dict[str, Any]:
    """Return what curate.json says of the large model.

    `agreement` is the mean over prompts that it answered more than once of the share of its commonest answer, and
    `corrected_alike` the share of corrections, on prompts that it answered, that are its commonest answer; null where
    there are none.
    """
    repeated = [counted for counted in said.values() if counted.total() > 1]
    shares = [counted.most_common(1)[0][1] / counted.total() for counted in repeated]
    corrections = [e for e in examples if e.label_source == "correction" and e.prompt_key in said]
    alike = [said[e.prompt_key].most_common(1)[0][0] == answer_key(e.answer) for e in corrections]
    return {
        "answers": sum(counted.total() for counted in said.values()),
        "prompts": len(said),
        "repeated_prompts": len(repeated),
        "agreement": round(sum(shares) / len(shares), 3) if shares else None,
        "undecided_prompts": sum(share <= 0.5 for share in shares),
        "corrected_prompts": len(corrections),
        "corrected_alike": round(sum(alike) / len(alike), 3) if alike else None,
    }


def told(report: Mapping[str, Any]) -> str:
    """Return the line that `curate` shows of a report."""
    return (
        f"large model: {counted(report['answers'], 'answer')} to "
        f"{counted(report['prompts'], 'prompt')}; agreement with itself on "
        f"{report['repeated_prompts']} that it answered again: {_share(report['agreement'])}, "
        f"with {counted(report['corrected_prompts'], 'correction')}: {_share(report['corrected_alike'])}"
    )


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"
