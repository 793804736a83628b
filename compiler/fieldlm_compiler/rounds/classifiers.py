"""A classifier beside the language model: for which tasks it is tried, what it gains, and whether a bundle gets it.

It is fitted to the training customers and calibrated on each of them while left out. Then customers to watch decide,
task by task: what it answers, where it is sure, is held against what the model answers to the same requests. A task is
taken where the classifier loses no more than it gains; what it is asked beyond that stays with the model. Held-out
customers have no part in the choice, so that the exam judges it with all the rest.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from fieldlm.core.errors import GateError, InputError
from fieldlm.core.files import sha256_file, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm.formats import router
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.classifier import NAME, SIGNAL, ClassifiedRequest, Classifier, read_classifier
from fieldlm.formats.confidence import Confidence
from fieldlm.formats.router import read_router
from fieldlm.inference.classifiers.closed_answers import classify_by, text_of
from fieldlm_compiler.compile.named_adapters import NamedAdapter
from fieldlm_compiler.learn.classifier import (
    ClosedTask,
    FittedClassifier,
    OpenTask,
    as_heard,
    closed_tasks,
    fit_classifier,
)
from fieldlm_compiler.learn.curated import EXAMPLES, CuratedExample
from fieldlm_compiler.learn.task_edits.edits import read_edits
from fieldlm_compiler.learn.tasks import TASKS, read_round
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.rounds import learning
from fieldlm_compiler.rounds.answers import answer_seconds, examine, is_right, questions_of
from fieldlm_compiler.rounds.groups import ALL, AdapterChoice, GroupTrial
from fieldlm_compiler.rounds.sealed import draw_watched, labelled, to_watch
from fieldlm_compiler.rounds.state import ClassifierMatch
from fieldlm_compiler.verify.confidence import FITTED, TaskAnswer, fit, signals_of

log = logger(__name__)
SURE = 0.95
"""Of what the classifier answers, so much has to be right of customers who were left out of its fit."""
LEAST_SURE = 0.8
"""Least probability of being right of each answer: below it the model is asked, however right the others are."""
LEAST_WATCHED = 5
"""Fewer watched requests that it answers show nothing."""
MOST_WATCHED = 200
"""Of a task."""
TIMED = 8
"""Requests by which it is said how long either takes."""


@dataclass(frozen=True, kw_only=True)
class WatchedAnswer:
    """A watched request that the classifier answers, whether that is right, and whether the model's answer is."""

    task: str
    right: bool
    model_right: bool


@dataclass(frozen=True, kw_only=True)
class ClassifierTrial:
    """The bundle that was `chosen`, and what it was made of: its classifier is looked for in the same examples."""

    of: GroupTrial
    chosen: AdapterChoice

    def choose(self) -> AdapterChoice:
        """Return the choice with the bundle that has a classifier, or as it was, and what is said of that."""
        if self.of.wish.classifiers == "none":
            return self.chosen
        found = closed_tasks(self._trained(), self._names)
        matches = [self._left(each.id, each.why) for each in found if isinstance(each, OpenTask)]
        closed = {each.id: each for each in found if isinstance(each, ClosedTask)}
        made, why = self._fitted(list(closed.values()))
        if made is None:
            return self._without([*(self._left(task, why) for task in closed), *matches], why)
        compared = self._compared(read_classifier(made), closed)
        matches = [*compared, *matches]
        for each in matches:
            log.info(f"  {each.name}: {'classifier' if each.is_taken else 'the model alone'}: {each.reason}")
        taken = [closed[each.id] for each in compared if each.is_taken]
        if len(taken) < len(closed):
            made, why = self._fitted(taken)
        if made is None:
            return self._without(matches, why if taken else "none answers as well as the model")
        try:
            bundle = self._bundle(made)
        except GateError as error:
            return self._without(matches, f"no bundle was made with it: {error}")
        size_kb, said = made.stat().st_size / 1e3, f"{counted(len(taken), 'task')} of {len(matches)}"
        words = f"answers {said} where it is sure, p ≥ {read_classifier(made).facts.least:.2f}; {size_kb:.0f} kB"
        return replace(self.chosen, bundle=bundle, classifiers=matches, classified=words)

    @property
    def _names(self) -> dict[str, str]:
        """The tasks that are learned, by their ids."""
        edits = read_edits(self.of.clustered)
        tasks = read_round(self.of.clustered / TASKS).tasks
        return {task.id: task.name for task in tasks if not edits.leaves_out(task.id)}

    @property
    def _system_prompt(self) -> str | None:
        return self.of.one.manifest.system_prompt

    def _trained(self) -> list[CuratedExample]:
        return [each for each in labelled(self.of.clustered) if not to_watch(each)]

    def _without(self, matches: Sequence[ClassifierMatch], why: str) -> AdapterChoice:
        left = [msgspec.structs.replace(each, is_taken=False) for each in matches]
        return replace(self.chosen, classifiers=left, classified=f"none: {why}")

    def _left(self, task: str, why: str) -> ClassifierMatch:
        return ClassifierMatch(id=task, name=self._names[task], is_taken=False, reason=why)

    def _fitted(self, closed: Sequence[ClosedTask]) -> tuple[Path | None, str]:
        """Return the file of the classifier of `closed` tasks, or why there is none."""
        if not closed:
            return None, "no task has answers from a closed set"
        tasks = sorted(task.id for task in closed)

        def make(folder: Path) -> Ran:
            began_s = time.monotonic()
            try:
                classifier, why = calibrated(fit_classifier(self._trained(), closed, system_prompt=self._system_prompt))
            except InputError as error:
                classifier, why = None, str(error)
            if classifier is not None:
                write_whole(folder / NAME, classifier.packed())
            return Ran(value=why, seconds=time.monotonic() - began_s, peak_mb=0.0)

        inputs = {
            "examples": sha256_file(self.of.clustered / EXAMPLES),
            "tasks": tasks,
            "sure": SURE,
            "system_prompt": self._system_prompt,
        }
        folder, made = self.of.stages.run("classifier", inputs, make)
        return (None, made.value) if made.value else (folder / NAME, "")

    def _compared(self, classifier: Classifier, closed: dict[str, ClosedTask]) -> list[ClassifierMatch]:
        """Return how `classifier` does beside the model, by the tasks whose answers it gives."""
        asked = self._watched()
        answered, each_s = self._answered(classifier, asked)
        model_s = 0.0
        seen: list[WatchedAnswer] = []
        if taken := [example for example, found in zip(asked, answered, strict=True) if found]:
            questions, wish, stages = questions_of(taken), self.of.wish, self.of.stages
            by_model = examine(
                self.chosen.bundle, questions, wish.profile, stages, what="ask what a classifier answers"
            )
            few, what = questions[:TIMED], "time the model"
            model_s = answer_seconds(self.chosen.bundle, few, wish.profile, stages, what=what)
            given = [found for found in answered if found]
            seen = [
                WatchedAnswer(
                    task=found.answer.task, right=is_right(text_of(found.answer), question), model_right=right
                )
                for found, question, right in zip(given, questions, by_model, strict=True)
            ]
        of = defaultdict[str, list[WatchedAnswer]](list)
        for one in seen:
            of[one.task].append(one)
        return [
            compare(
                task.id, self._names[task.id], len(task.answers), of[task.id], ms=1000 * each_s, model_ms=1000 * model_s
            )
            for task in closed.values()
        ]

    def _answered(
        self, classifier: Classifier, asked: Sequence[CuratedExample]
    ) -> tuple[list[ClassifiedRequest | None], float]:
        """Return what `classifier` answers to each of `asked`, as on a device, and how many seconds one takes."""
        path = self.of.clustered / router.NAME
        tells = read_router(path) if path.exists() else None
        heard = [as_heard(each.messages, self._system_prompt) for each in asked]
        began_s = time.monotonic()
        found = [classify_by(classifier, tells, said, each.tools) for each, said in zip(asked, heard, strict=True)]
        return found, (time.monotonic() - began_s) / max(1, len(asked))

    def _watched(self) -> list[CuratedExample]:
        """Return what customers to watch asked, of each task a draw that is always the same."""
        return draw_watched(labelled(self.of.clustered), ([task] for task in self._names), MOST_WATCHED)

    def _bundle(self, classifier: Path) -> Bundle:
        """Return the chosen bundle with `classifier`."""
        trial, folders = self.of, self.chosen.folders
        tasks = {each.name: each.tasks for each in self.chosen.bundle.manifest.task_adapters}
        apart = [NamedAdapter(folder=folder, name=name, tasks=tasks[name]) for name, folder in folders.items()]
        return learning.tuned_bundle(
            trial.wish,
            trial.checkpoint,
            trial.base,
            adapters=[NamedAdapter(folder=trial.folder, name=ALL if apart else ""), *apart],
            data=trial.data,
            clustered=trial.clustered,
            stages=trial.stages,
            classifier=classifier,
        )


def calibrated(fitted: FittedClassifier) -> tuple[Classifier | None, str]:
    """Return the classifier that answers where SURE of its answers are right, or why there is none."""
    answers = [
        TaskAnswer(right=right, signals=signals_of(dict.fromkeys(FITTED, logprob)))
        for logprob, right in fitted.left_out
    ]
    found = msgspec.convert(fit(answers, of_each=0), Confidence)
    at = found.threshold(SURE)
    if why := found.reason or ("" if at.share else f"it is nowhere right in {SURE:.0%}"):
        return None, why
    return fitted.calibrated(msgspec.structs.replace(found, signal=SIGNAL), max(at.p, LEAST_SURE)), ""


def compare(
    task: str, name: str, answers: int, seen: Sequence[WatchedAnswer], *, ms: float, model_ms: float
) -> ClassifierMatch:
    """Return whether a classifier is taken for a task of so many `answers`, by what it did beside the model."""
    lost = sum(one.model_right and not one.right for one in seen)
    gained = sum(one.right and not one.model_right for one in seen)
    right, model_right = sum(one.right for one in seen), sum(one.model_right for one in seen)
    is_taken = len(seen) >= LEAST_WATCHED and lost <= gained
    verdict = "taken" if is_taken else "the model is better" if lost > gained else "too few to tell"
    return ClassifierMatch(
        id=task,
        name=name,
        is_taken=is_taken,
        reason=f"{verdict}: {counted(answers, 'answer')}; of {counted(len(seen), 'watched request')} that it answers "
        f"{right} right, {model_right} by the model; {ms:.1f} ms, the model {model_ms:.0f} ms",
        answers=answers,
        given=len(seen),
        right=right,
        model_right=model_right,
        ms=round(ms, 3),
        model_ms=round(model_ms, 1),
    )
