"""Which base a round tunes, where several are named: each is looked at, those that may do are tried, the smallest wins.

A base is left out whose licence nobody knows, that does not fit the device, or that nothing here tunes. The others are
tuned as a round tunes, compiled, and asked what customers to watch asked. The one that answers most is what they are
held against: a base is worse if the whole or a task of it lost more than it gained and chance does not explain that, at
5 % over all bases and tasks together (the exact sign test; Benjamini and Hochberg). The smallest is taken that is not
worse. Held-out customers have no part in the choice, so that the exam judges it with all the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from fieldlm.core.errors import GateError, InputError
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, said_of
from fieldlm_compiler.checkpoints.licences import AND, UNKNOWN
from fieldlm_compiler.compile.adapter_bundle import is_base_of
from fieldlm_compiler.compile.foresight import foresee
from fieldlm_compiler.compile.named_adapters import NamedAdapter
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.task_edits.edits import read_edits
from fieldlm_compiler.learn.tasks import TASKS, read_round
from fieldlm_compiler.learn.tuning.families import without_trainer
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.rounds import learning
from fieldlm_compiler.rounds.answers import answer_seconds, examine, questions_of
from fieldlm_compiler.rounds.gate import LEVEL, WHOLE, Pairs, chance, lost_and_gained, rejected
from fieldlm_compiler.rounds.sealed import draw_watched, labelled
from fieldlm_compiler.rounds.state import BaseChoice, BaseMatch, BaseTask, Exact, FinishedRound
from fieldlm_compiler.rounds.wish import RoundWish

log = logger(__name__)
MB = 1e6
MOST_WATCHED = 200
"""Of a task, of what customers to watch asked."""
TIMED = 8
"""Requests by which it is said how long an answer takes."""


@dataclass(frozen=True, kw_only=True)
class NamedBase:
    """A base by the name that it was given, and its checkpoint, or why there is none."""

    name: str
    checkpoint: Checkpoint | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class TunedBase:
    """A base as a bundle, the adapter that was tuned on it, what tune.json says, and `one`, the bundle of both.

    Where there is no such bundle, `trouble` says why. `wish` is what was asked for, of this base alone.
    """

    wish: RoundWish
    checkpoint: Checkpoint
    base: Bundle
    adapter: Path
    tuned: dict[str, Any]
    one: Bundle | None
    trouble: str = ""

    def facts(self) -> dict[str, str]:
        """Return the base as round.json names it among what a round is made of."""
        return {"base": self.checkpoint.source, "base_sha256": self.checkpoint.sha256}


@dataclass(frozen=True, kw_only=True)
class AskedBase:
    """A base that was tried: what is known of it, the bytes of its bundle, and which watched examples were right."""

    match: BaseMatch
    size: int
    right: Sequence[bool]


def open_bases(wish: RoundWish, stages: Stages) -> list[NamedBase]:
    """Return the bases that `wish` names; of several, what is no model that can be read is one without a checkpoint.

    Raises InputError when the only one cannot be read, or when the base bundle is of none of them.
    """
    if not wish.bases:
        return [NamedBase(name=wish.base, checkpoint=open_checkpoint(wish.base, stages))]
    found: list[NamedBase] = []
    for name in (wish.base, *wish.bases):
        try:
            checkpoint, why = open_checkpoint(name, stages), ""
        except InputError as error:
            checkpoint, why = None, str(error)
        same = [each.name for each in found if checkpoint and each.checkpoint and _is_same(each.checkpoint, checkpoint)]
        found.append(NamedBase(name=name, checkpoint=None if same else checkpoint, why=_same(same) or why))
    if wish.base_bundle:
        bundle = open_bundle(wish.base_bundle)
        if not any(each.checkpoint and is_base_of(bundle, each.checkpoint) for each in found):
            raise InputError(
                f"{bundle.folder} was made from {bundle.manifest.model.source}, which is none of the bases; name that "
                "with --base as well, or leave --base-bundle out"
            )
    return found


def _is_same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.sha256 == other.sha256


def _same(names: Sequence[str]) -> str:
    return f"is the same model as {names[0]}" if names else ""


def facts_of(named: Sequence[NamedBase]) -> dict[str, Any]:
    """Return the bases as round.json names them among what a round is made of; of several, before one is chosen."""
    if len(named) == 1 and named[0].checkpoint:
        return {"base": named[0].checkpoint.source, "base_sha256": named[0].checkpoint.sha256}
    return {
        "bases": [
            [each.name, each.checkpoint.source, each.checkpoint.sha256] if each.checkpoint else [each.name, each.why]
            for each in named
        ]
    }


@dataclass(frozen=True, kw_only=True)
class BaseTrial:
    """What bases are tuned on and held against: a data set, and the examples of customers to watch in `clustered`."""

    wish: RoundWish
    named: Sequence[NamedBase]
    previous: FinishedRound | None
    data: Path
    clustered: Path
    stages: Stages

    def choose(self) -> tuple[TunedBase, BaseChoice | UnsetType]:
        """Return the base that the round goes on with, tuned, and how it was chosen, where there was a choice.

        Raises InputError when none of several can be taken.
        """
        known = {each.name: each.checkpoint for each in self.named if each.checkpoint}
        if not self.wish.bases:
            only = self._tuned(*next(iter(known.items())))
            _note(self._ships(only))
            return only, UNSET
        log.info(f"▸ {counted(len(self.named), 'base')} to choose from")
        matches = self._looked_at()
        tried = self._tried(matches, known)
        if not tried:
            why = "; ".join(f"{name}: {match.reason}" for name, match in matches.items())
            raise InputError(f"none of the {len(matches)} bases can be taken: {why}")
        if not any(each.one for each in tried.values()):
            name = next(iter(tried))
            return tried[name], BaseChoice(chosen=f"{name}: no bundle was made of any", bases=[*matches.values()])
        name, said = self._weighed(matches, tried)
        for match in matches.values():
            if match.right:
                log.info(f"  {match.name}: {match.reason}")
        _note(ships := self._ships(tried[name]))
        return tried[name], BaseChoice(chosen=said, ships=ships, bases=[*matches.values()])

    def _looked_at(self) -> dict[str, BaseMatch]:
        """Return what is known of the bases, by their names; one that is left out has its reason."""
        families = {each.checkpoint.architecture for each in self.named if each.checkpoint}
        untaught = without_trainer(sorted(families))
        found = {each.name: self._facts(each.name, each.checkpoint, each.why, untaught) for each in self.named}
        for match in found.values():
            log.info(f"  {match.name}: {f'left out: {match.reason}' if match.reason else _foreseen(match)}")
        return found

    def _facts(self, name: str, checkpoint: Checkpoint | None, why: str, untaught: set[str]) -> BaseMatch:
        if checkpoint is None:
            return BaseMatch(name=name, reason=why)
        licence, about = said_of(name, checkpoint)
        seen = foresee(checkpoint, self.wish.quants, self.wish.profile)
        if UNKNOWN in licence.split(AND):
            why = "its licence is not known; if you know it, let its README.md begin with ---, license: NAME, ---"
        elif checkpoint.architecture in untaught:
            why = f"there is no trainer for the family {checkpoint.architecture}"
        elif not self._bundle_of(checkpoint):
            why = seen.missed
        return BaseMatch(
            name=name,
            reason=why,
            source=checkpoint.source,
            licence=licence,
            about=about,
            family=checkpoint.architecture,
            parameters=checkpoint.parameters,
            quant=seen.quant,
            weights_mb=round(seen.weights_mb, 1),
            memory_mb=round(seen.memory.total, 1),
            tokens_per_s=seen.tokens_per_s,
        )

    def _tried(self, matches: dict[str, BaseMatch], known: Mapping[str, Checkpoint]) -> dict[str, TunedBase]:
        """Return the bases that could be tuned; the others get their reasons in `matches`."""
        tried: dict[str, TunedBase] = {}
        for name, match in matches.items():
            if match.reason:
                continue
            log.info(f"▸ {name}")
            try:
                tried[name] = self._tuned(name, known[name])
                why = tried[name].trouble
            except (GateError, InputError) as error:  # its template may take no such conversation, for example
                why = str(error)
            matches[name] = msgspec.structs.replace(match, reason=why)
        return tried

    def _tuned(self, name: str, checkpoint: Checkpoint) -> TunedBase:
        """Tune one base as a round tunes, and compile it."""
        wish = replace(self.wish, base=name, bases=(), base_bundle=self._bundle_of(checkpoint))
        log.info("▸ the base")
        base = learning.base_bundle(wish, checkpoint, self.stages)
        log.info("▸ tune")
        adapter, tuned = learning.adapter(wish, checkpoint, self.data, self._start(checkpoint), self.stages)
        log.info("▸ compile")
        one, trouble = None, ""
        try:
            one = learning.tuned_bundle(
                wish,
                checkpoint,
                base,
                adapters=[NamedAdapter(folder=adapter)],
                data=self.data,
                clustered=self.clustered,
                stages=self.stages,
            )
        except GateError as error:
            trouble = f"no bundle was made of the adapter: {error}"
        return TunedBase(
            wish=wish, checkpoint=checkpoint, base=base, adapter=adapter, tuned=tuned, one=one, trouble=trouble
        )

    def _bundle_of(self, checkpoint: Checkpoint) -> Path | None:
        """Return the base bundle that was named, if it is of `checkpoint`; where there is no choice, it has to be."""
        bundle = self.wish.base_bundle
        return bundle if bundle and (not self.wish.bases or is_base_of(open_bundle(bundle), checkpoint)) else None

    def _start(self, checkpoint: Checkpoint) -> Path | None:
        """Return the adapter that tuning may go on from: the last accepted one, if it is of the same base."""
        if self.previous and self.previous.document.made_of["base_sha256"] != checkpoint.sha256:
            log.info(f"  note: round {self.previous.number} tuned another base; this one begins afresh")
            return None
        return self.previous.adapter if self.previous else None

    def _weighed(self, matches: dict[str, BaseMatch], tried: Mapping[str, TunedBase]) -> tuple[str, str]:
        """Put into `matches` how those that were tried did; return the name of the one that is taken, and why it is."""
        edits = read_edits(self.clustered)
        tasks = read_round(self.clustered / TASKS).tasks
        names = {task.id: task.name for task in tasks if not edits.leaves_out(task.id)}
        watched = draw_watched(labelled(self.clustered), ([task] for task in names), MOST_WATCHED)
        had = self._on_devices()
        asked: list[AskedBase] = []
        for name, found in tried.items():
            if found.one is None:
                continue
            right, ms = self._asked(found.one, watched, name)
            size = _bytes_beside(found.one, None)
            match = msgspec.structs.replace(
                matches[name],
                began_at=found.tuned["began_at"],
                quant=found.one.manifest.recipe.quant,
                bundle_mb=round(size / MB, 3),
                update_mb=round(_bytes_beside(found.one, had) / MB, 3),
                ms=round(ms, 1),
            )
            asked.append(AskedBase(match=match, size=size, right=right))
        taken, weighed = weigh(asked, watched, names)
        matches |= {match.name: match for match in weighed}
        return taken, f"{taken}: {matches[taken].reason}"

    def _asked(self, bundle: Bundle, watched: Sequence[CuratedExample], name: str) -> tuple[list[bool], float]:
        """Return which of the watched examples `bundle` answers right, and how many ms one takes here."""
        if not watched:
            return [], 0.0
        questions, profile = questions_of(watched), self.wish.profile
        right = examine(bundle, questions, profile, self.stages, what=f"ask {name}")
        each_s = answer_seconds(bundle, questions[:TIMED], profile, self.stages, what=f"time {name}")
        return right, 1000 * each_s

    def _on_devices(self) -> Bundle | None:
        """Return the bundle that devices have: of the last accepted round, or the base that was named."""
        folder = self.previous.bundle if self.previous else self.wish.base_bundle
        return open_bundle(folder, digests=False) if folder else None

    def _ships(self, found: TunedBase) -> str:
        """Say what devices with another base have to fetch, which is more than an adapter; "" where they have this one.

        And where nothing is known of what they have.
        """
        had, weights = self._on_devices(), found.base.manifest.file("base")
        if had is None or found.one is None or weights is None or weights.sha256 in _digests(had):
            return ""
        return (
            f"devices have another base, {had.manifest.model.name}: an update to {found.wish.base} fetches a whole new "
            f"one, {_bytes_beside(found.one, had) / MB:,.1f} MB"
        )


def _note(said: str) -> None:
    if said:
        log.info(f"  note: {said}")


def _digests(bundle: Bundle | None) -> set[str]:
    return {file.sha256 for file in bundle.manifest.files} if bundle else set()


def _bytes_beside(bundle: Bundle, had: Bundle | None) -> int:
    """Return how many bytes of `bundle` a device fetches that has the files of `had`."""
    has = _digests(had)
    return sum(file.size for file in bundle.manifest.files if file.sha256 not in has)


def _foreseen(match: BaseMatch) -> str:
    """Say what a base that is tried is, and what it will be on the device."""
    speed = "" if match.tokens_per_s is None else f", {match.tokens_per_s:,.0f} tokens/s"
    return (
        f"{match.licence}, {match.family} of {match.parameters / 1e6:,.0f} M parameters; foreseen as {match.quant}: "
        f"{match.weights_mb:,.1f} MB of weights, served in {match.memory_mb:,.0f} MB{speed}"
    )


def weigh(
    asked: Sequence[AskedBase], watched: Sequence[CuratedExample], names: Mapping[str, str]
) -> tuple[str, list[BaseMatch]]:
    """Return the name of the base that is taken, and how each did on `watched` beside the one that answers most.

    `names` are those of the tasks by their ids. Of bases that are as good or as small, the first that is named counts.
    Where there are so few examples that none could be shown to be worse, the first of all is taken.
    """
    best = min(asked, key=lambda each: (-sum(each.right), each.size))
    seen = {example.task for example in watched}
    parts = {WHOLE: "the whole"} | {task: name for task, name in names.items() if task in seen}
    counts = {
        (each.match.name, part): lost_and_gained(_pairs(best, each, watched, part)) for each in asked for part in parts
    }
    chances = {key: chance(lost, gained) for key, (lost, gained) in counts.items()}
    # Of one task, the whole is that task; and the best is not held against itself.
    held = {key for key in chances if key[0] != best.match.name and (key[1] == WHOLE or len(parts) > 2)}
    alarms = {key for key in rejected({key: chances[key] for key in held}) if counts[key][0] > counts[key][1]}
    worse = {
        each.match.name: [
            f"“{words}”" if part else words for part, words in parts.items() if (each.match.name, part) in alarms
        ]
        for each in asked
    }
    is_telling = 0.5 ** len(watched) <= LEVEL
    good = [each for each in asked if not worse[each.match.name]]
    taken = min(good, key=lambda each: each.size) if is_telling else asked[0]
    matches: list[BaseMatch] = []
    for each in asked:
        name = each.match.name
        lost, gained = counts[name, WHOLE]
        found = f"{sum(each.right)} of {counted(len(watched), 'watched example')} right"
        if each is not best:
            found += f", {gained} gained and {lost} lost beside {best.match.name}, p = {chances[name, WHOLE]:.2g}"
        matches.append(
            msgspec.structs.replace(
                each.match,
                is_taken=each is taken,
                reason=f"{_verdict(each, taken, asked, worse[name], is_telling=is_telling)}: {found}",
                right=Exact(right=sum(each.right), total=len(watched)),
                lost=lost,
                gained=gained,
                p=round(chances[name, WHOLE], 6),
                tasks=[_task(task, parts[task], each, watched, counts[name, task]) for task in parts if task != WHOLE],
            )
        )
    return taken.match.name, matches


def _verdict(
    each: AskedBase, taken: AskedBase, asked: Sequence[AskedBase], worse: Sequence[str], *, is_telling: bool
) -> str:
    if len(asked) == 1:
        return "taken, the only one that can be"
    if not is_telling:
        return f"{'taken, the first that is named' if each is taken else 'not taken'}: too few examples to tell"
    if each is taken:
        return "taken, the smallest that is not worse beyond chance"
    if worse:
        return f"worse beyond chance, in {' and '.join(worse)}"
    return f"not taken, for {taken.match.name} is smaller and not shown to be worse"


def _pairs(best: AskedBase, each: AskedBase, watched: Sequence[CuratedExample], part: str) -> Pairs:
    """Return whether the best, and `each`, had the examples of a task right, or of the whole."""
    both = zip(watched, best.right, each.right, strict=True)
    return [(was, now) for example, was, now in both if part in (WHOLE, example.task)]


def _task(
    task: str, name: str, each: AskedBase, watched: Sequence[CuratedExample], counts: tuple[int, int]
) -> BaseTask:
    right = [is_right for example, is_right in zip(watched, each.right, strict=True) if example.task == task]
    lost, gained = counts
    return BaseTask(id=task, name=name, right=Exact(right=sum(right), total=len(right)), lost=lost, gained=gained)
