"""Task clustering: find the recurring tasks in examples, without being told: what is asked, and what is done about it.

A distinct request is a point: what was said as a vector, the same with arguments' names in place of their values where
the answer calls a function, and which function that is. Points near each other are joined, and what is joined more
within than without is a task (communities.py); tasks that are alike are a scenario. Ids last from round to round
(tasks.py), so adapters and thresholds can be tied to them.

    router.npz        which task a request is, for a device to ask (router.py)
    tasks.json        the tasks with names and scenarios, also those of earlier rounds that nobody asked for in this one
    examples.jsonl    the same examples, each with the id of its `task`
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.formats import router
from fieldlm_compiler.learn.curate import EXAMPLES, CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.shapes import call_of, signature, without_values
from fieldlm_compiler.learn.tasks import (
    TASKS,
    Round,
    Scenario,
    Task,
    assign_ids,
    digest,
    members_of,
    packed,
    past_of,
    read_round,
    retire,
    scenario_ids,
    telling_words,
    write_round,
)

if TYPE_CHECKING:
    from fieldlm_compiler.learn.communities import Labels
    from fieldlm_compiler.learn.embed import Embedder, Vectors

SHAPE_SIZE = 64
LEAST_SIZE = 8
"""Fewer examples are no task of their own."""
NAME_WORDS, DESCRIPTION_WORDS = 3, 8


class _Points(NamedTuple):
    """Distinct requests: the place of one example each, and of each example the place of its request."""

    firsts: list[int]
    of_example: "Labels"
    digests: list[str]

    @classmethod
    def of(cls, examples: Sequence[CuratedExample]) -> "_Points":
        import numpy as np

        places: dict[str, int] = {}
        firsts: list[int] = []
        of_example: list[int] = []
        for number, example in enumerate(examples):
            key = digest(example.utterance, signature(example.answer))
            if key not in places:
                places[key] = len(firsts)
                firsts.append(number)
            of_example.append(places[key])
        return cls(firsts, np.array(of_example), list(places))


class _Found(NamedTuple):
    """Examples, their distinct requests as points, and the label of each point."""

    examples: Sequence[CuratedExample]
    points: _Points
    vectors: "Vectors"
    labels: "Labels"

    @property
    def of_example(self) -> "Labels":
        return self.labels[self.points.of_example]

    def centres(self) -> "Vectors":
        import numpy as np

        from fieldlm_compiler.learn.embed import unit

        count = int(self.labels.max()) + 1
        return unit(np.stack([self.vectors[self.labels == label].mean(axis=0) for label in range(count)]))


def cluster(
    folder: Path, *, seed: int = 0, embedder: "Embedder | None" = None, least_sessions: int = 1
) -> list[dict[str, Any]]:
    """Find the tasks in `folder`/examples.jsonl; writes tasks.json and the examples' `task`, returns the tasks.

    A task of fewer than `least_sessions` customers shows no word that was said. The same examples, earlier tasks and
    seed give the same result. Raises InputError when there are no examples.
    """
    import numpy as np

    from fieldlm_compiler.learn.communities import communities, joined
    from fieldlm_compiler.learn.embed import Embedder
    from fieldlm_compiler.learn.router import write_router

    examples = read_examples(folder)
    if not examples:
        raise InputError(f"{folder / EXAMPLES} is empty; collect more, then: fieldlm curate STORE --out {folder}")
    earlier = read_round(folder / TASKS)
    points = _Points.of(examples)
    distinct = [examples[first] for first in points.firsts]
    vectors = locate(distinct, embedder or Embedder())
    past = past_of(points.digests, earlier)
    functions = [call_of(example.answer)[0] for example in distinct]
    known = ["" if name == "text" else name for name in functions]
    counts = np.bincount(points.of_example)
    with terminal.progress("find tasks"):
        labels = np.array(communities(vectors, known, seed=seed, least=LEAST_SIZE, counts=counts.tolist(), before=past))
    found = _Found(examples, points, vectors, labels)
    ids = assign_ids(labels, past, found.centres(), earlier)
    tasks = _describe(found, ids, least_sessions)
    # Tasks are alike in what is said; functions are as far from each other as from any.
    groups = joined(found.centres()[:, : len(vectors[0]) - SHAPE_SIZE * (len(set(functions)) > 1)])
    groups_ids = scenario_ids(groups, ids, [task.size for task in tasks], earlier)
    tasks = [
        msgspec.structs.replace(task, scenario=groups_ids[group])
        for task, group in zip(tasks, groups.tolist(), strict=True)
    ]
    scenarios = _scenarios(tasks, groups_ids, _shown(examples, groups[found.of_example], groups_ids, least_sessions))
    retired = retire(tasks, labels, past, earlier)
    write_round(folder / TASKS, Round(tasks=tasks, scenarios=scenarios, retired=retired))
    with terminal.progress("fit the router") as line:
        said = [example.utterance for example in distinct]
        known_as = {task.id: task.name for task in tasks}
        if not write_router(folder / router.NAME, said, [ids[label] for label in labels.tolist()], known_as):
            line.note = "none: there is one task, or too few examples of another"
    of = found.of_example.tolist()
    write_examples(
        folder / EXAMPLES,
        [msgspec.structs.replace(e, task=ids[label]) for e, label in zip(examples, of, strict=True)],
    )
    return [task.shown() for task in sorted(tasks, key=lambda task: (-task.size, task.id))]


def locate(examples: Sequence[CuratedExample], embedder: "Embedder") -> "Vectors":
    """Return a point of length 1 per example: what was said, the same without values, which function was called."""
    import numpy as np

    from fieldlm_compiler.learn.embed import unit

    said = [example.utterance for example in examples]
    calls = [call_of(example.answer) for example in examples]
    views = [embedder(said)]
    if any(arguments for _, arguments in calls):
        views.append(embedder([without_values(text, call[1]) for text, call in zip(said, calls, strict=True)]))
    if len({name for name, _ in calls}) > 1:
        directions = {name: _direction(name) for name, _ in calls}
        views.append(np.stack([directions[name] for name, _ in calls]) * np.float32(len(views) ** 0.5))
    return unit(np.hstack(views))


def _direction(feature: str) -> "Vectors":
    """Return a random direction that is always the same for a feature."""
    import numpy as np

    seed = int.from_bytes(hashlib.sha256(feature.encode()).digest()[:8])
    direction = np.random.default_rng(seed).standard_normal(SHAPE_SIZE)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def _describe(found: _Found, ids: Sequence[str], least_sessions: int) -> list[Task]:
    """Return the tasks in the order of their labels."""
    centres, of = found.centres(), found.of_example
    shown = _shown(found.examples, of, ids, least_sessions)
    tasks: list[Task] = []
    for label, centre in enumerate(centres):
        (members,) = (found.labels == label).nonzero()
        closeness = found.vectors[members] @ centre
        nearest = found.examples[found.points.firsts[int(members[int(closeness.argmax())])]]
        name, description = shown[label]
        tasks.append(
            Task(
                id=ids[label],
                name=name,
                description=description,
                size=int((of == label).sum()),
                cohesion=round(float(closeness.mean()), 3),
                example=nearest.utterance if description else "",
                centre=packed(centre),
                members=members_of(found.points.digests[int(member)] for member in members),
            )
        )
    return tasks


def _shown(
    examples: Sequence[CuratedExample], of: "Labels", ids: Sequence[str], least_sessions: int
) -> list[tuple[str, str]]:
    """Return name and description of each group of examples; its id and nothing where too few customers are in it.

    In none is a word that fewer customers said.

    A name is the function that most answers call and the most telling words.
    """
    voters: list[set[str]] = [set() for _ in ids]
    functions: list[Counter[str]] = [Counter() for _ in ids]
    texts: list[list[tuple[str, str]]] = [[] for _ in ids]
    for example, label in zip(examples, of.tolist(), strict=True):
        voters[label].add(example.voter)
        functions[label][call_of(example.answer)[0]] += 1
        texts[label].append((example.utterance, example.voter))
    shown: list[tuple[str, str]] = []
    for label, words in enumerate(telling_words(texts, DESCRIPTION_WORDS, least_sessions)):
        if len(voters[label]) < least_sessions:
            shown.append((ids[label], ""))
            continue
        function, calls = functions[label].most_common(1)[0]
        speaks = function != "text" and calls > 0.6 * functions[label].total()
        typical = " ".join(words[:NAME_WORDS])
        called = [name for name, _ in functions[label].most_common(NAME_WORDS) if name != "text"]
        told = f"people say {', '.join(words)}" if words else "people say nothing"
        told += f"; answered by {', '.join(called)}" if called else ""
        shown.append((f"{function}: {typical}" if speaks else typical or function, told))
    return shown


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
    args = parser.parse_args(argv)
    tasks = cluster(args.examples, seed=args.seed, least_sessions=args.least_sessions)
    names = {scenario.id: scenario.name for scenario in read_round(args.examples / TASKS).scenarios}
    rows = [
        (task["id"], task["name"], names[task["scenario"]], task["size"], task["cohesion"], task["example"][:60])
        for task in tasks
    ]
    text = terminal.table(rows, ("task", "name", "scenario", "examples", "cohesion", "for instance"))
    terminal.show({"tasks": tasks}, text, as_json=args.json)
    return 0
