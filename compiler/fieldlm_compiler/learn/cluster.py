"""Task clustering: find the recurring tasks in examples, without being told: what is asked, and what is done about it.

An example is a point: half of it the customer's words as a vector, half of it the shape of the answer (the function a
JSON answer calls and its arguments' names). Points near each other are joined, and what is joined more within than
without is a task (communities.py). A task keeps its id from round to round as long as its centre stays near, so
adapters and thresholds can be tied to it.

    tasks.json        name, size, cohesion, an example and the centre of each task, also of those of earlier rounds
    examples.jsonl    the same examples, each with the id of its `task`
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.inference.tool_calls import CLOSE, OPEN
from fieldlm_compiler.learn.communities import communities
from fieldlm_compiler.learn.curate import EXAMPLES, CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.embed import Embedder, Vectors, unit

TASKS = "tasks.json"
SHAPE_SIZE = 64
LEAST_SIZE = 8
"""Fewer examples are no task of their own."""
SAME = 0.85
"""Cosine between two rounds' centres above which a task is the same one."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of request that recurs. `cohesion` is the mean cosine of its examples to its centre."""

    id: str
    name: str
    size: int
    cohesion: float
    example: str
    centre: list[float] = []


def cluster(folder: Path, *, seed: int = 0, embedder: Embedder | None = None) -> list[dict[str, Any]]:
    """Find the tasks in `folder`/examples.jsonl; writes tasks.json and the examples' `task`, returns the tasks.

    The same examples, earlier tasks and seed give the same result. Raises InputError when there are no examples.
    """
    examples = read_examples(folder)
    if not examples:
        raise InputError(f"{folder / EXAMPLES} is empty; collect more, then: fieldlm curate STORE --out {folder}")
    with terminal.progress("find tasks"):
        points = locate(examples, embedder or Embedder())
        functions = [signature(example.answer)[0] for example in examples]
        known = ["" if name == "text" else name for name in functions]
        labels = communities(points, known, seed=seed, least=LEAST_SIZE)
    earlier = _earlier(folder / TASKS)
    tasks = describe(examples, points, labels, earlier=earlier)
    found = {task.id for task in tasks}
    # Who is not asked for in this round comes back under the same id: adapters are tied to it.
    retired = [task for task in earlier if task.id not in found]
    document = {"format": "fieldlm.tasks/1", "tasks": tasks, "retired": retired}
    write_whole(folder / TASKS, canonical_json(document))
    of = {label: task.id for label, task in zip(sorted(set(labels)), tasks, strict=True)}
    write_examples(
        folder / EXAMPLES,
        [msgspec.structs.replace(e, task=of[label]) for e, label in zip(examples, labels, strict=True)],
    )
    ranked = sorted(tasks, key=lambda task: (-task.size, task.id))
    return [msgspec.to_builtins(msgspec.structs.replace(task, centre=[])) for task in ranked]


def locate(examples: Sequence[CuratedExample], embedder: Embedder) -> Vectors:
    """Return a point of length 1 per example: words, then the shape of the answer."""
    words = embedder([example.utterance for example in examples])
    return unit(np.hstack([words, np.stack([_shape(example.answer) for example in examples])]).astype(np.float32))


def signature(answer: str) -> tuple[str, ...]:
    """Return what an answer does: the called function, then its arguments' names. Plain text does "text"."""
    try:
        call: Any = json.loads(answer.strip().removeprefix(OPEN).partition(CLOSE)[0])
    except (ValueError, RecursionError):
        return ("text",)
    if isinstance(call, dict) and isinstance(cast(dict[str, Any], call).get("tool_calls"), list):
        call = cast(dict[str, Any], call)["tool_calls"]
    if isinstance(call, list) and call:
        call = cast(list[Any], call)[0]
    if not isinstance(call, dict):
        return ("text",)
    fields = cast(dict[str, Any], call)
    if isinstance(fields.get("function"), dict):
        fields = cast(dict[str, Any], fields["function"])
    name = next((str(fields[key]) for key in ("name", "function", "tool", "intent") if key in fields), "object")
    arguments = next((fields[key] for key in ("arguments", "args", "parameters", "slots") if key in fields), fields)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    keys = sorted(cast(dict[str, Any], arguments)) if isinstance(arguments, dict) else []
    return (name, *(f"{name}.{key}" for key in keys))


def describe(
    examples: Sequence[CuratedExample], points: Vectors, labels: Sequence[int], *, earlier: Sequence[Task]
) -> list[Task]:
    """Return the tasks in the order of their labels, with the ids of `earlier` ones where they are the same."""
    found = np.array(labels)
    centres = unit(np.stack([points[found == label].mean(axis=0) for label in sorted(set(labels))]))
    ids = _ids(centres, earlier)
    names = _names(examples, labels)
    tasks: list[Task] = []
    for index, label in enumerate(sorted(set(labels))):
        members = np.flatnonzero(found == label)
        closeness = points[members] @ centres[index]
        tasks.append(
            Task(
                id=ids[index],
                name=names[label],
                size=len(members),
                cohesion=round(float(closeness.mean()), 3),
                example=examples[int(members[int(closeness.argmax())])].utterance,
                centre=[round(float(number), 5) for number in centres[index]],
            )
        )
    return tasks


def _shape(answer: str) -> Vectors:
    """Sum fixed random directions: the function counts as much as all its arguments together."""
    name, *keys = signature(answer)
    shape = _direction(name)
    if keys:
        shape = shape + 0.5 * np.mean([_direction(key) for key in keys], axis=0)
    return (shape / np.linalg.norm(shape)).astype(np.float32)


def _direction(feature: str) -> Vectors:
    seed = int.from_bytes(hashlib.sha256(feature.encode()).digest()[:8])
    direction = np.random.default_rng(seed).standard_normal(SHAPE_SIZE)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def _ids(centres: Vectors, earlier: Sequence[Task]) -> list[str]:
    ids = [f"task-{hashlib.sha256(np.round(centre, 3).tobytes()).hexdigest()[:8]}" for centre in centres]
    known = [task for task in earlier if len(task.centre) == centres.shape[1]]
    if known:
        from scipy.optimize import linear_sum_assignment

        likeness = centres @ np.array([task.centre for task in known], dtype=np.float32).T
        for new, old in zip(*linear_sum_assignment(-likeness), strict=True):
            if likeness[new, old] >= SAME:
                ids[int(new)] = known[int(old)].id
    return ids


def _names(examples: Sequence[CuratedExample], labels: Sequence[int]) -> dict[int, str]:
    """Name each task by the function most of its answers call and the words it has more often than the others."""
    words: dict[int, Counter[str]] = {label: Counter() for label in set(labels)}
    functions: dict[int, Counter[str]] = {label: Counter() for label in set(labels)}
    for example, label in zip(examples, labels, strict=True):
        words[label].update(set(re.findall(r"[^\W\d_][\w'’]{2,}", example.utterance.casefold())))
        functions[label][signature(example.answer)[0]] += 1
    everywhere = sum(words.values(), Counter[str]())
    sizes = Counter(labels)
    names: dict[int, str] = {}
    for label, counted in words.items():
        inside, outside = sizes[label], max(1, len(labels) - sizes[label])
        excess = {word: n / inside - (everywhere[word] - n) / outside for word, n in counted.items()}
        typical = " ".join(sorted(excess, key=lambda word: (-excess[word], word))[:3])
        function, calls = functions[label].most_common(1)[0]
        speaks = function != "text" and calls > 0.6 * functions[label].total()
        names[label] = f"{function}: {typical}" if speaks else typical or function
    return names


def _earlier(path: Path) -> list[Task]:
    if not path.is_file():
        return []
    try:
        document = msgspec.json.decode(path.read_bytes())
        return msgspec.convert([*document["tasks"], *document.get("retired", [])], list[Task])
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no tasks file: {error}; remove it to number the tasks anew") from error


def main(argv: Sequence[str]) -> int:
    """Find the recurring tasks in curated examples."""
    parser = terminal.parser("cluster", "Find the recurring tasks in curated examples.", "fieldlm cluster examples")
    parser.add_argument("examples", type=Path, help="folder with examples.jsonl; the examples get their task there")
    parser.add_argument(
        "--seed", type=options.whole(0, 2**32 - 1), default=0, help="the same seed gives the same tasks"
    )
    args = parser.parse_args(argv)
    tasks = cluster(args.examples, seed=args.seed)
    rows = [(task["id"], task["name"], task["size"], task["cohesion"], task["example"][:60]) for task in tasks]
    text = terminal.table(rows, ("task", "name", "examples", "cohesion", "for instance"))
    terminal.show({"tasks": tasks}, text, as_json=args.json)
    return 0
