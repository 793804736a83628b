"""One adapter for all tasks, or one for each group of them as well: both are made, and customers to watch decide.

A group is a scenario, as `cluster` finds it; where it finds one only, a task. Its adapter goes on from the one for all,
more gently, on the group's own examples. Both bundles answer what customers to watch asked, as a device does: its
router chooses. Held-out customers have no part in the choice, so that the exam judges it with all the rest.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fieldlm.core.errors import InputError
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm.formats import router
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.router import read_router
from fieldlm.formats.task_adapters import MOST
from fieldlm.inference.confidence import calibration_of
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.compile.named_adapters import AdapterGateError, NamedAdapter
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.tasks import TASKS, read_round
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.rounds import learning
from fieldlm_compiler.rounds.answers import examine, questions_of
from fieldlm_compiler.rounds.gate import Pairs, chance, lost_and_gained, rejected
from fieldlm_compiler.rounds.sealed import draw_watched, labelled, to_watch
from fieldlm_compiler.rounds.state import ClassifierMatch, Exact, GroupMatch, TaskMatch
from fieldlm_compiler.rounds.wish import RoundWish

log = logger(__name__)
ALL = "all"
"""What the adapter for all tasks is called in a bundle."""
LEAST_TRAINED = 16
"""Examples of a group, below which it has no adapter of its own."""
MOST_WATCHED = 200
"""Of a group, of what customers to watch asked."""
GENTLER = 0.3
"""Of the learning rate of the adapter for all, which the groups' go on from: of home-robot's test requests they answer
69.2 % so and 65.6 % at the whole rate, the one for all 68.2 % (docs/learning.md)."""


@dataclass(frozen=True, kw_only=True)
class TaskGroup:
    """Tasks that share an adapter; `names` are theirs by their ids, `trained` counts the examples to train on."""

    id: str
    name: str
    names: dict[str, str]
    trained: int


@dataclass(frozen=True, kw_only=True)
class AdapterChoice:
    """The bundle that goes into the exam, the folders of its groups' adapters, what was compared and why.

    `classifiers` and `classified` say the same of a classifier.
    """

    bundle: Bundle
    folders: dict[str, Path] = field(default_factory=dict[str, Path])
    groups: list[GroupMatch] = field(default_factory=list[GroupMatch])
    chosen: str = ""
    classifiers: list[ClassifierMatch] = field(default_factory=list[ClassifierMatch])
    classified: str = ""

    def facts(self) -> dict[str, Any]:
        """Return what round.json says of it."""
        names = ("groups", "chosen", "classifiers", "classified")
        return {name: getattr(self, name) for name in names} | {
            "sure": sure_of(self.bundle),
            "deferral": deferral_of(self.bundle),
        }


def sure_of(bundle: Bundle) -> list[tuple[float, int, int]]:
    """Return rows (p, answers, right), rising by p, of the calibrations of all adapters of `bundle` together.

    Each was made on the requests that the router gives to its adapter. Answers of one that could not be calibrated are
    sure of nothing: they have p 0. Nothing where none is calibrated.
    """
    names = [each.name for each in bundle.manifest.task_adapters] or [""]
    found = [each for each in (calibration_of(bundle, name) for name in names) if each]
    if not any(each.held for each in found):
        return []
    answers, right = Counter[float](), Counter[float]()
    for each in found:
        for p, count, correct in each.held or ((0.0, each.n, each.right),):
            answers[p] += count
            right[p] += correct
    return [(p, answers[p], right[p]) for p in sorted(answers) if answers[p]]


def deferral_of(bundle: Bundle) -> list[str]:
    """Return of each adapter of `bundle` how a learned deferral compared with one signal; nothing where none was."""
    several = [each.name for each in bundle.manifest.task_adapters]
    found = {name: calibration_of(bundle, name) for name in several or [""]}
    said = {name: each.deferral for name, each in found.items() if each and each.deferral}
    return [f"{name}: {line}" if name else f"{line}" for name, line in said.items()]


@dataclass(frozen=True, kw_only=True)
class GroupTrial:
    """What adapters of groups are made of and held against: the one for all in `folder`, and its bundle `one`."""

    wish: RoundWish
    checkpoint: Checkpoint
    base: Bundle
    one: Bundle
    folder: Path
    data: Path
    clustered: Path
    stages: Stages

    def choose(self) -> AdapterChoice:
        """Return the bundle with the one adapter for all, or with those of groups as well."""
        if self.wish.adapters == "one":
            return AdapterChoice(bundle=self.one)
        groups, few = self._groups()
        own = {each.id: each for each in groups}
        folders: dict[str, Path] = {}
        for each in groups:
            try:
                folders[each.id] = self._tuned(each)
            except InputError as error:  # all its examples may be too long, for example
                few.append(_left(own.pop(each.id), f"not tuned: {error}"))
        tried, refused = self._bundle(own, folders)
        few += [_left(own[name], why) for name, why in refused.items() if name in own]
        left = {name: own[name] for name in own if name not in refused}
        if tried is None or not left:
            none = "none of the groups' adapters passed its gates"
            few_or_one = "there is one group of tasks, or none with enough examples"
            return self._just_one(few, refused.get(ALL) or (none if groups else few_or_one))
        return self._decided(tried, left, folders, few)

    def _decided(
        self, tried: Bundle, left: dict[str, TaskGroup], folders: Mapping[str, Path], few: Sequence[GroupMatch]
    ) -> AdapterChoice:
        """Hold `tried`, with the adapters of all groups that are `left`, against the bundle with one."""
        asked = self._watched(left)
        if not asked and self.wish.adapters == "best":
            return self._just_one(few, "the customers to watch asked nothing of any group")
        one, several = (
            examine(bundle, questions_of(asked), self.wish.profile, self.stages, what=what)
            for bundle, what in ((self.one, "ask with one adapter"), (tried, "ask with one for each group"))
        )
        matches = [*compared(list(left.values()), asked, one, several, always=self.wish.adapters == "groups"), *few]
        taken = {each.id: left[each.id] for each in matches if each.is_taken}
        for each in matches:
            log.info(f"  {each.name}: {'its own adapter' if each.is_taken else 'the one for all'}: {each.reason}")
        if not taken:
            return self._just_one(matches, "no group is shown to gain by an adapter of its own")
        bundle = tried
        if len(taken) < len(left):
            bundle, _ = self._bundle(taken, folders)
            if bundle is None or len(bundle.manifest.task_adapters) <= len(taken):
                return self._just_one(matches, "the groups that gain by an adapter of their own did not pass together")
        said = f"{counted(len(taken), 'group')} of {len(matches)} with an adapter of its own, one for the rest"
        return AdapterChoice(
            bundle=bundle, folders={name: folders[name] for name in taken}, groups=matches, chosen=said
        )

    def _just_one(self, groups: Sequence[GroupMatch], why: str) -> AdapterChoice:
        matches = [_left(each, each.reason) for each in groups]
        return AdapterChoice(bundle=self.one, groups=matches, chosen=f"one adapter for all: {why}")

    def _groups(self) -> tuple[list[TaskGroup], list[GroupMatch]]:
        """Return the groups that have enough examples, and what is said of the others; none unless there are two."""
        tells = self.clustered / router.NAME
        if not tells.exists():
            return [], []
        told, known = set(read_router(tells).tasks), read_round(self.clustered / TASKS)
        names = {task.id: task.name for task in known.tasks if task.id in told}
        groups = [(each.id, each.name, [task for task in each.tasks if task in names]) for each in known.scenarios]
        groups = [group for group in groups if group[2]]
        if len(groups) < 2:
            groups = [(task, name, [task]) for task, name in names.items()]
        trained = Counter(each.task for each in labelled(self.clustered) if not to_watch(each))
        found = [
            TaskGroup(
                id=group,
                name=name,
                names={task: names[task] for task in tasks},
                trained=sum(trained[task] for task in tasks),
            )
            for group, name, tasks in groups
        ]
        enough = sorted((each for each in found if each.trained >= LEAST_TRAINED), key=lambda each: -each.trained)
        taken = enough[: MOST - 1] if len(found) > 1 else []
        why = f"too few examples for an adapter of its own, want {LEAST_TRAINED}"
        return taken, [_left(each, f"{each.trained}: {why}") for each in found if each not in taken]

    def _tuned(self, group: TaskGroup) -> Path:
        """Return the adapter of a group, which goes on from the one for all."""
        data = learning.part_of(self.data, list(group.names), self.stages)
        log.info(f"  {group.name}: {counted(group.trained, 'example')}")
        gentler = replace(self.wish.recipe, learning_rate=GENTLER * self.wish.recipe.learning_rate)
        return learning.tuned(replace(self.wish, recipe=gentler), self.checkpoint, data, self.folder, self.stages)[0]

    def _bundle(
        self, groups: Mapping[str, TaskGroup], folders: Mapping[str, Path]
    ) -> tuple[Bundle | None, dict[str, str]]:
        """Return the bundle with the adapters of `groups` that pass their gates, and why the others do not."""
        left, refused = dict(groups), dict[str, str]()
        while left:
            apart = [NamedAdapter(folder=folders[name], name=name, tasks=(*each.names,)) for name, each in left.items()]
            try:
                made = learning.tuned_bundle(
                    self.wish,
                    self.checkpoint,
                    self.base,
                    adapters=[NamedAdapter(folder=self.folder, name=ALL), *apart],
                    data=self.data,
                    clustered=self.clustered,
                    stages=self.stages,
                )
            except AdapterGateError as error:
                refused[error.adapter] = str(error)
                if left.pop(error.adapter, None) is None:
                    return None, refused
            else:
                return made, refused
        return None, refused

    def _watched(self, groups: Mapping[str, TaskGroup]) -> list[CuratedExample]:
        """Return what customers to watch asked of `groups`, of each a draw that is always the same."""
        return draw_watched(labelled(self.clustered), (group.names for group in groups.values()), MOST_WATCHED)


def compared(
    groups: Sequence[TaskGroup],
    asked: Sequence[CuratedExample],
    one: Sequence[bool],
    several: Sequence[bool],
    *,
    always: bool,
) -> list[GroupMatch]:
    """Return how the groups' adapters did beside the one for all; `always` takes them however they did.

    Else an adapter is taken that gained more than it lost where chance does not explain it, at 5 % over all groups
    together (the exact sign test; Benjamini and Hochberg): what one adapter can do is not done by several.
    """
    pairs: dict[str, Pairs] = {
        group.id: [(was, now) for each, was, now in zip(asked, one, several, strict=True) if each.task in group.names]
        for group in groups
    }
    counts = {group: lost_and_gained(those) for group, those in pairs.items()}
    chances = {group: chance(gained, lost) for group, (lost, gained) in counts.items()}
    better = {group for group in rejected(chances) if counts[group][1] > counts[group][0]}
    matches: list[GroupMatch] = []
    for group in groups:
        lost, gained = counts[group.id]
        found = f"{counted(len(pairs[group.id]), 'watched example')}, {gained} gained, {lost} lost"
        verdict = "taken as asked for" if always else "better" if group.id in better else "not shown to be better"
        matches.append(
            GroupMatch(
                id=group.id,
                name=group.name,
                is_taken=always or group.id in better,
                reason=f"{verdict}: {found}, p = {chances[group.id]:.2g}",
                lost=lost,
                gained=gained,
                p=round(chances[group.id], 6),
                tasks=[
                    TaskMatch(id=task, name=name, one=_exact(task, asked, one), own=_exact(task, asked, several))
                    for task, name in group.names.items()
                ],
            )
        )
    return matches


def _exact(task: str, asked: Sequence[CuratedExample], right: Sequence[bool]) -> Exact:
    own = [is_right for each, is_right in zip(asked, right, strict=True) if each.task == task]
    return Exact(right=sum(own), total=len(own))


def _left(group: TaskGroup | GroupMatch, why: str) -> GroupMatch:
    """Return what is said of a group that has no adapter of its own."""
    if isinstance(group, GroupMatch):
        return GroupMatch(
            id=group.id, name=group.name, is_taken=False, reason=why, lost=group.lost, gained=group.gained, p=group.p,
            tasks=group.tasks,
        )  # fmt: skip
    return GroupMatch(id=group.id, name=group.name, is_taken=False, reason=why)
