"""The table of a round: one row a task, with what it costs, who answers it how well, and who should."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from msgspec import UnsetType

from fieldlm.core import terminal
from fieldlm.core.wording import counted
from fieldlm_compiler.learn.cluster import Task
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.rounds import calls_saved
from fieldlm_compiler.rounds.advice import advise
from fieldlm_compiler.rounds.state import BaseMatch, Exact, FinishedRound, RoundDocument, TaskCost, TaskRow
from fieldlm_compiler.rounds.traffic import Traffic

HEAD = ("task", "name", "share", "examples", "calls", "tokens in/out", "small/large/up", "base", "before", "now", "who")

BASE_HEAD = (
    "base",
    "licence",
    "as",
    "tuned from",
    "ms/answer",
    "bundle MB",
    "update MB",
    "memory MB",
    "tokens/s",
    "right",
)
"""Memory and tokens a second are foreseen on the device, ms are of an answer here."""


class _Asked(Protocol):
    """Per held-out example, whether each generation answered it right."""

    @property
    def base(self) -> list[bool]: ...
    @property
    def previous(self) -> list[bool] | None: ...
    @property
    def this(self) -> list[bool] | None: ...


def exact(right: Sequence[bool]) -> Exact:
    return Exact(right=sum(right), total=len(right))


def rows(
    examples: Sequence[CuratedExample],
    tasks: Path,
    looked: Traffic,
    held: Sequence[CuratedExample],
    exams: _Asked,
    *,
    enough: float,
    is_accepted: bool,
) -> list[TaskRow]:
    """Return a row for every task, the one that is asked for most first; advised is on what serves after the round."""
    found = msgspec.convert(msgspec.json.decode(tasks.read_bytes())["tasks"], list[Task])
    counts = Counter(example.task for example in examples)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for at, example in enumerate(held):
        places[example.task].append(at)

    def of(right: list[bool] | None, task: str) -> Exact | None:
        return None if right is None else exact([right[at] for at in places[task]])

    made: list[TaskRow] = []
    for task in found:
        base, previous, this = of(exams.base, task.id), of(exams.previous, task.id), of(exams.this, task.id)
        serving = (this if is_accepted else None) or previous or base or Exact(right=0, total=0)
        advice, reason = _left_out(counts[task.id]) if task.excluded else advise(serving, enough)
        made.append(
            TaskRow(
                id=task.id,
                name=task.name,
                example=task.example,
                examples=counts[task.id],
                share=round(looked.share(task.id), 4),
                cost=looked.costs.get(task.id, TaskCost()),
                base=base or Exact(right=0, total=0),
                previous=previous,
                this=this,
                advice=advice,
                reason=reason,
            )
        )
    return sorted(made, key=lambda row: (-row.share, -row.examples, row.id))


def _left_out(examples: int) -> tuple[Literal["left out"], str]:
    return "left out", f"left out by people: none of its {counted(examples, 'example')} is trained on or judged by"


def text(done: FinishedRound) -> str:
    """Return what the terminal says of a round."""
    document = done.document
    lines = [terminal.table([_cells(row) for row in document.tasks], HEAD), ""]
    lines += [f"  {row.id}: {row.reason}" for row in document.tasks]
    lines += [f"  by hand: {edit}" for edit in document.edits]
    lines += ["", f"  the whole: base {_spelt(document.base)}, before {_spelt(document.previous)}, "
              f"now {_spelt(document.this)}"]  # fmt: skip
    lines += [*bases_text(document), *groups_text(document)]
    lines += [*classifiers_text(document), *calls_saved.text(document)]
    lines += [f"  {_mark(test.verdict)} {test.name}: {test}: {test.verdict}" for test in document.tests]
    lines += [f"round {document.number} is {document.decision}" + "".join(f"\n  ✗ {why}" for why in document.reasons)]
    return "\n".join([*lines, f"  {done.folder / 'report.html'}"])


def bases_text(document: RoundDocument) -> list[str]:
    """Return what is said of the bases that were weighed; nothing where there was one."""
    choice = document.base_choice
    if isinstance(choice, UnsetType):
        return []
    tried = [each for each in choice.bases if each.right]
    # Every one that was tried answered the same tasks.
    tasks = tried[0].tasks if tried else []
    rows_of = [base_cells(each) for each in tried]
    lines = [f"  base: {choice.chosen}", *([f"  note: {choice.ships}"] if choice.ships else [])]
    if tried:
        drawn = terminal.table(rows_of, [*BASE_HEAD, *(task.id for task in tasks)])
        lines += [f"    {line}" for line in drawn.splitlines()]
    return [*lines, *(f"    {'✓' if each.is_taken else '·'} {each.name}: {each.reason}" for each in choice.bases)]


def base_cells(each: BaseMatch) -> list[str]:
    """Return a base that was tried as a row under BASE_HEAD and a column for each task."""
    figures = (each.ms, each.bundle_mb, each.update_mb, each.memory_mb, each.tokens_per_s)
    counts = [found.right or Exact(right=0, total=0) for found in (each, *each.tasks)]
    right, *tasks = (f"{found.right}/{found.total}" for found in counts)
    return [
        each.name, each.licence, each.quant, "last" if each.began_at == "last" else "afresh",
        *("–" if figure is None else f"{figure:,.1f}" for figure in figures), right, *tasks,
    ]  # fmt: skip


def groups_text(document: RoundDocument) -> list[str]:
    """Return what is said of adapters for groups of tasks; nothing where none were tried."""
    if not document.chosen:
        return []
    lines = [f"  adapters: {document.chosen}"]
    for group in document.groups:
        lines.append(f"    {'✓' if group.is_taken else '·'} {group.id} ({group.name}): {group.reason}")
        lines += [f"        {task.name}: one for all {task.one}, its own {task.own}" for task in group.tasks]
    return lines


def classifiers_text(document: RoundDocument) -> list[str]:
    """Return what is said of a classifier; nothing where none was tried."""
    if not document.classified:
        return []
    rows = (
        f"    {'✓' if each.is_taken else '·'} {each.id} ({each.name}): {each.reason}" for each in document.classifiers
    )
    return [f"  classifier: {document.classified}", *rows]


def as_json(document: RoundDocument) -> dict[str, object]:
    """Return round.json with shares and intervals beside the counts."""
    plain: dict[str, object] = msgspec.to_builtins(document)
    rows_of = [
        msgspec.to_builtins(row)
        | {name: _facts(each) for name in ("base", "previous", "this") if (each := getattr(row, name))}
        for row in document.tasks
    ]
    whole = {name: _facts(each) for name in ("base", "previous", "this") if (each := getattr(document, name))}
    return plain | whole | {"tasks": rows_of}


def _facts(found: Exact) -> dict[str, float]:
    low, high = found.score.interval
    return {"right": found.right, "total": found.total, "share": found.score.share, "low": low, "high": high}


def _cells(row: TaskRow) -> list[str]:
    cost = row.cost
    return [
        row.id,
        row.name,
        f"{row.share:.0%}",
        f"{row.examples:,}",
        f"{cost.calls:,}",
        f"{cost.prompt_tokens:,}/{cost.completion_tokens:,}",
        f"{cost.small}/{cost.large}/{cost.escalated}",
        *(_spelt(each) for each in (row.base, row.previous, row.this)),
        row.advice,
    ]


def _spelt(found: Exact | None) -> str:
    if found is None or not found.total:
        return "–"
    low, high = found.score.interval
    return f"{found.score.share:.0%} ({low:.0%}–{high:.0%})"


def _mark(verdict: str) -> str:
    return {"worse": "✗", "better": "✓", "held": "✓"}.get(verdict, "·")
