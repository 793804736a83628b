"""What people see of the tasks in a folder: those of tasks.json, with the edits that are not applied yet."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.wording import counted
from fieldlm_compiler.learn.curated import CuratedExample, read_examples
from fieldlm_compiler.learn.shapes import signature
from fieldlm_compiler.learn.task_edits.edits import TaskEdits
from fieldlm_compiler.learn.task_edits.names import Told, common_words, instance, told
from fieldlm_compiler.learn.tasks import TASKS, Round, digest, read_round


class ShownTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task as a person reads it: nothing of it that fewer customers than are asked for said."""

    id: str
    name: str
    description: str
    example: str
    scenario: str
    """Its name; a part that was just split off has that of its task."""
    examples: int
    share: float
    customers: int
    state: str
    """"", "left out", "not asked for", or "merged into" another."""


class ShownTasks(msgspec.Struct, frozen=True, kw_only=True):
    """All tasks of a folder, the largest first; `pending` says whether edits wait for the next `cluster` or round."""

    tasks: list[ShownTask]
    edits: list[str]
    pending: bool
    least_sessions: int


def show(folder: Path, edits: TaskEdits, least_sessions: int = 1) -> ShownTasks:
    """Return the tasks of the examples in `folder`, as `edits` make them.

    Words are shown that `least_sessions` customers said, or as many as tasks.json was made with if that is more.
    """
    known = read_round(folder / TASKS)
    least = max(least_sessions, known.least_sessions)
    examples = read_examples(folder)
    groups: dict[str, list[CuratedExample]] = {}
    for example, task in zip(examples, tasks_of(examples, known, edits), strict=True):
        groups.setdefault(task, []).append(example)
    ids = sorted(groups, key=lambda task: (-len(groups[task]), task))
    order = [example for task in ids for example in groups[task]]
    places = [at for at, task in enumerate(ids) for _ in groups[task]]
    common = common_words(order, places)
    words = told(order, places, ids, least, common)
    words = _kept(known, edits, ids, words, least)
    scenarios = _scenarios(known, edits, groups, least, common)
    shown = [
        ShownTask(
            id=task,
            name=edits.names.get(task, name),
            description=description,
            example=_instance(task, groups[task], known, least) if description else "",
            scenario=scenarios.get(task, ""),
            examples=len(groups[task]),
            share=len(groups[task]) / len(examples),
            customers=len({example.voter for example in groups[task]}),
            state="left out" if task in edits.excluded else "",
        )
        for task, (name, description) in zip(ids, words, strict=True)
    ]
    absent = [*_absent(known, edits, set(ids), least)]
    pending = known.edits != edits.edits
    return ShownTasks(
        tasks=[*shown, *absent], edits=[str(edit) for edit in edits.edits], pending=pending, least_sessions=least
    )


def _kept(known: Round, edits: TaskEdits, ids: Sequence[str], words: Sequence[Told], least: int) -> list[Told]:
    """Return `words`, but those of tasks.json for tasks that no waiting edit changes."""
    was = TaskEdits(known.edits)
    waiting = [edit for edit in edits.edits if edit not in known.edits]
    changed = {each for edit in waiting if edit.kind in ("merge", "split") for each in (edit.task, edit.into)}
    changed |= {each for each in was.names if each not in edits.names}
    may_show = least == known.least_sessions
    told_before = {task.id: (task.name, task.description) for task in known.tasks if task.id not in changed}
    return [told_before.get(task, now) if may_show else now for task, now in zip(ids, words, strict=True)]


def tasks_of(examples: Sequence[CuratedExample], known: Round, edits: TaskEdits) -> list[str]:
    """Return the task of each example, after edits that are not applied yet."""
    applied = {task.id for task in known.every}
    part_of = {one: part.id for part in edits.parts if part.id not in applied for one in part.digests()}
    split = {edit.task for edit in edits.edits for part in edit.parts if part.id not in applied}
    found: list[str] = []
    for example in examples:
        task = example.task
        if split and (task in split or edits.resolve(task) in split):
            task = part_of.get(digest(example.utterance, signature(example.answer)), task)
        found.append(edits.resolve(task))
    return found


def named(word: str, tasks: Sequence[ShownTask], folder: Path) -> str:
    """Return the id of the one of `tasks` (in `folder`) that `word` is the id or the only name of.

    Raises InputError.
    """
    there = [task for task in tasks if not task.state.startswith("merged")]
    found = [task.id for task in there if task.id == word] or [task.id for task in there if task.name == word]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{word!r} is the name of {counted(len(found), 'task')}; use an id: {', '.join(found)}")
    gone = next((task for task in tasks if word in (task.id, task.name)), None)
    near = terminal.did_you_mean(word, [*(task.name for task in there), *(task.id for task in there)])
    why = f"; it is {gone.state};" if gone else near or ";"
    raise InputError(f"there is no task {word!r}{why} list them: fieldlm tasks {folder}")


def _instance(task: str, members: Sequence[CuratedExample], known: Round, least: int) -> str:
    """Return the example of tasks.json where it may still be shown, else another one."""
    chosen = {each.id: each.example for each in known.tasks}.get(task)
    first = sorted(members, key=lambda example: (example.utterance != chosen, len(example.utterance), example.response))
    return instance(first, members, least)


def _scenarios(
    known: Round, edits: TaskEdits, groups: dict[str, list[CuratedExample]], least: int, common: frozenset[str]
) -> dict[str, str]:
    """Return the name of the scenario of each task, by the words that may be shown."""
    of = {task.id: task.scenario for task in known.tasks}
    for edit in edits.edits:
        of |= {part.id: of[edit.task] for part in edit.parts if edit.task in of and part.id not in of}
    placed = {task: of[task] for task in groups if of.get(task)}
    ids = sorted(set(placed.values()))
    places = [(example, ids.index(placed[task])) for task in placed for example in groups[task]]
    words = told([example for example, _ in places], [at for _, at in places], ids, least, common)
    names = {scenario: name for scenario, (name, _) in zip(ids, words, strict=True)}
    doubled = Counter(names.values())
    return {
        task: name if doubled[name := names[scenario]] == 1 else f"{name} ({scenario})"
        for task, scenario in placed.items()
    }


def _absent(known: Round, edits: TaskEdits, present: set[str], least: int) -> list[ShownTask]:
    """Return the tasks that nobody asked for; their words only where as many customers as now were needed to show."""
    may_show = least <= known.least_sessions
    absent: list[ShownTask] = []
    for task in known.every:
        into = edits.resolve(task.id) if edits.resolve(task.id) != task.id else task.merged_into
        if task.id in present:
            continue
        state = f"merged into {into}" if into else "left out, not asked for" if task.id in edits.excluded else ""
        absent.append(
            ShownTask(
                id=task.id,
                name=edits.names.get(task.id, task.name if may_show else task.id),
                description=task.description if may_show else "",
                example=task.example if may_show else "",
                scenario="",
                examples=0,
                share=0.0,
                customers=0,
                state=state or "not asked for",
            )
        )
    return absent
