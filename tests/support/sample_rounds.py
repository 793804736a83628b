"""The pages of made-up rounds of learning, whose words a test may change."""

import math
from collections.abc import Callable
from typing import Any

from fieldlm_compiler.rounds.gate import PairedTest
from fieldlm_compiler.rounds.overview import cells
from fieldlm_compiler.rounds.report import page, rounds_page
from fieldlm_compiler.rounds.state import (
    FORMAT,
    BaseChoice,
    BaseMatch,
    BaseTask,
    ClassifierMatch,
    Exact,
    GroupMatch,
    RoundDocument,
    TaskCost,
    TaskMatch,
    TaskRow,
)

Spell = Callable[[str], str]
SHARES = ((0.04, 0.62, 0.91), (0.3, 0.88, 0.93), (0.0, 0.0, 0.55), (0.1, 0.9, 0.7))
NAMES = ("order: latte oat please", "opening_hours: open sunday", "refund: money back", "allergens: nuts gluten")
ADVICE = (
    ("small", "small model takes it: 91% (91/100), 95 % interval 84%–95%, wanted 80%"),
    ("too few", "too few examples yet (30 of 42 held out): 93% (28/30), 95 % interval 79%–98%, wanted 80%"),
    ("large", "leave it with the large model: 55% (22/40), 95 % interval 40%–69%, wanted 80%"),
    ("large", "leave it with the large model: 70% (35/50), 95 % interval 56%–81%, wanted 80%"),
)
TOTALS = (100, 30, 40, 50)


def round_pages(spell: Spell) -> dict[str, str]:
    """Return the page of one round, and that of three."""
    rounds = [sample_round(spell, number) for number in (1, 2, 3)]
    table = [cells(each) for each in rounds]
    title = "3 rounds, 2 accepted"
    due = f"a round is due: 96 of 412 requests belong to no known task; {spell('order')}: 30 of 100 corrected"
    return {"round": page(rounds[-1]), "rounds": rounds_page(title, rounds, table, due)}


def sample_round(spell: Spell, number: int = 3) -> RoundDocument:
    """Return a round whose figures are made up; the third is refused."""
    is_refused = number == 3
    why = f"task-3 ({NAMES[3]}) got worse: -20.0 points on 50 held-out examples (11 lost, 1 gained, p = 0.003)"
    return RoundDocument(
        format=FORMAT,
        number=number,
        began=f"2026-11-{7 * number:02d}T08:30:00+00:00",
        decision="refused" if is_refused else "accepted",
        reasons=[spell(why)] if is_refused else [],
        parent=number - 1 or None,
        generation=spell("a1b2c3d4e5f6"),
        made_of={"base": spell("smollm2"), "profile": spell("pi5-8gb"), "consents": ["kiosk-2026"]},
        stages=[
            {"stage": spell(name), "seconds": 12.3 * (at + 1), "inputs": "0" * 64}
            for at, name in enumerate(("curate", "tasks", "dataset", "base", "tune", "bundle", "answers", "answers"))
        ],
        curated={
            "generations": 9_120, "examples": 2_200 * number,
            "dropped": {spell("no consent"): 4_310, spell("no label"): 2_011, spell("over a session's share"): 12},
        },
        sealed={"held out before, stays so": 41, "rehearsed": 17},
        redacted={spell("redacted: name"): 212, "redacted: phone": 9},
        dataset={},
        tune={
            "examples": 1_980, "steps": 400, "began_at": "last", "eval_loss_before": 1.91, "eval_loss_after": 0.11,
            "losses": [0.1 + 2.4 * math.exp(-step / 60) + 0.06 * math.sin(step * 1.7) for step in range(400)],
        },
        requests={"looked at": 9_120, "without words": 4_310, "of no known task": 233},
        tasks=_tasks(spell, number),
        base=Exact(right=24 * number, total=220),
        previous=Exact(right=120 + 20 * number, total=220) if number > 1 else None,
        this=Exact(right=150 + 15 * number, total=220),
        tests=_tests(spell),
        groups=_groups(spell),
        chosen=spell("1 group of 2 with an adapter of its own, one for the rest"),
        classifiers=_classifiers(spell),
        classified=spell("answers 1 task of 2 where it is sure, p ≥ 0.96; 84 kB"),
        base_choice=_bases(spell),
        sure=[(0.2, 20, 3), (0.6, 30, 18), (0.9, 60, 56), (0.98, 90, 90)],
    )  # fmt: skip


def _bases(spell: Spell) -> BaseChoice:
    def tried(name: str, right: int, mb: float, **more: Any) -> BaseMatch:
        tasks = [
            BaseTask(
                id=f"task-{at}", name=spell(NAMES[at]), right=Exact(right=12 if at else right - 12, total=60 - 20 * at)
            )
            for at in range(2)
        ]
        return BaseMatch(
            name=spell(name), source=name, licence=spell("apache-2.0"), family="llama", parameters=135_000_000,
            quant="Q8_0", weights_mb=mb, memory_mb=3 * mb, tokens_per_s=None, began_at="fresh", bundle_mb=mb + 10,
            update_mb=mb + 10, ms=210.4, right=Exact(right=right, total=100), tasks=tasks, **more,
        )  # fmt: skip

    why = spell("taken, the smallest that is not worse beyond chance: 52 of 100 watched examples right")
    return BaseChoice(
        chosen=f"smollm2: {why}",
        ships=spell("devices have another base, smollm: an update to smollm2 fetches a whole new base, 154.6 MB"),
        bases=[
            tried("smollm2", 52, 145.0, is_taken=True, reason=why),
            tried("hf:Qwen/Qwen3-0.6B", 54, 640.0, reason=spell("not taken, for smollm2 is smaller")),
            BaseMatch(name=spell("folder/of/mine"), reason=spell("its licence is not known")),
        ],
    )


def _groups(spell: Spell) -> list[GroupMatch]:
    match = TaskMatch(id="task-0", name=spell(NAMES[0]), one=Exact(right=31, total=40), own=Exact(right=39, total=40))
    why = spell("better: 40 watched examples, 8 gained, 0 lost, p = 0.0039")
    few = spell("9: too few examples for an adapter of its own, want 16")
    return [
        GroupMatch(id=spell("scenario-0"), name=spell("at the counter"), is_taken=True, reason=why, gained=8, p=0.0039,
                   tasks=[match]),
        GroupMatch(id="scenario-1", name="elsewhere", is_taken=False, reason=few),
    ]  # fmt: skip


def _classifiers(spell: Spell) -> list[ClassifierMatch]:
    why = "taken: 3 answers; of 31 watched requests that it answers 31 right, 30 by the model; 0.3 ms, the model 212 ms"
    opened = "its answers are open: 37 answers in 40 examples, and those that several customers gave make up 8% of them"
    return [
        ClassifierMatch(id=spell("task-1"), name=spell(NAMES[1]), is_taken=True, reason=spell(why), answers=3, given=31,
                        right=31, model_right=30, ms=0.3, model_ms=212.0),
        ClassifierMatch(id="task-0", name=spell(NAMES[0]), is_taken=False, reason=spell(opened)),
    ]  # fmt: skip


def _tasks(spell: Spell, number: int) -> list[TaskRow]:
    return [
        TaskRow(
            id=spell(f"task-{at}"),
            name=spell(name),
            example=spell("two large lattes with oat milk, please"),
            examples=10 * total,
            share=total / 250,
            cost=TaskCost(
                calls=40 * total, prompt_tokens=5_200 * total, completion_tokens=880 * total, small=33 * total,
                large=5 * total, escalated=2 * total, corrected=3 * total,
            ),
            base=Exact(right=round(base * total), total=total),
            previous=Exact(right=round(before * total), total=total) if number > 1 else None,
            this=Exact(right=round(now * total), total=total),
            advice="small" if at == 0 else "too few" if at == 1 else "large",
            reason=spell(ADVICE[at][1]),
        )
        for at, (name, total, (base, before, now)) in enumerate(zip(NAMES, TOTALS, SHARES, strict=True))
    ]  # fmt: skip


def _tests(spell: Spell) -> list[PairedTest]:
    return [
        PairedTest(task="", name="the whole", examples=220, lost=14, gained=61, p=1e-7, verdict="better"),
        *(
            PairedTest(
                task=f"task-{at}", name=spell(name), examples=total, lost=3 * at, gained=2, p=0.4, verdict="held"
            )
            for at, (name, total) in enumerate(zip(NAMES[:3], TOTALS[:3], strict=True))
        ),
        PairedTest(
            task="task-3", name=spell(NAMES[3]), examples=50, lost=11, gained=1, p=0.003, verdict="worse", changed=4
        ),
    ]
