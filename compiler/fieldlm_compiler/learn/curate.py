"""Curation, records become labelled examples: filter, join feedback to its generation, dedupe, split by customer.

    out/
      examples.jsonl   one Example a line, in the order of their records
      curate.json      how many were kept, how many were left out, and why

The label is what the customer corrected, or what the model answered where the customer liked it; nothing else is one.
A customer is in `train` or in `eval` with everything they said, so that no held-out sentence has a sibling in training.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm_compiler.collect.parquet import Store

EXAMPLES = "examples.jsonl"
EVAL_SHARE = 0.1
Dropped = Literal["no consent", "no text", "no label", "not finished", "unreadable", "duplicate"]
_SQL = """
WITH said AS (
    SELECT response, arg_max(rating, seq) FILTER (rating <> '') AS rating,
        arg_max(correction, seq) FILTER (correction <> '') AS correction
    FROM records WHERE kind = 'feedback' GROUP BY response)
SELECT g.response, g.session, g.consent, g.generation, g.outcome, g.prompt, g.answer,
    coalesce(said.rating, '') AS rating, coalesce(said.correction, '') AS correction
FROM records g LEFT JOIN said USING (response)
WHERE g.kind = 'generation' ORDER BY g.device, g.epoch, g.seq
"""


class CuratedExample(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt with the answer it should have had. `messages` end with the customer's own words."""

    messages: list[dict[str, Any]]
    answer: str
    label_source: Literal["correction", "rated up"]
    session: str
    response: str
    split: Literal["train", "eval"]
    consent: str = ""
    generation: str = ""
    task: str = ""

    @property
    def utterance(self) -> str:
        """What the customer said last."""
        content = self.messages[-1].get("content", "")
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def curate(store: Path, out: Path, *, eval_share: float = EVAL_SHARE) -> dict[str, Any]:
    """Write the examples that `store` holds to the folder `out` and return what curate.json says.

    The same store gives the same bytes. Raises InputError when nothing in the store is an example.
    """
    with Store(store, read_only=True) as opened:
        rows = opened.query(_SQL)
    judged = [judge(row, eval_share=eval_share) for row in rows]
    dropped: Counter[str] = Counter(found for found in judged if isinstance(found, str))
    examples, doubles = dedupe([found for found in judged if isinstance(found, CuratedExample)])
    dropped["duplicate"] += doubles
    document = {
        "generations": len(rows),
        "examples": len(examples),
        "train": sum(example.split == "train" for example in examples),
        "eval": sum(example.split == "eval" for example in examples),
        "customers": len({example.session for example in examples}),
        "labels": dict(Counter(example.label_source for example in examples)),
        "dropped": {why: count for why, count in sorted(dropped.items()) if count},
    }
    if not examples:
        raise InputError(f"{store} holds no example: {document['dropped'] or 'no generation is in it'}")
    write_examples(out / EXAMPLES, examples)
    write_whole(out / "curate.json", canonical_json(document))
    return document


def judge(row: dict[str, Any], *, eval_share: float = EVAL_SHARE) -> CuratedExample | Dropped:
    """Make an example of one joined row, or say why it is none."""
    if not row["consent"]:
        return "no consent"
    if not row["prompt"]:
        return "no text"
    if not row["correction"] and row["rating"] != "up":
        return "no label"
    if not row["correction"] and (row["outcome"] != "stop" or not row["answer"]):
        return "not finished"
    messages = _messages(row["prompt"])
    if not messages:
        return "unreadable"
    session = row["session"] or row["response"]
    return CuratedExample(
        messages=messages,
        answer=row["correction"] or row["answer"],
        label_source="correction" if row["correction"] else "rated up",
        session=session,
        response=row["response"],
        split="eval" if share_of(session) < eval_share else "train",
        consent=row["consent"],
        generation=row["generation"],
    )


def dedupe(examples: Sequence[CuratedExample]) -> tuple[list[CuratedExample], int]:
    """Keep one example per conversation, letter case and spaces aside: a corrected one first, else the latest."""
    best: dict[str, int] = {}
    for index, example in enumerate(examples):
        key = _normal(example.messages)
        other = best.get(key)
        if other is None or _rank(example) >= _rank(examples[other]):
            best[key] = index
    kept = [examples[index] for index in sorted(best.values())]
    return kept, len(examples) - len(kept)


def share_of(session: str) -> float:
    """Return where a customer falls between 0 and 1, the same for ever."""
    return int.from_bytes(hashlib.sha256(session.encode()).digest()[:8]) / 2**64


def read_examples(path: Path) -> list[CuratedExample]:
    """Read an examples file, or the one in a folder; raises InputError."""
    file = path / EXAMPLES if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} does not exist; make it with: fieldlm curate STORE --out {file.parent}")
    try:
        return [msgspec.json.decode(line, type=CuratedExample) for line in file.read_bytes().splitlines()]
    except msgspec.MsgspecError as error:
        raise InputError(f"{file} is no examples file: {error}") from error


def write_examples(path: Path, examples: Iterable[CuratedExample]) -> None:
    write_whole(path, b"".join(msgspec.json.encode(example) + b"\n" for example in examples))


def _rank(example: CuratedExample) -> int:
    return 1 if example.label_source == "correction" else 0


def _normal(messages: list[dict[str, Any]]) -> str:
    return " ".join(json.dumps(messages, sort_keys=True, ensure_ascii=False).casefold().split())


def _messages(prompt: str) -> list[dict[str, Any]]:
    try:
        messages = msgspec.json.decode(prompt, type=list[dict[str, Any]])
    except msgspec.MsgspecError:
        return []
    return messages if messages and messages[-1].get("role") == "user" else []


def main(argv: Sequence[str]) -> int:
    """Turn a store into labelled examples."""
    parser = terminal.parser("curate", "Turn a store of records into labelled examples.")
    parser.add_argument("store", type=Path, help="folder that `fieldlm collect` filled")
    parser.add_argument("--out", type=Path, required=True, help="folder for examples.jsonl and curate.json")
    parser.add_argument("--eval-share", type=float, default=EVAL_SHARE, help="share of customers held out")
    args = parser.parse_args(argv)
    if not 0 <= args.eval_share < 1:
        raise InputError(f"--eval-share {args.eval_share} is no share; use 0 up to but not including 1")
    document = curate(args.store, args.out, eval_share=args.eval_share)
    left_out = ", ".join(f"{count} {why}" for why, count in document["dropped"].items()) or "nothing"
    text = (
        f"{document['examples']} examples of {document['customers']} customers "
        f"({document['train']} train, {document['eval']} eval) in {args.out}; left out: {left_out}"
    )
    terminal.show(document, text, as_json=args.json)
    return 0
