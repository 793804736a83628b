"""Several adapters in one bundle, and which of them answers which task: `adapters` in a manifest.

A request's task is told by the bundle's router (`formats/router.py`). The first adapter answers what no other one is
for, and what is of no task that is known; it is what a program gets that knows of one adapter only. Because such a
program would answer with it and say nothing, the manifest lists `adapters` in `must_understand`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from fieldlm.core.errors import BundleError

FIELD = "adapters"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
"""What an adapter may be called: a request names it as `model:adapter`."""
MOST = 64


class TaskAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter of several: its file, the ids of its `tasks`, and the file with the calibration of its answers."""

    name: str
    path: str
    tasks: tuple[str, ...] = ()
    confidence: str | None = None


def task_map(adapters: Sequence[TaskAdapter]) -> dict[str, str]:
    """Return the name of the adapter of every task that has one, by the task's id."""
    return {task: each.name for each in adapters for task in each.tasks}


def check_task_adapters(
    adapters: Sequence[TaskAdapter], roles: Mapping[str, str], must_understand: Sequence[str], *, what: str
) -> None:
    """Raise BundleError with what is wrong in a manifest's adapters; `roles` are those of its files by their paths."""
    if wrong := next(_wrong(adapters, roles, must_understand), ""):
        raise BundleError(f"{what} names adapters of tasks, but {wrong}; compile the bundle again")


def _wrong(adapters: Sequence[TaskAdapter], roles: Mapping[str, str], must_understand: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong; what follows the first may not hold."""
    if not 2 <= len(adapters) <= MOST:
        yield f"there are {len(adapters)}, want 2 to {MOST}"
    if FIELD not in must_understand:
        yield f"must_understand has no {FIELD!r}, so that an older version would pass them by"
    if "router" not in roles.values():
        yield "it has no router, which tells a request's task"
    for each in adapters:
        if not NAME.fullmatch(each.name):
            yield f"{each.name!r} is no name: letters, digits, - and _, at most 64"
        if roles.get(each.path) != "adapter":
            yield f"{each.name!r} has the file {each.path!r}, which is none of its adapters"
        if each.confidence is not None and roles.get(each.confidence) != "confidence":
            yield f"{each.name!r} has the calibration {each.confidence!r}, which is none of its files"
        if not each.tasks and each is not adapters[0]:
            yield f"{each.name!r} is for no task, and only the first one answers the rest"
    for kind, found in (
        ("the adapter", [each.name for each in adapters]),
        ("the file", [each.path for each in adapters]),
        ("the task", [task for each in adapters for task in each.tasks]),
    ):
        if twice := next((name for name, count in Counter(found).items() if count > 1), None):
            yield f"{kind} {twice!r} is there twice"
    files = [path for path, role in roles.items() if role == "adapter"]
    if files[0] != adapters[0].path:
        yield f"the first one is not {files[0]!r}, the first of its files"
    if left := next((path for path in files if path not in {each.path for each in adapters}), None):
        yield f"none of them has the file {left!r}"
