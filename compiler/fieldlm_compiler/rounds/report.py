"""Draw a round: one self-contained page, no script and nothing from elsewhere."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import UnsetType

from fieldlm.core import charts
from fieldlm.core.charts import Scale, Svg
from fieldlm.core.pages import render
from fieldlm.core.wording import counted
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.rounds import calls_saved
from fieldlm_compiler.rounds.state import Exact, RoundDocument, TaskRow
from fieldlm_compiler.rounds.table import BASE_HEAD, base_cells

Bars = list[tuple[str, Svg, str]]
MOST_POINTS, MOST_TICKS = 300, 12
KINDS = (("old", "base", "base as it is"), ("read", "previous", "round before"), ("new", "this", "this round"))


def page(document: RoundDocument) -> str:
    """Return the whole page for what round.json holds."""
    return render(
        "fieldlm_compiler.rounds",
        "round.html",
        title=f"fieldlm: round {document.number}",
        round=document,
        before=document.previous or document.base,
        whole=_bars("", document),
        tasks=[(row, _bars(row.name, row)) for row in document.tasks],
        kinds=[(kind, words) for kind, field, words in KINDS if getattr(document, field) is not None],
        advice=[(f"{row.name} ({row.id})", row.advice, row.reason) for row in document.tasks],
        costs=[_cost(row) for row in document.tasks],
        tests=[
            (test.name, test.examples, test.lost, test.gained, test.changed, f"{test.p:.2g}", test.verdict)
            for test in document.tests
        ],
        losses=losses(document.tune.get("losses", [])),
        groups=[
            (group.name, task.name, str(task.one), str(task.own), "its own" if group.is_taken else "one for all")
            for group in document.groups
            for task in group.tasks
        ],
        classifiers=[
            (
                each.name,
                each.answers or "–",
                each.given,
                each.right,
                each.model_right,
                f"{each.ms:.1f}",
                f"{each.model_ms:.0f}",
            )
            for each in document.classifiers
            if each.answers
        ],
        bases=_bases(document),
        saved=calls_saved.rows(document),
        saved_head=calls_saved.HEAD,
        saved_curve=calls_saved.curve(document),
        preferred=_preferred(document.tune.get("preferences")),
        dropped=sorted(document.curated["dropped"].items()),
        sealed=sorted((document.sealed | document.redacted).items()),
        stages=[(stage["stage"], f"{stage['seconds']:.1f}") for stage in document.stages],
    )


def _bases(document: RoundDocument) -> dict[str, Any] | None:
    """Return what is said of the bases that were weighed, with a table of prices and one of tasks; None for one."""
    choice = document.base_choice
    if isinstance(choice, UnsetType):
        return None
    tried = [each for each in choice.bases if each.right]
    return {
        "chosen": choice.chosen,
        "ships": choice.ships,
        "price_head": [name if at in (0, 1, 2, 3) else f"#{name}" for at, name in enumerate(BASE_HEAD)],
        "prices": [base_cells(each)[: len(BASE_HEAD)] for each in tried],
        # The names of bases are as long as people make them: they are in cells that break, and in no heading.
        "tasks": [
            (task.name, each.name, str(task.right), task.gained, task.lost)
            for row in zip(*(each.tasks for each in tried), strict=True)
            for each, task in zip(tried, row, strict=True)
        ],
        "reasons": [f"{each.name}: {each.reason}" for each in choice.bases],
    }


def _preferred(found: dict[str, Any] | None) -> str:
    """Return what tune.json says of preferences, as a sentence to go on with; none where there were none."""
    if not found:
        return ""
    told = f" {counted(found['pairs']['train'], 'correction')} stood against what was answered before"
    if found["eval_preferred_after"] is None:
        return f"{told}."
    before, after = found["eval_preferred_before"], found["eval_preferred_after"]
    return f"{told}; of those to watch with {before:.0%} were likelier than that before, {after:.0%} after."


def redacted(examples: Sequence[CuratedExample]) -> dict[str, int]:
    """Count the examples in which something was redacted, by what it was."""
    return dict(Counter(f"redacted: {kind}" for example in examples for kind in example.redacted))


def losses(found: Sequence[float]) -> Svg | None:
    """Return the loss over the steps of the training; of a long one the means of neighbours."""
    if len(found) < 2:
        return None
    size = -(-len(found) // MOST_POINTS)
    points = [
        (min(at + size, len(found)) - 1.0, sum(part) / len(part))
        for at in range(0, len(found), size)
        if (part := found[at : at + size])
    ]
    top = max(loss for _, loss in points)
    last = len(found) - 1
    return charts.plot(
        "Loss of every step",
        Scale(low=0.0, high=float(last), ticks=((0.0, "step 1"), (float(last), f"step {len(found)}"))),
        Scale(low=0.0, high=top, ticks=((0.0, "0"), (top, f"{top:.2f}"))),
        line=points,
    )


def trend(rounds: Sequence[RoundDocument]) -> Svg | None:
    """Return the exact match of what was in service after each round, on the examples that each held out."""
    points = [(float(each.number), shown.score.share) for each in rounds if (shown := in_service(each)).total]
    if not points:
        return None
    first, last = points[0][0], points[-1][0]
    return charts.plot(
        "Exact match after each round",
        Scale(
            low=first - 0.5,
            high=last + 0.5,
            ticks=[(x, f"{x:.0f}") for x, _ in points[:: -(-len(points) // MOST_TICKS)]],
        ),
        Scale(low=0.0, high=1.0, ticks=((0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %"))),
        line=points,
        dots=[
            charts.Dot(x=x, y=y, kind="new" if each.decision == "accepted" else "old", words=f"{y:.0%}")
            for (x, y), each in zip(points, (r for r in rounds if in_service(r).total), strict=True)
        ],
    )


def in_service(document: RoundDocument) -> Exact:
    """Return the exact match of the bundle that serves after a round."""
    return _serving(document, document)


def _serving(document: RoundDocument, scored: RoundDocument | TaskRow) -> Exact:
    accepted = scored.this if document.decision == "accepted" else None
    return accepted or scored.previous or scored.base


def rounds_page(title: str, rounds: Sequence[RoundDocument], rows: Sequence[Sequence[str]], due: str) -> str:
    """Return the page of all rounds."""
    return render(
        "fieldlm_compiler.rounds",
        "rounds.html",
        title=title,
        trend=trend(rounds),
        rows=rows,
        due=due,
        tasks=[
            (row.name, row.example, f"{row.share:.1%}", str(_serving(rounds[-1], row)), row.advice)
            for row in rounds[-1].tasks
        ],
    )


def _bars(name: str, scored: RoundDocument | TaskRow) -> Bars:
    drawn: Bars = []
    for kind, field, words in KINDS:
        found: Exact | None = getattr(scored, field)
        if found is None:
            continue
        low, high = found.score.interval
        label = f"{name}, {words}" if name else words
        picture = charts.bar(label, [(kind, found.score.share)], interval=(low, high) if found.total else None)
        drawn.append((words, picture, str(found) if found.total else "nothing held out"))
    return drawn


def _cost(row: TaskRow) -> tuple[Any, ...]:
    cost = row.cost
    return (
        row.name,
        f"{row.share:.1%}",
        f"{row.examples:,}",
        f"{cost.calls:,}",
        f"{cost.prompt_tokens:,}",
        f"{cost.completion_tokens:,}",
        f"{cost.small:,}",
        f"{cost.large:,}",
        f"{cost.escalated:,}",
        f"{cost.corrected:,}",
    )
