"""Tasks from round to round: ids by the requests that two rounds share, scenarios above them, names, tasks.json.

A task of this round is the one of an earlier round that most of its requests were in. Of a task that splits, the larger
part keeps the id; of tasks that are joined the largest keeps its own, and the others are noted as merged into it. A
task that nobody asked for waits with its id. Requests are known by the first digits of their digests.
"""

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm_compiler.learn.shapes import spelling
from fieldlm_compiler.learn.task_edits.edits import TaskEdit

if TYPE_CHECKING:
    from fieldlm_compiler.learn.communities import Labels
    from fieldlm_compiler.learn.embed import Vectors

TASKS = "tasks.json"
FORMAT = "fieldlm.tasks/1"
SAME = 0.85
"""Cosine between two rounds' centres above which tasks without a common request are the same one."""
MOST_MEMBERS = 2000
"""Requests of a task that are remembered: those of the smallest digests, which are the same ones in every round."""
LEAST_SHARE = 0.05
"""Share of a task's requests that must have been in an earlier one for its id."""
STRAYS = 0.02
"""Share of a class' texts that may have a word by chance."""
_DIGITS = 8


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of request that recurs. `cohesion` is the mean cosine of its examples to its centre.

    `centre` is float16 in base64 (older files: numbers), `members` are digests of requests, one after the other.
    """

    id: str
    name: str
    size: int
    cohesion: float
    example: str
    description: str = ""
    scenario: str = ""
    merged_into: str = ""
    excluded: bool = False
    """Whether people left it out: no data set has its examples, and nothing is judged by them."""
    centre: str | list[float] = ""
    members: str = ""

    def vector(self) -> "Vectors":
        """Return the centre's numbers, none where the file has none."""
        import numpy as np

        if isinstance(self.centre, list):
            return np.array(self.centre, np.float32)
        return np.frombuffer(base64.b64decode(self.centre), np.float16).astype(np.float32)

    def digests(self) -> list[str]:
        return [self.members[at : at + _DIGITS] for at in range(0, len(self.members), _DIGITS)]

    def shown(self) -> dict[str, Any]:
        """Return what a person reads of it."""
        return msgspec.to_builtins(msgspec.structs.replace(self, centre="", members=""))


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that are alike, as a level above them."""

    id: str
    name: str
    description: str
    size: int
    tasks: list[str]


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What tasks.json holds: the tasks of the last round, their scenarios, and earlier tasks that it had not.

    Where people edited them, `found` holds the tasks as they were found, without words, and `edits` what was applied.
    No word of a task is shown that fewer than `least_sessions` customers said.
    """

    tasks: list[Task] = []
    scenarios: list[Scenario] = []
    retired: list[Task] = []
    found: "Round | None" = None
    edits: list[TaskEdit] = []
    least_sessions: int = 1
    format: str = FORMAT

    @property
    def every(self) -> list[Task]:
        return [*self.tasks, *self.retired]


def read_round(path: Path) -> Round:
    """Return what the file at `path` holds, an empty round where there is none. Raises InputError."""
    if not path.is_file():
        return Round()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Round)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{path} is no tasks file: {error}; remove it to number the tasks anew") from error


def write_round(path: Path, found: Round) -> None:
    write_whole(path, canonical_json(msgspec.to_builtins(found)), private=True)


def digest(text: str, shape: Iterable[str]) -> str:
    """Return how a request is known: the first digits of the SHA-256 of what is said and what is done about it."""
    return hashlib.sha256("\0".join([spelling(text), *shape]).encode()).hexdigest()[:_DIGITS]


def past_of(digests: Sequence[str], earlier: Round) -> list[str]:
    """Return for each request the id of the task that it was in, or ""; what was last counts first."""
    known: dict[str, str] = {}
    for task in earlier.every:
        for member in task.digests():
            known.setdefault(member, task.id)
    return [known.get(one, "") for one in digests]


def members_of(digests: Iterable[str]) -> str:
    return "".join(sorted(set(digests))[:MOST_MEMBERS])


def packed(centre: "Vectors") -> str:
    return base64.b64encode(centre.astype("float16").tobytes()).decode()


def assign_ids(labels: "Labels", past: Sequence[str], centres: "Vectors", earlier: Round) -> list[str]:
    """Return an id per task, in the order of labels: first by requests in common, then by centres, else a new one."""
    import numpy as np

    common: list[Counter[str]] = [Counter() for _ in centres]
    for label, was in zip(labels.tolist(), past, strict=True):
        if was:
            common[label][was] += 1
    sizes = np.bincount(labels, minlength=len(centres))
    pairs = [
        (-count, label, was)
        for label, counted in enumerate(common)
        for was, count in counted.items()
        if count >= LEAST_SHARE * sizes[label]
    ]
    ids: dict[int, str] = {}
    taken: set[str] = set()
    for _, label, was in sorted(pairs):
        if label not in ids and was not in taken:
            ids[label] = was
            taken.add(was)
    _by_centres(centres, [task for task in earlier.every if task.id not in taken and not task.merged_into], ids)
    used = {task.id for task in earlier.every} | set(ids.values())
    for label, centre in enumerate(centres):
        if label not in ids:
            ids[label] = _fresh("task", np.round(centre, 3).tobytes(), used)
    return [ids[label] for label in range(len(centres))]


def _by_centres(centres: "Vectors", known: Sequence[Task], ids: dict[int, str]) -> None:
    """Add ids of `known` tasks to those labels of `centres` that have none and are as near as SAME."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    from fieldlm_compiler.learn.embed import unit

    known = [task for task in known if len(task.vector()) == centres.shape[1]]
    free = [label for label in range(len(centres)) if label not in ids]
    if not known or not free:
        return
    likeness = centres[free] @ unit(np.stack([task.vector() for task in known])).T
    for new, old in zip(*linear_sum_assignment(-likeness), strict=True):
        if likeness[new, old] >= SAME:
            ids[free[int(new)]] = known[int(old)].id


def _fresh(kind: str, content: bytes, used: set[str]) -> str:
    found = f"{kind}-{hashlib.sha256(content).hexdigest()[:8]}"
    while found in used:
        content += b"\0"
        found = f"{kind}-{hashlib.sha256(content).hexdigest()[:8]}"
    used.add(found)
    return found


def retire(tasks: Sequence[Task], labels: "Labels", past: Sequence[str], earlier: Round) -> list[Task]:
    """Return the earlier tasks that this round has not; what most of whose requests are elsewhere is merged there."""
    found = {task.id for task in tasks}
    now: dict[str, Counter[int]] = {}
    for label, was in zip(labels.tolist(), past, strict=True):
        if was and was not in found:
            now.setdefault(was, Counter())[label] += 1
    retired: list[Task] = []
    for task in earlier.every:
        if task.id in found:
            continue
        counted = now.get(task.id, Counter())
        label, count = counted.most_common(1)[0] if counted else (0, 0)
        if 2 * count > len(task.digests()) > 0:
            task = msgspec.structs.replace(task, merged_into=tasks[label].id)  # noqa: PLW2901
        retired.append(task)
    return retired


def scenario_ids(groups: "Labels", tasks: Sequence[str], sizes: Sequence[int], earlier: Round) -> list[str]:
    """Return an id per scenario: that of the earlier one which most of its examples' tasks were in, or a new one."""
    was = {task.id: task.scenario for task in earlier.every if task.scenario}
    weights: Counter[tuple[int, str]] = Counter()
    for group, task, size in zip(groups.tolist(), tasks, sizes, strict=True):
        if task in was:
            weights[group, was[task]] += size
    ids: dict[int, str] = {}
    for (group, old), _ in sorted(weights.items(), key=lambda one: (-one[1], one[0])):
        if group not in ids and old not in ids.values():
            ids[group] = old
    used = set(was.values())
    for group in range(int(groups.max()) + 1):
        first = min(task for number, task in zip(groups.tolist(), tasks, strict=True) if number == group)
        if group not in ids:
            ids[group] = _fresh("scenario", first.encode(), used)
    return [ids[group] for group in range(len(ids))]


def words_of_most(texts: Sequence[Sequence[tuple[str, str]]]) -> frozenset[str]:
    """Return the words that half the classes of texts or more have, not only in strays: they tell no class apart."""
    said: Counter[str] = Counter()
    for those in texts:
        counted = Counter(word for text, _ in those for word in set(_words(text)))
        said.update(word for word, count in counted.items() if count > STRAYS * len(those))
    return frozenset(word for word, classes in said.items() if classes > 1 and 2 * classes >= len(texts))


def telling_words(
    texts: Sequence[Sequence[tuple[str, str]]], most: int, least_voters: int = 1, common: Collection[str] = ()
) -> list[list[str]]:
    """Return for each class of texts, each with who said it, the most telling words that `least_voters` people said.

    Words in `common` are among them only where a class has no others.

    By c-TF-IDF (Grootendorst, arXiv:2203.05794): how often a class has a word, times log(1 + A/f), with A the words of
    an average class and f how often the word is said in all. A word counts once a text.
    """
    counted = [Counter(word for text, _ in those for word in set(_words(text))) for those in texts]
    everywhere = sum(counted, Counter[str]())
    average = everywhere.total() / max(1, len(counted))
    found: list[list[str]] = []
    for those, words in zip(texts, counted, strict=True):
        voters: dict[str, set[str]] = {}
        for text, voter in those:
            for word in _words(text):
                voters.setdefault(word, set()).add(voter)
        score = {
            word: count * math.log1p(average / everywhere[word])
            for word, count in words.items()
            if len(voters[word]) >= least_voters
        }
        score = {word: value for word, value in score.items() if word not in common} or score
        found.append(sorted(score, key=lambda word: (-round(score[word], 9), word))[:most])
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_][\w'’]+", text.casefold())
