"""Edits of tasks by people: renamed, merged, split, left out; kept in a file of their own, the last one undone first.

What is found stays what is found: edits lie on top of it and are applied anew by every `cluster` and every round. So
one that is undone leaves nothing behind, and none makes the search for tasks coarser or finer.

    task_edits.json   {"format": …, "edits": [{"kind": "merge", "task": "task-1", "into": "task-2"}, …]}

It lies beside tasks.json in a folder of examples, and in the folder of all rounds.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes, write_whole

FILE = "task_edits.json"
FORMAT = "fieldlm.task-edits/1"
Kind = Literal["rename", "merge", "split", "exclude", "include"]
_DIGITS = 8


class TaskPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part that was split off a task: its own id, and the digests of its requests then, one after the other."""

    id: str
    members: str

    def digests(self) -> list[str]:
        return [self.members[at : at + _DIGITS] for at in range(0, len(self.members), _DIGITS)]


class TaskEdit(msgspec.Struct, frozen=True, kw_only=True):
    """One edit of `task`. Of a split the largest part keeps the task's id, and `parts` are the others."""

    kind: Kind
    task: str
    name: str = ""
    into: str = ""
    parts: list[TaskPart] = []

    def __str__(self) -> str:
        match self.kind:
            case "rename":
                return f"{self.task} is called {self.name!r}"
            case "merge":
                return f"{self.task} is part of {self.into}"
            case "split":
                return f"{self.task} is split: {', '.join([self.task, *(part.id for part in self.parts)])}"
            case "exclude":
                return f"{self.task} is left out"
            case "include":
                return f"{self.task} is no longer left out"


class TaskEdits:
    """All edits, in their order, and what they come to."""

    def __init__(self, edits: Sequence[TaskEdit] = ()) -> None:
        self.edits = list(edits)
        self.parts = [part for edit in edits for part in edit.parts]
        self.names: dict[str, str] = {}
        self._into: dict[str, str] = {}
        self._excluded: set[str] = set()
        for edit in edits:
            self._apply(edit)

    def _apply(self, edit: TaskEdit) -> None:
        match edit.kind:
            case "rename":
                self.names[edit.task] = edit.name
            case "merge":
                self._into[edit.task] = edit.into
                self._excluded.discard(edit.task)
            case "split" if edit.task in self._excluded:
                self._excluded.update(part.id for part in edit.parts)
            case "exclude":
                self._excluded.add(edit.task)
            case "include":
                self._excluded.discard(edit.task)
            case _:
                pass

    def resolve(self, task: str) -> str:
        """Return the task that `task` is part of by now: itself, unless it was merged."""
        while task in self._into:
            task = self._into[task]
        return task

    def parts_of(self, task: str) -> list[str]:
        """Return `task` and the parts that were split off it, where they are tasks of their own."""
        parts = [part.id for edit in self.edits if edit.task == task for part in edit.parts]
        return [task, *(part for part in parts if self.resolve(part) == part)]

    def leaves_out(self, task: str) -> bool:
        """Say whether no data set and no judgement has the examples of `task`."""
        return self.resolve(task) in self._excluded

    @property
    def excluded(self) -> frozenset[str]:
        return frozenset(self._excluded)

    @cached_property
    def held(self) -> frozenset[str]:
        """The tasks that people have touched: whatever else is found, their requests stay together and apart."""
        touched = {edit.into or edit.task for edit in self.edits if edit.kind != "include"}
        return frozenset(self.resolve(task) for task in (*touched, *(part.id for part in self.parts)))

    @property
    def digest(self) -> str | None:
        """SHA-256 of the edits, None where there are none."""
        return _digest(self.edits)

    @property
    def deciding_digest(self) -> str | None:
        """The same without names, which change nothing that is learnt."""
        return _digest([edit for edit in self.edits if edit.kind != "rename"])


def _digest(edits: Sequence[TaskEdit]) -> str | None:
    return sha256_bytes(canonical_json(msgspec.to_builtins(edits))) if edits else None


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format: str = FORMAT
    edits: list[TaskEdit] = []


def read_edits(folder: Path) -> TaskEdits:
    """Return the edits in `folder`, none where it has no such file. Raises InputError."""
    path = folder / FILE
    if not path.is_file():
        return TaskEdits()
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{path} holds no edits of tasks: {error}; remove it to begin anew") from error
    if found.format != FORMAT:
        raise InputError(f"{path} is of format {found.format}, known is {FORMAT}; update fieldlm-compiler")
    return TaskEdits(found.edits)


def write_edits(folder: Path, edits: TaskEdits) -> None:
    """Write the edits to `folder`; where there are none left, no file is."""
    if edits.edits:
        write_whole(folder / FILE, canonical_json(msgspec.to_builtins(_File(edits=edits.edits))), private=True)
    else:
        (folder / FILE).unlink(missing_ok=True)
