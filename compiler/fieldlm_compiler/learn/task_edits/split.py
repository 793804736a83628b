"""Split a task: the finer communities of its own requests."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn.cluster import LEAST_SIZE
from fieldlm_compiler.learn.communities import parts
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.embed import Embedder
from fieldlm_compiler.learn.points import Points, locate
from fieldlm_compiler.learn.task_edits.edits import TaskEdit, TaskPart
from fieldlm_compiler.learn.tasks import members_of


def split(task: str, examples: Sequence[CuratedExample], *, seed: int = 0) -> TaskEdit:
    """Return the edit that splits `task`, whose examples these are; the largest part keeps the id.

    Raises InputError where no two parts of LEAST_SIZE examples are apart.
    """
    points = Points.of(examples)
    vectors = locate([examples[first] for first in points.firsts], Embedder())
    counts = Counter(points.of_example.tolist())
    labels = parts(vectors, seed=seed, least=LEAST_SIZE, counts=[counts[at] for at in range(len(points.firsts))])
    sizes: Counter[int] = Counter(labels[at] for at in points.of_example.tolist())
    if len(sizes) < 2:
        raise InputError(
            f"{task} has {len(examples)} examples and no two parts of {LEAST_SIZE} that are apart; collect more first"
        )
    _, *others = sorted(sizes, key=lambda label: (-sizes[label], label))
    made: list[TaskPart] = []
    for label in others:
        members = members_of(one for one, found in zip(points.digests, labels, strict=True) if found == label)
        made.append(
            TaskPart(id=f"task-{hashlib.sha256(f'{task} {members}'.encode()).hexdigest()[:8]}", members=members)
        )
    return TaskEdit(kind="split", task=task, parts=made)
