"""`fieldlm tasks`: look at the tasks that were found, and rename, merge, split or leave them out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core import charts, options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import write_whole
from fieldlm.core.pages import render
from fieldlm.core.wording import counted
from fieldlm_compiler.learn.curated import EXAMPLES, read_examples
from fieldlm_compiler.learn.task_edits.edits import TaskEdit, TaskEdits, read_edits, write_edits
from fieldlm_compiler.learn.task_edits.view import ShownTask, ShownTasks, named, show, tasks_of
from fieldlm_compiler.learn.tasks import TASKS, read_round
from fieldlm_compiler.rounds.state import read_rounds

MOST_NAME = 120
HEAD = ("task", "name", "scenario", "examples", "customers", "state", "for instance")


def main(argv: Sequence[str]) -> int:
    """List the tasks in a folder, after an edit if one is asked for."""
    args = _parser().parse_args(argv)
    folder, again = _examples(args.folder)
    edits = read_edits(args.folder)
    before = show(folder, edits, args.least_sessions)
    edited = _edited(args, before.tasks, edits, folder)
    if edited is not edits:
        write_edits(args.folder, edited)
    found = before if edited is edits else show(folder, edited, args.least_sessions)
    if args.page:
        write_whole(args.page, page(found).encode(), private=True)
    lines = [terminal.table([_cells(task) for task in found.tasks], HEAD), ""]
    lines += [f"  by hand: {edit}" for edit in found.edits]
    lines += [f"  not applied yet; next: {again}"] if found.pending else []
    lines += [f"  {args.page}"] if args.page else []
    answer = msgspec.to_builtins(found) | {"page": str(args.page) if args.page else None}
    terminal.show(answer, "\n".join(lines), as_json=args.json)
    return 0


def _parser() -> terminal.Parser:
    parser = terminal.parser(
        "tasks",
        "Look at the tasks that were found, and rename, merge, split or leave them out: one edit a call. Edits stay "
        "for all rounds.",
        "fieldlm tasks examples --page tasks.html",
        "fieldlm tasks rounds --merge task-1f2e3d4c task-5b6a7988",
    )
    parser.add_argument(
        "folder", type=options.existing_folder, help="folder of examples, as `cluster` left it, or of rounds"
    )
    parser.add_argument("--page", type=options.new_file, metavar="HTML", help="draw the tasks as a page")
    parser.add_argument(
        "--least-sessions",
        type=options.whole(1),
        default=1,
        metavar="K",
        help="show no word that fewer than K customers said; where `cluster` had a larger K, that one counts",
    )
    # argparse does not break a group of this length.
    parser.usage = "%(prog)s [-h] [--json] [--page HTML] [EDIT] folder"
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--rename", nargs=2, metavar=("TASK", "NAME"), help="call a task by another name")
    one.add_argument("--merge", nargs=2, metavar=("TASK", "INTO"), help="make a task part of another one")
    one.add_argument("--split", metavar="TASK", help="part a task into its finer communities")
    one.add_argument("--exclude", metavar="TASK", help="leave a task out of data sets and of what is judged by")
    one.add_argument("--include", metavar="TASK", help="take a task back in that was left out")
    one.add_argument("--undo", action="store_true", help="undo the last edit")
    return parser


def _examples(folder: Path) -> tuple[Path, str]:
    """Return the folder with examples and tasks that `folder` means, and which command applies edits."""
    if (folder / EXAMPLES).is_file():
        if not (folder / TASKS).is_file():
            raise InputError(f"{folder} has no tasks yet; find them with: fieldlm cluster {folder}")
        return folder, f"fieldlm cluster {folder}"
    if rounds := read_rounds(folder):
        return rounds[-1].examples, f"fieldlm round STORE --base BASE --out {folder}"
    raise InputError(
        f"{folder} holds neither tasks nor rounds; name a folder of `fieldlm cluster`, or the --out of `fieldlm round`"
    )


def _edited(args: argparse.Namespace, tasks: Sequence[ShownTask], edits: TaskEdits, folder: Path) -> TaskEdits:
    """Return the edits with the one that is asked for, and `edits` where none is."""
    if args.undo:
        if not edits.edits:
            raise InputError(f"{args.folder} has no edit to undo")
        return TaskEdits(edits.edits[:-1])
    edit = _asked(args, tasks, edits, folder)
    return TaskEdits([*edits.edits, edit]) if edit else edits


def _asked(args: argparse.Namespace, tasks: Sequence[ShownTask], edits: TaskEdits, folder: Path) -> TaskEdit | None:
    if args.rename:
        task, name = named(args.rename[0], tasks, args.folder), " ".join(args.rename[1].split())
        if not 0 < len(name) <= MOST_NAME or not name.isprintable():
            raise InputError(f"{args.rename[1]!r} is no name; use 1 to {MOST_NAME} letters in one line")
        others = [each for each in tasks if each.id != task and not each.state.startswith("merged")]
        if taken := next((each for each in others if name in (each.id, each.name)), None):
            raise InputError(f"{taken.id} has the name {name!r} already; use another, or rename that one first")
        return TaskEdit(kind="rename", task=task, name=name)
    if args.merge:
        task, into = (named(word, tasks, args.folder) for word in args.merge)
        if task == into:
            raise InputError(f"{task} cannot be merged into itself; name another task as INTO")
        return TaskEdit(kind="merge", task=task, into=into)
    if args.split:
        return _split(named(args.split, tasks, args.folder), edits, folder)
    if args.exclude or args.include:
        task, is_out = named(args.exclude or args.include, tasks, args.folder), bool(args.exclude)
        if edits.leaves_out(task) == is_out:
            raise InputError(f"{task} is {'left out already' if is_out else 'not left out'}")
        return TaskEdit(kind="exclude" if is_out else "include", task=task)
    return None


def _split(task: str, edits: TaskEdits, folder: Path) -> TaskEdit:
    from fieldlm_compiler.learn.task_edits.split import split

    examples = read_examples(folder)
    of = tasks_of(examples, read_round(folder / TASKS), edits)
    own = [example for example, found in zip(examples, of, strict=True) if found == task]
    if not own:
        raise InputError(f"{task} was not asked for this time; split it when it is there again")
    return split(task, own)


def page(found: ShownTasks) -> str:
    """Return the page of all tasks, by scenario."""
    scenarios: dict[str, list[ShownTask]] = {}
    for task in found.tasks:
        scenarios.setdefault(task.scenario or ("no scenario" if task.examples else "not in this round"), []).append(
            task
        )
    return render(
        "fieldlm_compiler.rounds",
        "tasks.html",
        title="fieldlm: tasks",
        found=found,
        counts=f"{counted(sum(task.examples > 0 for task in found.tasks), 'task')} of "
        f"{counted(sum(task.examples for task in found.tasks), 'example')}",
        scenarios=[
            (name, [(task, charts.bar(task.name, [(_kind(task), task.share)])) for task in tasks])
            for name, tasks in scenarios.items()
        ],
    )


def _kind(task: ShownTask) -> str:
    return "old" if task.state else "new"


def _cells(task: ShownTask) -> tuple[object, ...]:
    return task.id, task.name, task.scenario, task.examples, task.customers, task.state, task.example[:60]
