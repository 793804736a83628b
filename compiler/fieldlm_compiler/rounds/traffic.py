"""Which requests belong to which task, what they cost, and whether a new round is due.

A request that no example was made of goes to the task whose centre its words are nearest to. It belongs to none when it
lies further out than all but `FAR` of that task's own examples do. So one in twenty requests is called unknown when
nothing has changed, and far more when a new kind of request comes, though not all of them: new kinds use old words.
Looked at are the newest `MOST_REQUESTS` whose words may be read; the others are only counted.

A round is due when `DUE_SHARE` of the requests since the last one, or more, are unknown or belong to tasks that people
correct more often than the generation in service was wrong on held-out examples. Unknown ones count when there are more
than one in twenty would be by chance (binomial test), a task when its corrections are no chance either (R. A. Fisher's
exact test), each at `LEVEL`. That is a watch on what comes in; whether a new round is better is for its gate to say.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fieldlm.core.wording import counted
from fieldlm_compiler.collect.sink import CORRECTED, Sink
from fieldlm_compiler.learn.curated import CuratedExample, read_examples
from fieldlm_compiler.rounds.state import Exact, FinishedRound, Mark, TaskCost

if TYPE_CHECKING:
    from fieldlm_compiler.learn.embed import Vectors

MOST_REQUESTS = 20_000
FAR = 0.05
LEAST_REQUESTS = 30
"""Fewer since the last round say nothing."""
DUE_SHARE = 0.1
LEVEL = 0.01
_REQUESTS = f"""
WITH said AS (SELECT response, arg_max(correction, seq) FILTER (correction <> '') AS correction FROM records
    WHERE kind = 'feedback' AND {CORRECTED} GROUP BY response),
marks AS (SELECT unnest($2::VARCHAR[]) AS device, unnest($3::UBIGINT[]) AS epoch, unnest($4::UBIGINT[]) AS seq)
SELECT g.response, g.route, g.prompt_tokens, g.completion_tokens, g.answer, coalesce(said.correction, '') AS correction,
    said.response IS NOT NULL AS is_corrected,
    CASE WHEN list_contains($1::VARCHAR[], g.consent) THEN g.prompt ELSE '' END AS prompt
FROM records g LEFT JOIN said USING (response) LEFT JOIN marks ON marks.device = g.device AND marks.epoch = g.epoch
WHERE g.kind = 'generation' AND g.seq > coalesce(marks.seq, 0)
ORDER BY g.wall_ms DESC, g.device, g.epoch, g.seq DESC LIMIT $5"""
_SEEN = """SELECT device, epoch, max(seq) AS seq FROM records WHERE kind = 'generation' GROUP BY ALL ORDER BY ALL"""
ESCALATED = ("escalate", "escalated", "cloud")


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What the newest requests were about. `unknown` belong to no task; `unread` came without words."""

    requests: int
    unread: int
    unknown: int
    costs: dict[str, TaskCost]

    @property
    def read(self) -> int:
        return self.requests - self.unread

    def share(self, task: str) -> float:
        return self.costs[task].calls / self.read if task in self.costs and self.read else 0.0


class DriftWatch(msgspec.Struct, frozen=True, kw_only=True):
    """What came in since the last round: `drifted` is the share that is unknown or corrected too often."""

    requests: int
    unread: int
    unknown: int
    risen: dict[str, str]
    drifted: float
    is_due: bool
    why: str


def look(
    store: Sink, examples: Sequence[CuratedExample], consents: Collection[str], *, since: Sequence[Mark] = ()
) -> Traffic:
    """Sort the requests that are in `store`, and not in `since`, by the tasks of `examples`."""
    columns = [list(column) for column in zip(*since, strict=True)] if since else [[], [], []]
    rows = store.query(_REQUESTS, [sorted(consents), *columns, MOST_REQUESTS])
    readable = [(row, said) for row in rows if (said := _example(row)) is not None]
    tasks = assign(examples, [said for _, said in readable])
    grouped: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for (row, _), task in zip(readable, tasks, strict=True):
        grouped[task].append(row)
    return Traffic(
        requests=len(rows),
        unread=len(rows) - len(readable),
        unknown=len(grouped.pop("", [])),
        costs={task: _cost(each) for task, each in sorted(grouped.items())},
    )


def seen(store: Sink) -> list[Mark]:
    """Return up to which number the requests of every device are in the store."""
    return [(row["device"], row["epoch"], row["seq"]) for row in store.query(_SEEN)]


def assign(examples: Sequence[CuratedExample], requests: Sequence[CuratedExample]) -> list[str]:
    """Return the task of each request, "" for none. Examples know theirs, and so do requests that became one."""
    known = {example.response: example.task for example in examples}
    strange = [request for request in requests if request.response not in known]
    if not strange or not examples:
        return [known.get(request.response, "") for request in requests]
    import numpy as np

    from fieldlm_compiler.learn.embed import Embedder, unit

    # Words weigh by how common they are among all that are located, so both go at once.
    points = Embedder()([example.utterance for example in (*examples, *strange)])
    names = np.array([example.task for example in examples])
    tasks = sorted(set(names.tolist()))
    of = [points[: len(examples)][names == task] for task in tasks]
    centres = unit(np.stack([each.mean(axis=0) for each in of]))
    edges = np.array([_edge(each) for each in of])
    likeness = points[len(examples) :] @ centres.T
    nearest = likeness.argmax(axis=1)
    is_near = likeness[np.arange(len(strange)), nearest] >= edges[nearest]
    found = {
        request.response: tasks[int(at)] if near else ""
        for request, at, near in zip(strange, nearest, is_near, strict=True)
    }
    return [known.get(request.response) or found.get(request.response, "") for request in requests]


def _edge(points: "Vectors") -> float:
    """Return the likeness to the centre of the others that all but `FAR` of a task's examples reach."""
    import numpy as np

    from fieldlm_compiler.learn.embed import unit

    others = unit(points.sum(axis=0) - points)
    return float(np.quantile((points * others).sum(axis=1), FAR))


def watch(store: Sink, last: FinishedRound | None, in_service: FinishedRound | None) -> DriftWatch:
    """Say whether a new round is due after `last`; `in_service` is the accepted round whose figures are foreseen."""
    if last is None:
        return DriftWatch(
            requests=0, unread=0, unknown=0, risen={}, drifted=1.0, is_due=True, why="there has been no round yet"
        )
    consents = last.document.made_of["consents"]
    found = look(store, read_examples(last.examples), consents, since=last.seen())
    foreseen = {row.id: row.this for row in in_service.document.tasks if row.this} if in_service else {}
    names = {row.id: row.name for row in last.document.tasks}
    risen = risen_tasks(found, foreseen, names)
    part = sum(found.costs[task].calls for task in risen) + (found.unknown if is_strange(found) else 0)
    drifted = part / found.read if found.read else 0.0
    is_due = found.read >= LEAST_REQUESTS and drifted >= DUE_SHARE
    return DriftWatch(
        requests=found.requests,
        unread=found.unread,
        unknown=found.unknown,
        risen=risen,
        drifted=round(drifted, 4),
        is_due=is_due,
        why=_why(found, risen, drifted, last.number),
    )


def is_strange(found: Traffic) -> bool:
    """Say whether more requests belong to no task than would if nothing had changed."""
    from scipy.stats import binomtest

    return found.read > 0 and float(binomtest(found.unknown, found.read, FAR, alternative="greater").pvalue) < LEVEL


def risen_tasks(found: Traffic, foreseen: Mapping[str, Exact], names: Mapping[str, str]) -> dict[str, str]:
    """Return the tasks that are corrected more often than they were wrong on held-out examples, with the figures."""
    from scipy.stats import hypergeom

    risen: dict[str, str] = {}
    for task, cost in found.costs.items():
        exam = foreseen.get(task)
        if exam is None or not exam.total:
            continue
        foreseen_wrong = exam.total - exam.right
        wrong = cost.corrected + foreseen_wrong
        if float(hypergeom.sf(cost.corrected - 1, cost.calls + exam.total, wrong, cost.calls)) < LEVEL:
            risen[task] = (
                f"{names.get(task, task)}: {cost.corrected} of {cost.calls} corrected, "
                f"{foreseen_wrong} of {exam.total} were wrong on held-out examples"
            )
    return risen


def _why(found: Traffic, risen: Mapping[str, str], drifted: float, number: int) -> str:
    if found.read < LEAST_REQUESTS:
        return (
            f"{counted(found.read, 'request')} that may be read since round "
            f"{number}; {LEAST_REQUESTS} are the fewest that tell"
        )
    said = f"of {counted(found.read, 'request')} since round {number} {found.unknown} belong to no known task"
    said += "" if is_strange(found) else f", as {FAR:.0%} always do"
    said += "".join(f"; {each}" for each in risen.values())
    return f"{said}: {drifted:.0%} have drifted, a round is due from {DUE_SHARE:.0%} on"


def _cost(rows: Sequence[dict[str, Any]]) -> TaskCost:
    routes = Counter(
        "large" if (route := row["route"].casefold()) == "large" else "escalated" if route in ESCALATED else "small"
        for row in rows
    )
    return TaskCost(
        calls=len(rows),
        prompt_tokens=sum(row["prompt_tokens"] for row in rows),
        completion_tokens=sum(row["completion_tokens"] for row in rows),
        small=routes["small"],
        large=routes["large"],
        escalated=routes["escalated"],
        corrected=sum(row["is_corrected"] for row in rows),
    )


def _example(row: dict[str, Any]) -> CuratedExample | None:
    """Return a request as an example of what was asked and said; None where its words are not there."""
    try:
        messages = msgspec.json.decode(row["prompt"], type=list[dict[str, Any]]) if row["prompt"] else []
    except (msgspec.MsgspecError, RecursionError):
        messages = []
    if not messages:
        return None
    return CuratedExample(
        messages=messages,
        answer=row["correction"] or row["answer"],
        label_source="correction",
        session="",
        response=row["response"],
        split="train",
    )
