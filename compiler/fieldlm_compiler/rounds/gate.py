"""The gate of a round: it ships only if no earlier task gets worse and the whole gets better.

Both generations answer the same held-out examples, so only those count on which they differ: `lost` were right and are
wrong now, `gained` the other way round. If nothing had changed, each of them would fall on either side as a coin does;
the chance of so many losses is exact (the sign test on discordant pairs: Q. McNemar, Psychometrika 12, 1947). A task is
worse when it lost more than `MARGIN` of its examples net and chance does not explain it. Many tasks are looked at at
once, so what chance may explain is held at `LEVEL` over all of them (Y. Benjamini and Y. Hochberg, JRSS B 57, 1995):
without a single task that is worse, one round in twenty is refused by mistake at most. A loss in fewer than five
examples is never proof of anything (2⁻⁴ > 0.05), so all earlier tasks are tested together, too.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

MARGIN = 0.01
LEVEL = 0.05
WHOLE, TOGETHER = "", "together"
Name = TypeVar("Name", bound=Hashable)
Verdict = Literal["better", "held", "worse", "too few to tell", "let go"]


class PairedTest(msgspec.Struct, frozen=True, kw_only=True):
    """Two generations on the same held-out examples of a task. `p` is how likely so many losses are by chance.

    Of the whole, whose `task` is "", it is how likely so many gains are.
    """

    task: str
    name: str
    examples: int
    lost: int
    gained: int
    p: float
    verdict: Verdict
    changed: int = 0
    """Examples that the earlier round was held to and that people answer otherwise now: they are not counted here."""

    @property
    def change(self) -> float:
        """What was gained, as a share of the examples; below 0 for a loss."""
        return (self.gained - self.lost) / self.examples if self.examples else 0.0

    def __str__(self) -> str:
        points = f"{100 * self.change:+.1f} points"
        return (
            f"{points} on {self.examples} held-out examples ({self.lost} lost, {self.gained} gained, p = {self.p:.2g})"
        )


Pairs = Sequence[tuple[bool, bool]]
"""Whether an example was right before, and is now."""


class EarlierTask(msgspec.Struct, kw_only=True):
    """What an earlier round was held to in a task: pairs whose answer still holds, and how many were `changed`."""

    name: str
    pairs: list[tuple[bool, bool]]
    changed: int = 0


def compare_tasks(tasks: Mapping[str, EarlierTask], *, let_go: frozenset[str] = frozenset()) -> list[PairedTest]:
    """Test every task for a loss, and all together; those in `let_go`, by id or name, may lose."""
    names = {task: each.name for task, each in tasks.items()} | {TOGETHER: "all earlier tasks together"}
    pairs = {task: each.pairs for task, each in tasks.items()}
    kept = [pair for task, each in pairs.items() if not let_go & {task, names[task]} for pair in each]
    pairs |= {TOGETHER: kept} if len(tasks) > 1 else {}
    counted = {task: lost_and_gained(each) for task, each in pairs.items()}
    chances = {task: chance(lost, gained) for task, (lost, gained) in counted.items()}
    alarms = rejected(chances)
    return [
        PairedTest(
            task=task,
            name=names[task],
            examples=len(pairs[task]),
            lost=lost,
            gained=gained,
            p=round(chances[task], 6),
            changed=tasks[task].changed if task in tasks else sum(each.changed for each in tasks.values()),
            verdict=_verdict(
                len(pairs[task]), lost, gained, is_alarm=task in alarms, is_let_go=bool(let_go & {task, names[task]})
            ),
        )
        for task, (lost, gained) in counted.items()
    ]


def compare_whole(pairs: Pairs) -> PairedTest:
    """Test whether the whole is better."""
    lost, gained = lost_and_gained(pairs)
    p = chance(gained, lost)
    verdict: Verdict = "better" if gained > lost and p <= LEVEL else "held"
    return PairedTest(
        task=WHOLE, name="the whole", examples=len(pairs), lost=lost, gained=gained, p=round(p, 6), verdict=verdict
    )


def chance(ones: int, others: int) -> float:
    """Return how likely `ones` or more of all are on one side if a coin decides."""
    from scipy.stats import binomtest

    return float(binomtest(ones, ones + others, alternative="greater").pvalue) if ones + others else 1.0


def rejected(chances: Mapping[Name, float], level: float = LEVEL) -> set[Name]:
    """Return the names of the tests that chance does not explain, by Benjamini and Hochberg's step-up rule."""
    ranked = sorted(chances, key=chances.__getitem__)
    last = max((at for at, name in enumerate(ranked, 1) if chances[name] <= level * at / len(ranked)), default=0)
    return set(ranked[:last])


def reasons(tests: Sequence[PairedTest], whole: PairedTest) -> list[str]:
    """Return why a round with these outcomes is not to be shipped; nothing if it is."""
    worse = [test for test in tests if test.verdict == "worse"]
    alone = [test for test in worse if test.task != TOGETHER]
    found = [f"{_named(test)} got worse: {test}" for test in alone or worse]
    return found if whole.verdict == "better" else [*found, f"the whole is not shown to be better: {whole}"]


def _named(test: PairedTest) -> str:
    return test.name if test.task == TOGETHER else f"{test.task} ({test.name})"


def lost_and_gained(pairs: Pairs) -> tuple[int, int]:
    """Return how many were right before and are wrong now, and how many the other way round."""
    return sum(was and not now for was, now in pairs), sum(now and not was for was, now in pairs)


def _verdict(examples: int, lost: int, gained: int, *, is_alarm: bool, is_let_go: bool) -> Verdict:
    if is_let_go:
        return "let go"
    if is_alarm and lost - gained > MARGIN * examples:
        return "worse"
    return "held" if 0.5**examples <= LEVEL else "too few to tell"
