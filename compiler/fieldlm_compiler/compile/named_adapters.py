"""Several adapters for one bundle: how they are named, and which tasks each is for.

The first answers what no other one is for. Every other one is called like what it is for: a scenario or a task, by id
or name, as `fieldlm cluster` wrote them to tasks.json and router.npz.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import GateError, InputError
from fieldlm.formats.growth import is_readable
from fieldlm.formats.router import Router, read_router
from fieldlm.formats.task_adapters import MOST, NAME, TaskAdapter
from fieldlm.inference.router import choose

FORMAT = "fieldlm.tasks/1"


@dataclass(frozen=True, kw_only=True)
class NamedAdapter:
    """A PEFT folder, what its adapter is called in the bundle, and the ids of the tasks that it is for.

    The only one of a bundle has no name; the first of several may be for no task, and answers the rest.
    """

    folder: Path
    name: str = ""
    tasks: tuple[str, ...] = ()


class AdapterGateError(GateError):
    """One of several adapters is not what it was tuned to be; the others may be."""

    def __init__(self, adapter: str, error: GateError) -> None:
        super().__init__(f"adapter {adapter!r}: {error}")
        self.adapter = adapter


class _Group(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    tasks: list[str] = []


class _Tasks(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of tasks.json."""

    scenarios: list[_Group] = []
    format: str = FORMAT


def with_tasks(words: Sequence[str], router: Path | None, tasks: Path | None) -> tuple[NamedAdapter, ...]:
    """Return the adapters of the options `--adapter [NAME=]FOLDER` with the tasks that each is for.

    Raises InputError for what is no folder, and for a name that is of no task or scenario, or of one that another has.
    """
    given = [_named_folder(each) for each in words]
    if len(given) < 2:
        return tuple(NamedAdapter(folder=folder) for _, folder in given)
    if router is None:
        raise InputError("several --adapter need --router FILE, the router.npz of fieldlm cluster: which task is what")
    known = _known(read_router(router), tasks)
    found: list[NamedAdapter] = []
    taken: dict[str, str] = {}
    for name, folder in given:
        if not name:
            raise InputError(f"several --adapter have names: --adapter NAME={folder}")
        own = known.get(name, ())
        if found and not own:
            near = terminal.did_you_mean(name, known)
            has = "" if tasks else "; scenarios are in --tasks tasks.json"
            raise InputError(f"--adapter {name}={folder}: no task of {router} is called {name!r}{near}{has}")
        for task in own:
            if task in taken:
                raise InputError(f"--adapter {name}={folder}: {task} is of the adapter {taken[task]!r} already")
            taken[task] = name
        found.append(NamedAdapter(folder=folder, name=name, tasks=own))
    return tuple(found)


def _named_folder(text: str) -> tuple[str, Path]:
    name, is_named, rest = text.partition("=")
    has_name = bool(is_named) and not Path(text).is_dir()
    folder = Path(rest if has_name else text)
    if not (rest if has_name else text):
        raise InputError(f"--adapter {text!r} names no folder; name the one that fieldlm tune wrote")
    if not folder.is_dir():
        what = "is no folder" if folder.is_file() else "does not exist"
        raise InputError(f"--adapter {text!r}: {str(folder)!r} {what}; name the one that fieldlm tune wrote")
    return name if has_name else "", folder


def _known(router: Router, tasks: Path | None) -> dict[str, tuple[str, ...]]:
    """Return the tasks by everything that an adapter for them may be called; ids come before names."""
    groups: dict[str, tuple[str, ...]] = {task: (task,) for task in router.tasks}
    names: dict[str, tuple[str, ...]] = {router.name(task): (task,) for task in router.tasks}
    if tasks is not None:
        try:
            read = msgspec.json.decode(tasks.read_bytes(), type=_Tasks)
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            raise InputError(f"{tasks} is no tasks file: {error}; name the tasks.json of fieldlm cluster") from error
        if not is_readable(read.format, FORMAT):
            raise InputError(f"{tasks} is of format {read.format}, known is {FORMAT}; update fieldlm-compiler")
        for group in read.scenarios:
            own = tuple(task for task in group.tasks if task in router.tasks)
            groups[group.id] = names[group.name] = own
    return names | groups


def check_named_apart(adapters: Sequence[NamedAdapter], router: Path | None) -> None:
    """Raise InputError where several adapters could not be told apart on a device."""
    if len(adapters) < 2:
        return
    if router is None:
        raise InputError("several adapters need a router, which tells a request's task: that of fieldlm cluster")
    names = [each.name for each in adapters]
    if wrong := next((name for name in names if not NAME.fullmatch(name)), None):
        raise InputError(f"an adapter's name is letters, digits, - and _; {wrong!r} is not")
    if len(names) > MOST or len(set(names)) < len(names):
        raise InputError(f"want 2 to {MOST} adapters of different names, not {', '.join(names)}")


class TaskShares:
    """The examples of a task file, parted among adapters as a device would part the requests; a context manager."""

    def __init__(self, task: Path | None, adapters: Sequence[NamedAdapter], router: Path) -> None:
        self._aside = TemporaryDirectory(prefix="fieldlm-")
        self._lines: dict[str, list[bytes]] = {each.name: [] for each in adapters}
        several = [TaskAdapter(name=each.name, path="", tasks=each.tasks) for each in adapters]
        tells = read_router(router)
        for line in task.read_bytes().split(b"\n") if task else ():
            if line.strip():
                self._lines[choose(several, tells, _asked(line))].append(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._aside.cleanup()

    def of(self, adapter: str) -> Path | None:
        """Return a task file with the examples that `adapter` answers; None where there are none."""
        lines = self._lines[adapter]
        if not lines:
            return None
        path = Path(self._aside.name) / f"{adapter}.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path


def _asked(line: bytes) -> list[Mapping[str, Any]]:
    """Return the conversation of a line without its answer; nothing where it is none, which `read_task` refuses."""
    try:
        messages = msgspec.json.decode(line, type=dict[str, Any]).get("messages")
    except (msgspec.MsgspecError, RecursionError):
        return []
    return messages[:-1] if isinstance(messages, list) and all(isinstance(each, dict) for each in messages) else []
