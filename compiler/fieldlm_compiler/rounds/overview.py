"""`fieldlm rounds`: the rounds so far, their trend, and whether the next one is due."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import write_whole
from fieldlm.core.wording import counted
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.rounds.report import in_service, rounds_page
from fieldlm_compiler.rounds.state import Exact, FinishedRound, RoundDocument, last_accepted, read_rounds
from fieldlm_compiler.rounds.traffic import DriftWatch, watch

HEAD = ("round", "begun", "examples", "tasks", "before", "now", "decision")
SPARKS = "▁▂▃▄▅▆▇█"


def main(argv: Sequence[str]) -> int:
    """List the rounds in a folder; with a store say whether the next one is due."""
    args = _parser().parse_args(argv)
    rounds = read_rounds(args.rounds)
    if not rounds:
        make = f"fieldlm round STORE --base MODEL --out {args.rounds}"
        raise InputError(f"{args.rounds} has no finished round; make one with: {make}")
    found: DriftWatch | None = None
    if args.store:
        with open_sink(args.store, read_only=True) as sink:
            found = watch(sink, rounds[-1], last_accepted(rounds))
    due = _due(found)
    documents = [each.document for each in rounds]
    if args.page:
        title = f"{counted(len(rounds), 'round')}, {sum(each.is_accepted for each in rounds)} accepted"
        page = rounds_page(title, documents, [cells(each) for each in documents], due)
        write_whole(args.page, page.encode())
    text = [terminal.table([cells(each) for each in documents], HEAD), "", f"  exact match {_sparks(rounds)}  {due}"]
    answer: dict[str, Any] = {
        "rounds": [_facts(each) for each in rounds],
        "watch": msgspec.to_builtins(found) if found else None,
        "page": str(args.page) if args.page else None,
    }
    terminal.show(answer, "\n".join([*text, *([f"  {args.page}"] if args.page else [])]), as_json=args.json)
    return 0


def _parser() -> terminal.Parser:
    parser = terminal.parser(
        "rounds",
        "List the rounds of learning, draw their trend, and say when the next one is due.",
        "fieldlm rounds rounds",
        "fieldlm rounds rounds --store store --page rounds.html",
    )
    parser.add_argument("rounds", type=options.existing_folder, help="what `fieldlm round` filled")
    parser.add_argument("--page", type=options.new_file, metavar="HTML", help="write it all as a page, with pictures")
    parser.add_argument("--store", help="look at what came in since the last round: FOLDER, delta:URI or kafka:…")
    return parser


def _due(found: DriftWatch | None) -> str:
    if found is None:
        return "--store says whether a round is due"
    return f"{'a round is due' if found.is_due else 'no round is due'}: {found.why}"


def cells(document: RoundDocument) -> list[str]:
    """Return a round as a row of the table."""
    return [
        str(document.number),
        document.began[:16].replace("T", " "),
        f"{document.curated['examples']:,}",
        str(len(document.tasks)),
        _share(document.previous or document.base),
        _share(document.this),
        ": ".join([document.decision, *(["; ".join(document.reasons)] if document.reasons else [])]),
    ]


def _facts(each: FinishedRound) -> dict[str, Any]:
    document = each.document
    names = ("number", "began", "decision", "reasons", "generation", "base", "previous", "this")
    plain = {name: msgspec.to_builtins(getattr(document, name)) for name in names}
    return plain | {"examples": document.curated["examples"], "tasks": len(document.tasks), "folder": str(each.folder)}


def _share(found: Exact | None) -> str:
    return f"{found.score.share:.1%}" if found and found.total else "–"


def _sparks(rounds: Sequence[FinishedRound]) -> str:
    shares = [in_service(each.document).score.share for each in rounds]
    return "".join(SPARKS[min(int(share * len(SPARKS)), len(SPARKS) - 1)] for share in shares)
