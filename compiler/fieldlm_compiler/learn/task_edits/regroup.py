"""Apply people's edits to the tasks that were found: which task each request belongs to then.

Requests that an earlier round had are known by their digests and stay where they were, wherever a task that somebody
has edited is concerned. Others of the same group go to the task whose requests in this group they are nearest to. A
new group most of whose known requests were in an edited task is part of that task.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fieldlm_compiler.learn.task_edits.edits import TaskEdits
from fieldlm_compiler.learn.tasks import LEAST_SHARE, Round, Task, past_of

if TYPE_CHECKING:
    from fieldlm_compiler.learn.communities import Labels
    from fieldlm_compiler.learn.embed import Vectors

ENOUGH_KNOWN = 0.2
"""Share of a group's requests that must be known before they make it part of an edited task it was not found as."""
LEAST_KNOWN = 2
"""Known requests of a task in a group without which it draws no others."""


def regroup(  # noqa: PLR0917
    labels: "Labels", ids: Sequence[str], vectors: "Vectors", was: Sequence[str], earlier: Round, edits: TaskEdits
) -> list[str]:
    """Return the id of the task of each request (row of `vectors`).

    `labels` are the groups that were found and `ids` theirs; `was` says in which task each request was, "" for none.
    Where nobody says again what was said in a task that was split, its parts' centres of the `earlier` round count.
    """
    import numpy as np

    task_of = [""] * len(was)
    for label, found in enumerate(ids):
        members = [int(at) for at in np.flatnonzero(labels == label)]
        counts = Counter(was[at] for at in members if was[at])
        own = _own(counts, edits.resolve(found), len(members), edits)
        if own not in edits.held and not edits.held & counts.keys():
            for at in members:
                task_of[at] = own
            continue
        least = max(LEAST_KNOWN, LEAST_SHARE * len(members))
        groups = sorted(task for task, count in counts.items() if count >= least)
        strays: list[int] = []
        for at in members:
            if was[at] in groups or was[at] in edits.held:
                task_of[at] = was[at]
            else:
                strays.append(at)
        known = {task: vectors[[at for at in members if was[at] == task]].mean(axis=0) for task in groups}
        if not groups:
            known = _centres(earlier, edits.parts_of(own), vectors.shape[1])
        for at, task in zip(strays, _nearest(strays, known, own, vectors), strict=True):
            task_of[at] = task
    return task_of


def _own(counts: Counter[str], found: str, size: int, edits: TaskEdits) -> str:
    """Return which task a group is: the edited one that most of its known requests were in, else the one found."""
    if not counts:
        return found
    best, count = counts.most_common(1)[0]
    is_known = 2 * count >= counts.total() >= (LEAST_SHARE if found in edits.held else ENOUGH_KNOWN) * size
    return best if best in edits.held and is_known else found


def _centres(earlier: Round, tasks: Sequence[str], size: int) -> dict[str, "Vectors"]:
    """Return the centres that `tasks` had, if vectors had as many numbers then as now."""
    vectors = {task.id: task.vector() for task in earlier.every if task.id in tasks}
    return {task: vector for task, vector in vectors.items() if len(vector) == size}


def _nearest(strays: Sequence[int], known: Mapping[str, "Vectors"], own: str, vectors: "Vectors") -> list[str]:
    """Return a task per stray: the one whose `known` centre it is nearest to, where `own` is among them."""
    import numpy as np

    from fieldlm_compiler.learn.embed import unit

    if own not in known or not strays:
        return [own] * len(strays)
    best: Any = (vectors[list(strays)] @ unit(np.stack(list(known.values()))).T).argmax(axis=1)
    return [list(known)[int(place)] for place in best]


def before(digests: Sequence[str], shown: Round, edits: TaskEdits) -> list[str]:
    """Return for each request the task that it was in, as if the last round had known these edits; "" for none.

    `shown` is the last round. Where edits that it knew have been undone since, what was found then counts.
    """
    found = shown.found or shown
    unedited = past_of(digests, found)
    seen = {task.id for task in shown.every}
    known: dict[str, str] = {}
    for part in edits.parts:
        if part.id not in seen:
            known |= dict.fromkeys(part.digests(), part.id)
    # What was merged, and then split, was in the parts last.
    for task in (*shown.tasks, *edits.parts, *shown.retired):
        for one in task.digests():
            known.setdefault(one, task.id)
    then = TaskEdits(shown.edits)
    undone = {then.resolve(edit.task) for edit in shown.edits if edit.kind == "merge" and edit not in edits.edits}
    valid = {task.id for task in found.every} | {part.id for part in edits.parts}
    return [
        edits.resolve(now if (now := known.get(one, "")) in valid - undone else past)
        for one, past in zip(digests, unedited, strict=True)
    ]


def gone(retired: Sequence[Task], found: Round, edits: TaskEdits) -> list[Task]:
    """Return the `retired` tasks, those that people merged noted as such, without parts of what is split no more."""
    valid = {task.id for task in found.every} | {part.id for part in edits.parts}
    return [
        task if (into := edits.resolve(task.id)) == task.id else msgspec.structs.replace(task, merged_into=into)
        for task in retired
        if task.id in valid
    ]
