"""Task clustering: find the recurring tasks in examples, without being told: what is asked, and what is done about it.

A distinct request is a point: what was said as a vector, the same with arguments' names in place of their values where
the answer calls a function, and which function that is. Points near each other are joined, and what is joined more
within than without is a task (communities.py); tasks that are alike are a scenario. Ids last from round to round
(tasks.py), so adapters and thresholds can be tied to them.

    router.npz        which task a request is, for a device to ask (router.py)
    tasks.json        the tasks with names and scenarios, also those of earlier rounds that nobody asked for in this one
    examples.jsonl    the same examples, each with the id of its `task`
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.logs import logger
from fieldlm.formats import router
from fieldlm_compiler.learn.curated import EXAMPLES, CuratedExample, iterate_examples, write_examples
from fieldlm_compiler.learn.points import SHAPE_SIZE, Locator, Points, locate
from fieldlm_compiler.learn.shapes import call_of
from fieldlm_compiler.learn.task_edits.edits import TaskEdits, read_edits
from fieldlm_compiler.learn.task_edits.names import common_words, instance, told
from fieldlm_compiler.learn.task_edits.regroup import before, gone, regroup
from fieldlm_compiler.learn.tasks import (
    TASKS,
    Round,
    Scenario,
    Task,
    assign_ids,
    members_of,
    packed,
    past_of,
    read_round,
    retire,
    scenario_ids,
    write_round,
)

if TYPE_CHECKING:
    from fieldlm_compiler.learn.communities import Labels
    from fieldlm_compiler.learn.embed import Embedder, Vectors
    from fieldlm_compiler.learn.streamed.placing import Run
    from fieldlm_compiler.learn.streamed.sample import Unchanged

log = logger(__name__)
LEAST_SIZE = 8
"""Fewer examples are no task of their own."""


class _Found(NamedTuple):
    """Examples, their distinct requests as points, and the label of each point."""

    examples: Sequence[CuratedExample]
    points: Points
    vectors: "Vectors"
    labels: "Labels"
    has_functions: bool
    """Whether vectors end with which function is called."""

    @property
    def of_example(self) -> "Labels":
        return self.labels[self.points.of_example]

    def centres(self) -> "Vectors":
        import numpy as np

        from fieldlm_compiler.learn.embed import unit

        count = int(self.labels.max()) + 1
        return unit(np.stack([self.vectors[self.labels == label].mean(axis=0) for label in range(count)]))


def cluster(
    folder: Path,
    *,
    seed: int = 0,
    embedder: "Embedder | None" = None,
    least_sessions: int = 1,
    run: "Run | None" = None,
) -> list[dict[str, Any]]:
    """Find the tasks in `folder`/examples.jsonl; writes tasks.json and the examples' `task`, returns the tasks.

    What people edited (`folder`/task_edits.json) is applied to what is found. A task of fewer than `least_sessions`
    customers shows no word that was said. The same examples, earlier tasks, edits and seed give the same result. Of
    more than 100,000 distinct requests, tasks are found among so many, and the others are put to them by `run`, by
    default here. Raises InputError when there are no examples.
    """
    from fieldlm_compiler.learn.embed import Embedder
    from fieldlm_compiler.learn.streamed.placing import Placer, here, place
    from fieldlm_compiler.learn.streamed.sample import Unchanged, sample_of

    file = Unchanged(folder / EXAMPLES)
    edits = read_edits(folder)
    sample = sample_of(folder, {member for part in edits.parts for member in part.digests()})
    earlier = _unedited(read_round(folder / TASKS), edits)
    examples, points = sample.examples, Points.of(sample.examples)
    distinct, embedder = [examples[first] for first in points.firsts], embedder or Embedder()
    if sample.digests is None:
        vectors, locator = locate(distinct, embedder), None
    else:
        vectors, locator = Locator.fit(distinct, embedder)
    found, ids, known = _find(examples, points, vectors, earlier, seed=seed)
    past = past_of(points.digests, earlier)
    if edits.edits:
        past = before(points.digests, earlier, edits)
        found, ids = _edited(found, regroup(found.labels, ids, found.vectors, past, earlier, edits))
    if sample.digests is None or locator is None:
        of = found.of_example
        if run:
            log.info("  all requests are looked at here; there is nothing for a cluster to do")
    else:
        placer = Placer(locator, found.vectors, found.labels, points.digests, seed=seed)
        of = place(folder / EXAMPLES, placer, sample.digests, run or here)
    tasks = _describe(found, ids, _counts(of, len(ids)), least_sessions, edits, earlier)
    tasks, scenarios = _with_scenarios(found, tasks, earlier, least_sessions)
    retired = retire(tasks, found.labels, past, earlier)
    made = Round(tasks=tasks, scenarios=scenarios, retired=retired, least_sessions=least_sessions)
    if edits.edits:
        retired = gone(retired, known, edits)
        made = msgspec.structs.replace(made, retired=retired, found=known, edits=edits.edits)
    same = examples if locator is None else iterate_examples(folder)
    write_examples(folder / EXAMPLES, _with_tasks(same, of, ids, file))
    write_round(folder / TASKS, made)
    _fit_router(folder / router.NAME, found, tasks)
    return [task.shown() for task in sorted(tasks, key=lambda task: (-task.size, task.id))]


def _with_tasks(
    examples: Iterable[CuratedExample], of: "Labels", ids: Sequence[str], file: "Unchanged"
) -> Iterator[CuratedExample]:
    """Yield the examples with their tasks; raises InputError after the last where `file` is another one by now."""
    try:
        for example, label in zip(examples, of, strict=True):
            yield msgspec.structs.replace(example, task=ids[int(label)])
    finally:
        file.check()  # another number of examples is most likely another file


def _counts(labels: "Labels", groups: int) -> list[int]:
    import numpy as np

    return np.bincount(labels, minlength=groups).tolist()


def _unedited(earlier: Round, edits: TaskEdits) -> Round:
    """Return the last round; where all its edits have been undone, as it was found."""
    if earlier.found is None or edits.edits:
        return earlier
    words = {task.id: task for task in earlier.every}
    found = earlier.found

    def named(tasks: Sequence[Task]) -> list[Task]:
        return [msgspec.structs.replace(task, scenario=words[task.id].scenario) if task.id in words else task
                for task in tasks]  # fmt: skip

    return msgspec.structs.replace(found, tasks=named(found.tasks), retired=named(found.retired))


def _find(
    examples: Sequence[CuratedExample], points: Points, vectors: "Vectors", earlier: Round, *, seed: int
) -> tuple[_Found, list[str], Round]:
    """Return what is found, whatever people made of what was found before: the groups, their ids, and the round."""
    import numpy as np

    from fieldlm_compiler.learn.communities import communities

    before_edits = earlier.found or earlier
    past = past_of(points.digests, before_edits)
    functions = [call_of(examples[first].answer)[0] for first in points.firsts]
    known = ["" if name == "text" else name for name in functions]
    counts = np.bincount(points.of_example)
    with terminal.progress("find tasks"):
        labels = np.array(communities(vectors, known, seed=seed, least=LEAST_SIZE, counts=counts.tolist(), before=past))
    found = _Found(examples, points, vectors, labels, has_functions=len(set(functions)) > 1)
    centres = found.centres()
    ids = assign_ids(labels, past, centres, before_edits)
    sizes = np.bincount(found.of_example)
    tasks = [
        Task(
            id=task, name=task, size=int(size), cohesion=0.0, example="", centre=packed(centre),
            members=members_of(points.digests[int(at)] for at in (labels == label).nonzero()[0]),
        )
        for label, (task, size, centre) in enumerate(zip(ids, sizes, centres, strict=True))
    ]  # fmt: skip
    bare = [msgspec.structs.replace(task, name=task.id, description="", example="", scenario="", excluded=False)
            for task in retire(tasks, labels, past, before_edits)]  # fmt: skip
    return found, ids, Round(tasks=tasks, retired=bare)


def _edited(found: _Found, task_of: Sequence[str]) -> tuple[_Found, list[str]]:
    """Return the groups as people want them, each request's in `task_of`, and their ids."""
    import numpy as np

    places: dict[str, int] = {}
    labels = np.array([places.setdefault(task, len(places)) for task in task_of])
    return found._replace(labels=labels), list(places)


def _with_scenarios(
    found: _Found, tasks: Sequence[Task], earlier: Round, least_sessions: int
) -> tuple[list[Task], list[Scenario]]:
    """Return the tasks with their scenarios, and these."""
    from fieldlm_compiler.learn.communities import joined

    # Tasks are alike in what is said; functions are as far from each other as from any.
    groups = joined(found.centres()[:, : len(found.vectors[0]) - SHAPE_SIZE * found.has_functions])
    ids = scenario_ids(groups, [task.id for task in tasks], [task.size for task in tasks], earlier)
    placed = [
        msgspec.structs.replace(task, scenario=ids[group]) for task, group in zip(tasks, groups.tolist(), strict=True)
    ]
    common = common_words(found.examples, found.of_example.tolist())
    shown = told(found.examples, groups[found.of_example].tolist(), ids, least_sessions, common)
    return placed, _scenarios(placed, ids, shown)


def _fit_router(path: Path, found: _Found, tasks: Sequence[Task]) -> None:
    """Write the router of the tasks that were not left out: what a device has not learnt is for others to answer."""
    from fieldlm_compiler.learn.router import write_router

    with terminal.progress("fit the router") as line:
        asked = [
            (found.examples[first].utterance, tasks[label].id)
            for first, label in zip(found.points.firsts, found.labels.tolist(), strict=True)
            if not tasks[label].excluded
        ]
        known_as = {task.id: task.name for task in tasks}
        if not write_router(path, [text for text, _ in asked], [task for _, task in asked], known_as):
            line.note = "none: there is one task, or too few examples of another"


def _describe(  # noqa: PLR0917
    found: _Found, ids: Sequence[str], sizes: Sequence[int], least_sessions: int, edits: TaskEdits, earlier: Round
) -> list[Task]:
    """Return the tasks in the order of their labels; one that is as it was `earlier` keeps its name."""
    was: dict[str, Task] = {}
    if earlier.least_sessions == least_sessions:
        by_hand = TaskEdits(earlier.edits).names
        was = {task.id: task for task in earlier.tasks if task.description and task.id not in by_hand}
    centres, of = found.centres(), found.of_example
    places = of.tolist()
    shown = told(found.examples, places, ids, least_sessions, common_words(found.examples, places))
    tasks: list[Task] = []
    for label, centre in enumerate(centres):
        (members,) = (found.labels == label).nonzero()
        closeness = found.vectors[members] @ centre
        name, description = shown[label]
        digests = members_of(found.points.digests[int(member)] for member in members)
        same = was.get(ids[label])
        own = [found.examples[int(at)] for at in (of == label).nonzero()[0]]
        nearest = (found.examples[found.points.firsts[int(members[at])]] for at in (-closeness).argsort(kind="stable"))
        if same and (same.members, same.size) == (digests, sizes[label]):
            name, description = same.name, same.description
        tasks.append(
            Task(
                id=ids[label],
                name=edits.names.get(ids[label], name),
                description=description,
                size=sizes[label],
                cohesion=round(float(closeness.mean()), 3),
                example=instance(nearest, own, least_sessions) if description else "",
                excluded=ids[label] in edits.excluded,
                centre=packed(centre),
                members=digests,
            )
        )
    return tasks


def _scenarios(tasks: Sequence[Task], ids: Sequence[str], shown: Sequence[tuple[str, str]]) -> list[Scenario]:
    """Return a scenario per id, with its tasks."""
    scenarios: list[Scenario] = []
    for scenario, (name, description) in zip(ids, shown, strict=True):
        own = [task for task in tasks if task.scenario == scenario]
        size = sum(task.size for task in own)
        members = [task.id for task in own]
        scenarios.append(Scenario(id=scenario, name=name, description=description, size=size, tasks=members))
    return scenarios


def main(argv: Sequence[str]) -> int:
    """Find the recurring tasks in curated examples."""
    parser = terminal.parser("cluster", "Find the recurring tasks in curated examples.", "fieldlm cluster examples")
    parser.add_argument("examples", type=Path, help="folder with examples.jsonl; the examples get their task there")
    parser.add_argument(
        "--seed", type=options.whole(0, 2**32 - 1), default=0, help="the same seed gives the same tasks"
    )
    parser.add_argument(
        "--least-sessions",
        type=options.whole(1),
        default=1,
        metavar="K",
        help="show no word that was said in a task of fewer customers",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="let a Ray cluster put what is beyond 100,000 requests to its tasks",
    )
    args = parser.parse_args(argv)
    from fieldlm_compiler.learn.streamed.on_ray import check_cluster, on_cluster
    from fieldlm_compiler.pipeline.ray_cluster import connected

    with connected(args.ray):
        run = on_cluster if args.ray else None
        if run:
            check_cluster()
        tasks = cluster(args.examples, seed=args.seed, least_sessions=args.least_sessions, run=run)
    names = {scenario.id: scenario.name for scenario in read_round(args.examples / TASKS).scenarios}
    rows = [
        (task["id"], task["name"], names[task["scenario"]], task["size"], task["cohesion"], task["example"][:60])
        for task in tasks
    ]
    text = terminal.table(rows, ("task", "name", "scenario", "examples", "cohesion", "for instance"))
    terminal.show({"tasks": tasks}, text, as_json=args.json)
    return 0
