"""Machine unlearning, the bookkeeping of it: what was made of people's words who have asked to be forgotten since.

The store forgets by itself. Examples, data sets, adapters and bundles are made of copies. This looks through folders
for all four, lists what holds such words or was made of what held them, and with `--rebuild` writes examples and data
sets anew without them. Adapters and bundles have to be made again: nothing can be taken out of weights.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.curated import EXAMPLES, read_examples, write_examples
from fieldlm_compiler.learn.dataset import DOCUMENT, SPLITS, without_sessions

Kind = Literal["examples", "data set", "adapter", "bundle"]


class Tainted(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that must not stay as it is. `lines` are those of forgotten people; weights have none to count."""

    kind: Kind
    path: str
    lines: int = 0
    dataset: str = ""
    rebuilt: str = ""


def tainted(store: Path | str, folders: Sequence[Path], *, rebuild: bool = False) -> list[Tainted]:
    """Return what lies in `folders`, or below, and holds or was made of words that `store` has forgotten.

    With `rebuild` the examples and data sets among it are replaced. Raises InputError when a folder is missing.
    """
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(f"{missing[0]} is no folder; name those that hold examples, data sets, adapters or bundles")
    with open_sink(str(store), read_only=True) as opened:
        rows = opened.query("SELECT DISTINCT session FROM records WHERE kind = 'forget' AND session <> ''")
    gone = frozenset(str(row["session"]) for row in rows)
    found = [*_examples(folders, gone, rebuild=rebuild)]
    known: set[str] = set()
    for path in _named(folders, DOCUMENT):
        document = _document(path)
        known.update(document.get("replaces", []))
        count = _lines_of(path.parent, gone)
        if count:
            known.add(document["id"])
            new = str(without_sessions(path.parent, gone) or "removed, nothing was left") if rebuild else ""
            found.append(
                Tainted(kind="data set", path=str(path.parent), lines=count, dataset=document["id"], rebuilt=new)
            )
    made: tuple[tuple[Kind, str], ...] = (("adapter", "tune.json"), ("bundle", "manifest.json"))
    for kind, name in made:
        for path in _named(folders, name):
            if made_of := known.intersection(_datasets(_document(path))):
                found.append(Tainted(kind=kind, path=str(path.parent), dataset=min(made_of)))
    return found


def _datasets(document: dict[str, Any]) -> list[str]:
    """Return the data sets that an adapter, or a bundle with one or several, was made of."""
    notes = document.get("notes")
    several = cast(dict[str, Any], notes).get("datasets") if isinstance(notes, dict) else None
    others = list(cast(dict[str, Any], several).values()) if isinstance(several, dict) else []
    return [str(each) for each in (document.get("dataset"), *others) if each]


def _examples(folders: Sequence[Path], gone: frozenset[str], *, rebuild: bool) -> Iterator[Tainted]:
    for path in _named(folders, EXAMPLES):
        examples = read_examples(path)
        kept = [example for example in examples if example.session not in gone]
        if len(kept) < len(examples):
            if rebuild:
                write_examples(path, kept)
            lines = len(examples) - len(kept)
            yield Tainted(kind="examples", path=str(path), lines=lines, rebuilt=str(path) if rebuild else "")


def _named(folders: Sequence[Path], name: str) -> list[Path]:
    return sorted({path for folder in folders for path in folder.rglob(name)})


def _lines_of(folder: Path, gone: frozenset[str]) -> int:
    lines = (line for split in SPLITS for line in (folder / f"{split}.jsonl").read_bytes().split(b"\n") if line)
    return sum(msgspec.json.decode(line).get("session") in gone for line in lines)


def _document(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}; remove it or make it again") from error


def main(argv: Sequence[str]) -> int:
    """List what was made of words that are forgotten; exit code 1 when something of it still stands."""
    parser = terminal.parser(
        "tainted",
        "List what was made of the words of people who were forgotten since.",
        "fieldlm tainted store examples datasets adapter",
        "fieldlm tainted store examples datasets --rebuild",
    )
    parser.add_argument("store", help="what `fieldlm collect` filled: FOLDER, delta:URI or kafka:BROKERS/TOPIC")
    parser.add_argument("folders", nargs="+", type=Path, help="where examples, data sets, adapters and bundles lie")
    parser.add_argument("--rebuild", action="store_true", help="replace examples and data sets by ones without them")
    args = parser.parse_args(argv)
    found = tainted(args.store, args.folders, rebuild=args.rebuild)
    rows = [(each.kind, each.path, each.lines or "–", each.rebuilt or "make it again") for each in found]
    text = terminal.table(rows, ("what", "where", "lines", "now")) if found else "nothing holds what was forgotten"
    terminal.show({"tainted": [msgspec.to_builtins(each) for each in found]}, text, as_json=args.json)
    return 1 if any(not each.rebuilt for each in found) else 0
