"""Dataset versions: a folder named by its content, so that a model can say what it has learned from.

out/<first 16 digits of the content's SHA-256>/
  train.jsonl  eval.jsonl   {"messages": […, {"role": "assistant", …}], "task": …, "session": …} a line
  dataset.json              counts, tasks, consents, and the generations whose answers it holds
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, whole_folder
from fieldlm_compiler.learn.cluster import TASKS, Task
from fieldlm_compiler.learn.curate import CuratedExample, read_examples

FORMAT = "fieldlm.dataset/1"
SPLITS = ("train", "eval")


def dataset(examples: Path, out: Path, *, task: str = "") -> Path:
    """Write the dataset of an examples folder, of one `task` (id or name) or of all; returns its folder.

    The same examples give the same folder and bytes. Raises InputError when nothing would be trained on.
    """
    chosen = _of_task(read_examples(examples), task, examples)
    lines = {split: b"".join(_line(e) for e in chosen if e.split == split) for split in SPLITS}
    if not lines["train"]:
        raise InputError(f"{examples} has no training example{' of ' + task if task else ''}; collect more first")
    digest = hashlib.sha256(b"\0".join(lines[split] for split in SPLITS)).hexdigest()
    folder = out / digest[:16]
    document = {
        "format": FORMAT,
        "id": digest[:16],
        "sha256": digest,
        "train": sum(example.split == "train" for example in chosen),
        "eval": sum(example.split == "eval" for example in chosen),
        "customers": len({example.session for example in chosen}),
        "tasks": _counted(example.task for example in chosen),
        "labels": _counted(example.label_source for example in chosen),
        "consents": _counted(example.consent for example in chosen),
        "generations": _counted(example.generation for example in chosen),
    }
    if not (folder / "dataset.json").is_file():
        with whole_folder(folder) as aside:
            for split in SPLITS:
                (aside / f"{split}.jsonl").write_bytes(lines[split])
            (aside / "dataset.json").write_bytes(canonical_json(document))
    return folder


def _line(example: CuratedExample) -> bytes:
    messages = [*example.messages, {"role": "assistant", "content": example.answer}]
    return msgspec.json.encode({"messages": messages, "task": example.task, "session": example.session}) + b"\n"


def _of_task(examples: Sequence[CuratedExample], task: str, folder: Path) -> list[CuratedExample]:
    if not task:
        return list(examples)
    names = _task_names(folder)
    wanted = {task_id for task_id, name in names.items() if task in (task_id, name)}
    if not wanted:
        known = ", ".join(f"{task_id} ({name})" for task_id, name in sorted(names.items())) or "none yet"
        raise InputError(f"there is no task {task!r} in {folder}; tasks: {known}")
    return [example for example in examples if example.task in wanted]


def _task_names(folder: Path) -> dict[str, str]:
    path = (folder if folder.is_dir() else folder.parent) / TASKS
    if not path.is_file():
        raise InputError(f"{path} does not exist; find the tasks with: fieldlm cluster {path.parent}")
    tasks = msgspec.convert(msgspec.json.decode(path.read_bytes())["tasks"], list[Task])
    return {task.id: task.name for task in tasks}


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def main(argv: Sequence[str]) -> int:
    """Write a dataset that is named by its content."""
    parser = terminal.parser("dataset", "Turn examples into a dataset that is named by its content.")
    parser.add_argument("examples", type=Path, help="folder with examples.jsonl, from curate and cluster")
    parser.add_argument("--out", type=Path, required=True, help="folder of datasets")
    parser.add_argument("--task", default="", help="only this task, by its id or name")
    args = parser.parse_args(argv)
    folder = dataset(args.examples, args.out, task=args.task)
    document: dict[str, Any] = msgspec.json.decode((folder / "dataset.json").read_bytes())
    text = f"{folder}: {document['train']} train, {document['eval']} eval, {len(document['tasks'])} tasks"
    terminal.show(document | {"folder": str(folder)}, text, as_json=args.json)
    return 0
