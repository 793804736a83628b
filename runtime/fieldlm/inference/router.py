"""The router of a bundle: which task a request is, and which of the bundle's adapters answers that task.

A conversation stays with the adapter of its first turn that is of a known task: a later one ("two, please") says
little alone, and another adapter has to read all that was said before anew. It changes where a later turn is a known
task with at most half of the doubt that a first one may leave. What was said decides alone, so the same conversation
has the same adapter, after a restart, too.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.router import Router, questions_of
from fieldlm.formats.task_adapters import TaskAdapter, task_map

MOST_TURNS = 16
"""The newest turns that may change a conversation's adapter; each takes about 0.2 ms to look at."""


def task_adapter_of(bundle: Bundle, messages: Sequence[Mapping[str, Any]], *, task: str = "") -> str:
    """Return the name of the adapter that answers a conversation; "" where the bundle has not several.

    `task` is what the client calls its task, by id or name, which counts more than what the router takes it for.
    """
    several = bundle.manifest.task_adapters
    router = bundle.router if several else None
    return choose(several, router, messages, task=task) if router is not None else ""


def choose(
    several: Sequence[TaskAdapter], router: Router, messages: Sequence[Mapping[str, Any]], *, task: str = ""
) -> str:
    """Return which of `several` adapters answers a conversation, by what `router` takes it for."""
    adapter_of, ids = task_map(several), dict(zip(router.names, router.tasks, strict=True))
    told = task if task in adapter_of or task in router.tasks else ids.get(task)
    return adapter_of.get(told or _task_of(router, questions_of(messages)) or "", several[0].name)


def _task_of(router: Router, said: Sequence[str]) -> str | None:
    """Return the task of a conversation by what the user said in each turn, None where none is known."""
    later, clear = said[1:][-MOST_TURNS:], (1 + router.least) / 2
    best = cache(router.best)  # a turn may be looked at twice
    for text in reversed(later):
        if best(text)[1] >= clear:
            return best(text)[0]
    return next((task for task, chance in map(best, (*said[:1], *later)) if chance >= router.least), None)
