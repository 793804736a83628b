"""Dataset versions: a folder named by its content, so that a model can say what it has learned from.

out/<first 16 digits of the content's SHA-256>/
  train.jsonl  eval.jsonl   {"v": 1, "messages": […, {"role": "assistant", …}], "tools": […], "task": …, "session": …}
                            and "rejected": {"role": "assistant", …}, the answer that a person corrected,
                            and "customer": …, the device that speaks where no session is known
  dataset.json              counts, tasks, consents, and the generations whose answers it holds
  card.md  card.json        the data card: splits, balance, terms, what was dropped and why
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, whole_folder
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm.inference.chat_template import Message
from fieldlm_compiler.learn.curated import CuratedExample, read_examples
from fieldlm_compiler.learn.quality.card import JSON, MARKDOWN, card, customer_of, markdown
from fieldlm_compiler.learn.task_edits.edits import TaskEdits, read_edits
from fieldlm_compiler.learn.task_edits.view import named, show, tasks_of
from fieldlm_compiler.learn.tasks import TASKS, Round, read_round
from fieldlm_compiler.learn.tokenized import VERSION, read_lines

log = logger(__name__)
FORMAT = "fieldlm.dataset/1"
DOCUMENT = "dataset.json"
SPLITS = ("train", "eval")


def dataset(examples: Path, out: Path, *, task: str = "", licence: str = "") -> Path:
    """Write the dataset of an examples folder, of one `task` (id or name) or of all; returns its folder.

    The same examples give the same folder and bytes. People's edits count as `fieldlm tasks` shows them, applied by
    `cluster` or not. Raises InputError when nothing would be trained on, and where an applied edit was undone since.
    """
    folder = examples if examples.is_dir() else examples.parent
    edits, known = read_edits(folder), read_round(folder / TASKS)
    if edits.edits[: len(known.edits)] != known.edits:
        raise InputError(f"edits of tasks were undone, and {folder} still has them; run: fieldlm cluster {folder}")
    given = read_examples(examples)
    placed = [
        msgspec.structs.replace(each, task=now) if now != each.task else each
        for each, now in zip(given, tasks_of(given, known, edits), strict=True)
    ]
    # What has no label is there to find tasks in; what people left out of the tasks is in none.
    labelled = [each for each in placed if each.label_source != "none" and not edits.leaves_out(each.task)]
    wanted = _task_id(task, folder, edits) if task else ""
    if edits.leaves_out(wanted):
        raise InputError(
            f"{task} is left out of all data sets by people; take it back in with: fieldlm tasks {folder} "
            f"--include {wanted}"
        )
    chosen = [example for example in labelled if wanted in ("", example.task)]
    lines = {split: b"".join(_line(e) for e in chosen if e.split == split) for split in SPLITS}
    if not lines["train"]:
        raise InputError(f"{examples} has no training example{' of ' + task if task else ''}; collect more first")
    made_of = {
        "labels": _counted(example.label_source for example in chosen),
        "consents": _counted(example.consent for example in chosen),
        "generations": _counted(example.generation for example in chosen),
    }
    return _write(out, lines, made_of, _origin(folder, known, edits) | {"licence": licence})


def _origin(folder: Path, known: Round, edits: TaskEdits) -> dict[str, Any]:
    """Return what a card says of how the examples in `folder` were made, as far as it is known."""
    curated: dict[str, Any] = {}
    if (folder / "curate.json").is_file():
        curated = msgspec.json.decode((folder / "curate.json").read_bytes(), type=dict[str, Any])
    names = _names(folder, known, edits)
    told = {name: curated[name] for name in ("dropped", "redacted", "held_out_from") if name in curated}
    return told | {"names": names, "left_out": [names.get(task, task) for task in edits.excluded]}


def _names(folder: Path, known: Round, edits: TaskEdits) -> dict[str, str]:
    """Return the names of all tasks by their ids, as `fieldlm tasks` shows them."""
    if known.edits == edits.edits:
        return {task.id: task.name for task in known.every}
    return {task.id: task.name for task in show(folder, edits).tasks}


def without_sessions(folder: Path, gone: Collection[str]) -> Path | None:
    """Replace the data set in `folder` by one that holds no line of the sessions `gone`; returns the new folder.

    The new one names the old in `replaces`, so that what was made of that is still known. Where no training example is
    left there is no new one, and None is returned.
    """
    old = msgspec.json.decode((folder / DOCUMENT).read_bytes(), type=dict[str, Any])
    lines = {split: list(read_lines(folder / f"{split}.jsonl")) for split in SPLITS}
    kept = {
        split: b"".join(line + b"\n" for line in those if msgspec.json.decode(line).get("session") not in gone)
        for split, those in lines.items()
    }
    about = {name: old[name] for name in ("labels", "consents", "generations") if name in old}
    replaces = [*old.get("replaces", []), old["id"]]
    new = _write(folder.parent, kept, about | {"replaces": replaces}, _origin_of(folder)) if kept["train"] else None
    shutil.rmtree(folder)
    return new


def _origin_of(folder: Path) -> dict[str, Any]:
    """Return what the card in `folder` says of how its examples were made, nothing where there is none."""
    if not (folder / JSON).is_file():
        return {}
    known = msgspec.json.decode((folder / JSON).read_bytes(), type=dict[str, Any])
    return known | {"names": {task["id"]: task["name"] for task in known["tasks"]}}


def _write(out: Path, lines: dict[str, bytes], about: dict[str, Any], origin: dict[str, Any]) -> Path:
    """Write a data set, unless it is there; `about` says what its lines do not, `origin` how they came about."""
    rows = {split: [msgspec.json.decode(line) for line in lines[split].split(b"\n") if line] for split in SPLITS}
    both = [row for split in SPLITS for row in rows[split]]
    digest = hashlib.sha256(b"\0".join(lines[split] for split in SPLITS)).hexdigest()
    folder = out / digest[:16]
    document = {
        "format": FORMAT,
        "id": digest[:16],
        "sha256": digest,
        "train": len(rows["train"]),
        "eval": len(rows["eval"]),
        "customers": len({customer_of(row) for row in both}),
        "tasks": _counted(row["task"] for row in both if row["task"]),
        "pairs": {split: sum("rejected" in row for row in rows[split]) for split in SPLITS},
        **about,
    }
    if not (folder / DOCUMENT).is_file():
        with whole_folder(folder, private=True) as aside:
            for split in SPLITS:
                (aside / f"{split}.jsonl").write_bytes(lines[split])
            facts = card(document, rows, origin)
            (aside / JSON).write_bytes(canonical_json(facts))
            (aside / MARKDOWN).write_text(markdown(facts))
            (aside / DOCUMENT).write_bytes(canonical_json(document))
    return folder


def _line(example: CuratedExample) -> bytes:
    right = _message(example.answer, example.tool_calls)
    line: dict[str, Any] = {"v": VERSION, "messages": [*example.messages, right]}
    line |= {"tools": example.tools} if example.tools else {}
    line |= {"rejected": _message(example.rejected, example.rejected_calls)} if example.rejected else {}
    line |= {"customer": example.voter} if example.names_nobody else {}
    return msgspec.json.encode(line | {"task": example.task, "session": example.session}) + b"\n"


def _message(answer: str, calls: Sequence[Message]) -> Message:
    return {"role": "assistant", **({"content": "", "tool_calls": calls} if calls else {"content": answer})}


def _task_id(task: str, folder: Path, edits: TaskEdits) -> str:
    """Return the id of the task that `task` is the id or the only name of."""
    if not (folder / TASKS).is_file():
        raise InputError(f"{folder / TASKS} does not exist; find the tasks with: fieldlm cluster {folder}")
    return named(task, show(folder, edits).tasks, folder)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def main(argv: Sequence[str]) -> int:
    """Write a dataset that is named by its content."""
    parser = terminal.parser(
        "dataset",
        "Turn examples into a dataset that is named by its content.",
        "fieldlm dataset examples --out datasets",
    )
    parser.add_argument("examples", type=Path, help="folder with examples.jsonl, from curate and cluster")
    parser.add_argument("--out", type=options.new_folder, required=True, help="folder of datasets")
    parser.add_argument("--task", default="", help="only this task, by its id or name")
    parser.add_argument("--licence", default="", metavar="TEXT", help="what the data card says of the licence")
    args = parser.parse_args(argv)
    folder = dataset(args.examples, args.out, task=args.task, licence=args.licence)
    document: dict[str, Any] = msgspec.json.decode((folder / "dataset.json").read_bytes())
    tasks = counted(len(document["tasks"]), "task") if document["tasks"] else "no tasks found yet (fieldlm cluster)"
    text = f"{folder}: {document['train']} train, {document['eval']} eval, {tasks}"
    if not document["eval"]:
        log.warning(
            f"! {folder} has no eval example: what is tuned on it cannot be evaluated; "
            "collect from more customers, or hold more of them out: fieldlm curate STORE --out FOLDER --eval-share 0.5"
        )
    terminal.show(document | {"folder": str(folder)}, text, as_json=args.json)
    return 0
