"""Curation, records become labelled examples: filter, join feedback to its generation, dedupe, split by customer.

    out/
      examples.jsonl   one Example a line, in the order of their records
      curate.json      how many were kept, how many were left out, and why

The label is what the customer corrected, or what the model answered where the customer liked it; on request also what
the large model answered ("large"), which a correction outranks. Examples without a label ("none") are kept for
clustering where that is asked for: their answer is empty, and no data set holds them.
Beside a correction stays what it corrected (`rejected`), under the same terms, redacted alike and with the same
stand-ins, and gone with its line: preferences are learned from both.
Text counts under the terms that the workshop names, and under no others. On a prompt the majority of customers decides
(`agreement`). A customer is in `train` or in `eval` with everything they said, so that no held-out sentence has a
sibling in training; all that a device says without a session is one customer's (`quality/held_out.py`). What a device
redacted is redacted again with this version's rules, and people and numbers in placeholders get stand-ins (`redacted`),
the same all through an example. What stood around the messages, the bundle's system prompt and the tools, belongs to an
example.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm.inference.chat_template import Message, as_served
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn import teacher
from fieldlm_compiler.learn.agreement import agree, answer_key
from fieldlm_compiler.learn.curated import EXAMPLES, CuratedExample, write_examples
from fieldlm_compiler.learn.quality.held_out import (
    NEWER,
    HeldOutFrom,
    alone,
    as_date,
    held_out_from,
    hold_out_alone,
    hold_out_newest,
    is_nobody_known,
)
from fieldlm_compiler.learn.quality.refusals import is_refusal
from fieldlm_compiler.learn.redacted.second_pass import NAMES, NAMES_HELP, Names, again
from fieldlm_compiler.learn.redacted.surrogates import Surrogates, kinds_in
from fieldlm_compiler.learn.shapes import spoken

if TYPE_CHECKING:
    from fieldlm_compiler.learn.quality.renamed import Renaming

log = logger(__name__)
FORMAT = "fieldlm.curate/1"
EVAL_SHARE = 0.1
Dropped = Literal[
    "no consent", "consent not listed", "no text", "cut short", "no label", "not finished", "empty answer", "refusal",
    "not a chat", "context lost", "unreadable",
]  # fmt: skip
_SQL = """
WITH said AS (
    SELECT response, arg_max(rating, seq) FILTER (rating <> '') AS rating,
        arg_max(correction, seq) FILTER (correction <> '') AS correction
    FROM records WHERE kind = 'feedback' GROUP BY response),
told AS (
    SELECT device, detail['digest'] AS digest, any_value(detail['context']) AS context
    FROM records WHERE kind = 'system' AND detail['event'] = 'context' GROUP BY ALL)
SELECT g.device, g.response, g.session, g.consent, g.generation, g.outcome, g.prompt, g.answer,
    coalesce(said.rating, '') AS rating, coalesce(said.correction, '') AS correction,
    coalesce(g.detail['context'], '') AS digest, coalesce(told.context, '') AS context,
    coalesce(g.detail['cut'], '') AS cut, coalesce(g.detail['redacted'], '') AS redacted,
    coalesce(g.route, '') AS route, CASE WHEN g.clock_ok THEN g.wall_ms ELSE 0 END AS at_ms
FROM records g LEFT JOIN said USING (response)
LEFT JOIN told ON told.device = g.device AND told.digest = g.detail['context']
WHERE g.kind = 'generation' ORDER BY g.device, g.epoch, g.seq
"""


class Labels(NamedTuple):
    """What is kept beside what customers said, and whether what they said is held against what others say."""

    large: bool = False
    """Answers of the large model are labels."""
    none: bool = False
    """Prompts that have no label are kept."""
    checked: bool = False
    """Functions that were renamed get their newest name, and training examples in doubt are left out."""
    refusals: bool = False
    """What a model said that it cannot do is a label, too, where somebody liked it."""


CUSTOMERS = Labels()
MOST_CONTRADICTIONS = 20


def curate(
    store: Path | str,
    out: Path,
    *,
    consents: Collection[str],
    eval_share: float = EVAL_SHARE,
    labels: Labels = CUSTOMERS,
    since: HeldOutFrom | None = None,
    names: Names = "learned",
) -> dict[str, Any]:
    """Write the examples that `store` holds under the terms `consents` to `out`; return what curate.json says.

    With `since` the newest examples are held out, too; `names`: how names are looked for in redacted texts. The same
    store gives the same bytes. Raises InputError when no term is named, and when nothing is an example.
    """
    with open_sink(str(store), read_only=True) as opened:
        rows = opened.query(_SQL)
    if not consents:
        raise InputError(f"name the terms that allow training: --consent TERM; {store} holds: {_terms(rows)}")
    judged = [judge(again(row, names=names), consents=consents, eval_share=eval_share, labels=labels) for row in rows]
    dropped: Counter[str] = Counter(found for found in judged if isinstance(found, str))
    given = [example for example in judged if isinstance(example, CuratedExample)]
    found = _checked(given, dropped, since, labels, eval_share) if given else _Checked()
    examples = [_in_pairs(_with_surrogates(_rated(example, found.said))) for example in found.kept]
    left_out = {why: count for why, count in sorted(dropped.items()) if count}
    document = {
        "format": FORMAT,
        "generations": len(rows),
        "examples": len(examples),
        "train": sum(example.split == "train" for example in examples),
        "eval": sum(example.split == "eval" for example in examples),
        "customers": len({example.voter for example in examples}),
        "labels": dict(Counter(example.label_source for example in examples)),
        "pairs": sum(bool(example.rejected) for example in examples),
        "consents": sorted(consents),
        "parted_by": "time" if found.is_by_time else "customer",
        "held_out_from": as_date(found.since_ms) if found.since_ms else None,
        "disputed": found.contradictions.total(),
        "contradictions": [
            {"functions": list(said), "prompts": count}
            for said, count in sorted(found.contradictions.items(), key=lambda each: (-each[1], each[0]))
        ][:MOST_CONTRADICTIONS],
        "renamed": [msgspec.to_builtins(each) for each in found.renamed],
        "redacted": dict(sorted(Counter(kind for example in examples for kind in example.redacted).items())),
        "dropped": left_out,
    }
    if labels.large:
        document["teacher"] = teacher.report([e for e in given if e.label_source != "none"], found.said)
    if not examples:
        raise InputError(_no_example(store, rows, consents, left_out))
    if found.is_by_time:
        log.warning(
            f"! no device of {store} names who asks (metadata.session) and all would be on one side, so the newest "
            "answers are held out: the same people may be trained on and held out"
        )
    write_examples(out / EXAMPLES, examples)
    write_whole(out / "curate.json", canonical_json(document), private=True)
    return document


@dataclass(kw_only=True)
class _Checked:
    """The examples that are left when they have been held against each other, and what was found."""

    kept: list[CuratedExample] = field(default_factory=list[CuratedExample])
    said: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    contradictions: Counter[tuple[str, ...]] = field(default_factory=Counter[tuple[str, ...]])
    renamed: "list[Renaming]" = field(default_factory=list["Renaming"])
    since_ms: int = 0
    is_by_time: bool = False


def _checked(
    given: Sequence[CuratedExample], dropped: Counter[str], since: HeldOutFrom | None, labels: Labels, share: float
) -> _Checked:
    """Hold examples against each other; why some are left out is counted in `dropped`."""
    from fieldlm_compiler.learn.quality.near_copies import parted

    made = _Checked(is_by_time=bool(share or since) and is_nobody_known(given))
    found = alone(given) if made.is_by_time else list(given)
    if since is not None and not made.is_by_time:
        found, made.since_ms = hold_out_newest(found, since)
        dropped[NEWER] += len(given) - len(found)
    if labels.checked:
        made.renamed, found = _with_newest_names(found, dropped)
    labelled = [example for example in found if example.label_source != "none"]
    agreed = agree(labelled)
    dropped.update(agreed.lost)
    made.contradictions, made.said = agreed.contradictions, teacher.answers_of(labelled)
    # After the vote, for it takes what was said last: of words that are said day by day the newest alone are left.
    parted_now: Sequence[CuratedExample] = agreed.kept
    if made.is_by_time:
        parted_now, made.since_ms = hold_out_alone(agreed.kept, since, share)
    kept = {id(example): now for example, now in zip(agreed.kept, parted_now, strict=True)}
    if labels.checked:
        doubted = _doubted(parted_now)
        kept = {which: now for which, now in kept.items() if id(now) not in doubted}
        dropped["label in doubt"] += len(doubted)
    left = [
        kept.get(id(example), example) for example in found if example.label_source == "none" or id(example) in kept
    ]
    made.kept = parted(left)
    dropped["near copy of a held-out prompt"] += len(left) - len(made.kept)
    return made


def _with_newest_names(
    examples: Sequence[CuratedExample], dropped: Counter[str]
) -> "tuple[list[Renaming], list[CuratedExample]]":
    """Return the functions that were renamed, and the examples as they call them now."""
    from fieldlm_compiler.learn.embed import Embedder
    from fieldlm_compiler.learn.quality.renamed import renamed, renamings

    with terminal.progress("look for renamed functions"):
        found = renamings(examples, Embedder)
    made = [renamed(example, found) for example in examples]
    kept = [example for example in made if example is not None]
    dropped["calls what has other arguments now"] += len(made) - len(kept)
    return found, kept


def _terms(rows: Sequence[dict[str, Any]]) -> str:
    """Return the terms of consent that a store holds, with how many records have each."""
    terms = Counter(row["consent"] for row in rows if row["consent"])
    return ", ".join(f"{term!r} ({count})" for term, count in terms.most_common(8)) or "none"


def _no_example(
    store: Path | str, rows: Sequence[dict[str, Any]], consents: Collection[str], dropped: dict[str, int]
) -> str:
    """Return why nothing in a store is an example, and what to do next."""
    if not rows:
        return f"{store} holds no example, for no generation is in it; fill it with: fieldlm collect --store {store}"
    said = f"{store} holds no example; left out: {', '.join(f'{count} {why}' for why, count in dropped.items())}"
    if not any(row["consent"] in consents for row in rows):
        named = ", ".join(repr(term) for term in sorted(consents))
        return f"{said}; nothing is under {named}; name terms that it holds: --consent TERM; it holds: {_terms(rows)}"
    if "no label" in dropped:
        return f"{said}; collect corrections and ratings, or add --teacher or --unlabelled"
    return f"{said}; collect more first"


def _doubted(examples: Sequence[CuratedExample]) -> set[int]:
    """Return the identities of training examples whose label is in doubt; what is held out stays as it is."""
    from fieldlm_compiler.learn.quality.label_errors import label_errors

    with terminal.progress("check labels"):
        doubts = label_errors(examples)
    return {id(e) for e, doubt in zip(examples, doubts, strict=True) if doubt and e.split == "train"}


def _with_surrogates(example: CuratedExample) -> CuratedExample:
    """Return the example with stand-ins for what was hidden, the same in its messages, its answer and its calls."""
    # A system prompt stays, for it stands in front of many examples.
    said = [message for message in example.messages if message.get("role") != "system"]
    made = Surrogates(example.session, [json.dumps([said, example.tool_calls], ensure_ascii=False), example.answer])
    # Who is in an example its prompt and its right answer say; the rejected one is shown last and changes neither.
    kinds = sorted({*made.kinds, *kinds_in(example.rejected)})
    if not kinds:
        return example
    messages = [m if m.get("role") == "system" else made.show_all(m) for m in example.messages]
    return msgspec.structs.replace(
        example, messages=messages, answer=made.show(example.answer), tool_calls=made.show_all(example.tool_calls),
        rejected=made.show(example.rejected), rejected_calls=made.show_all(example.rejected_calls),
        redacted=[kind.lower() for kind in kinds],
    )  # fmt: skip


def _in_pairs(example: CuratedExample) -> CuratedExample:
    """Return the example without a rejected answer that says the same as the right one."""
    if example.rejected and answer_key(example.rejected) == answer_key(example.answer):
        return msgspec.structs.replace(example, rejected="", rejected_calls=[])
    return example


def _rated(example: CuratedExample, said: dict[str, Counter[str]]) -> CuratedExample:
    """Return the example with its agreement, where its label is the large model's."""
    if example.label_source != "large":
        return example
    return msgspec.structs.replace(example, agreement=teacher.rate(said[example.prompt_key], example.answer))


def judge(
    row: dict[str, Any], *, consents: Collection[str], eval_share: float = EVAL_SHARE, labels: Labels = CUSTOMERS
) -> CuratedExample | Dropped:
    """Make an example of one joined row, or say why it is none."""
    source = _label_source(row, labels)
    if why := _unfit(row, consents, source, labels):
        return why
    context = _context(row)
    if context is None:
        return "context lost"
    if context.raw:
        return "not a chat"
    messages = _messages(row["prompt"])
    said = spoken("" if source == "none" else row["correction"] or row["answer"], context.tools)
    if not messages or said is None:
        return "unreadable"
    rejected, rejected_calls = _rejected(row, source, context.tools)
    made = CuratedExample(
        messages=as_served(messages, context.system),
        answer=said[0],
        label_source=source or "none",
        session=row["session"] or row["response"],
        response=row["response"],
        split="train",
        consent=row["consent"],
        generation=row["generation"],
        device=row["device"],
        at_ms=row.get("at_ms") or 0,
        tools=context.tools,
        tool_calls=said[1],
        rejected=rejected,
        rejected_calls=rejected_calls,
    )
    return msgspec.structs.replace(made, split="eval") if share_of(made.customer) < eval_share else made


def _rejected(row: dict[str, Any], source: str | None, tools: Sequence[Message]) -> tuple[str, list[Message]]:
    """Return what was answered before a person corrected it, and its calls; nothing where it is no whole answer.

    What broke off has no end that a model could learn to avoid.
    """
    if source != "correction" or row["outcome"] != "stop" or not row["answer"].strip():
        return "", []
    return spoken(row["answer"], tools) or ("", [])


def _label_source(row: dict[str, Any], labels: Labels) -> Literal["correction", "rated up", "large", "none"] | None:
    """Return whose label an answer is; "none" where prompts without one are kept, and None where they are not."""
    is_finished = row["outcome"] == "stop" and bool(row["answer"].strip())
    if row["correction"].strip():
        return "correction"
    if row["rating"] == "up" and (is_finished or not labels.none):
        return "rated up"
    if labels.large and teacher.is_taught(row) and (is_finished or not labels.none):
        return "large"
    return "none" if labels.none else None


def _unfit(row: dict[str, Any], consents: Collection[str], source: str | None, labels: Labels) -> Dropped | None:
    is_answer = source in ("rated up", "large")
    checks: tuple[tuple[Dropped, bool], ...] = (
        ("no consent", not row["consent"]),
        ("consent not listed", row["consent"] not in consents),
        ("no text", not row["prompt"]),
        ("cut short", bool(row["cut"])),
        ("no label", source is None),
        ("not finished", is_answer and row["outcome"] != "stop"),
        ("empty answer", is_answer and not row["answer"].strip()),
        ("refusal", is_answer and not labels.refusals and is_refusal(row["answer"])),
    )
    return next((why for why, is_so in checks if is_so), None)


class _Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt held beside its messages."""

    system: str | None = None
    tools: list[Message] = []
    raw: bool = False


def _context(row: dict[str, Any]) -> _Context | None:
    """Return the context of a row, an empty one where it has none, and None where it is named and was never told."""
    if not row["digest"]:
        return _Context()
    try:
        return msgspec.json.decode(row["context"], type=_Context) if row["context"] else None
    except (msgspec.MsgspecError, RecursionError):
        return None


def share_of(customer: str) -> float:
    """Return where a customer falls between 0 and 1, the same for ever."""
    return int.from_bytes(hashlib.sha256(customer.encode()).digest()[:8]) / 2**64


def _messages(prompt: str) -> list[dict[str, Any]]:
    try:
        messages = msgspec.json.decode(prompt, type=list[dict[str, Any]])
    except (msgspec.MsgspecError, RecursionError):
        return []
    return messages if messages and messages[-1].get("role") in ("user", "tool") else []


def main(argv: Sequence[str]) -> int:
    """Turn a store into labelled examples."""
    parser = terminal.parser(
        "curate",
        "Turn a store of records into labelled examples.",
        "fieldlm curate store --out examples --consent research",
    )
    parser.add_argument("store", help="what `fieldlm collect` filled: FOLDER, delta:URI or kafka:BROKERS/TOPIC")
    parser.add_argument(
        "--out", type=options.new_folder, required=True, help="folder for examples.jsonl and curate.json"
    )
    parser.add_argument(
        "--consent", action="append", default=[], metavar="TERM", help="a term of consent that allows training; repeat"
    )
    parser.add_argument("--eval-share", type=options.real(0, 1), default=EVAL_SHARE, help="share of customers held out")
    parser.add_argument(
        "--teacher", action="store_true", help="what the large model answered (route `large`) is a label, too"
    )
    parser.add_argument(
        "--unlabelled", action="store_true", help="keep prompts without a label, to find tasks in; no dataset has them"
    )
    parser.add_argument(
        "--check-labels",
        action="store_true",
        help="leave out labels that others' labels of like requests speak against, and give renamed functions their "
        "newest name",
    )
    parser.add_argument(
        "--held-out-from", metavar="WHEN", help="hold out the newest, too: a date, or their share, as 0.1"
    )
    parser.add_argument("--refusals", action="store_true", help="keep liked answers that say: I'm sorry, I can't")
    parser.add_argument("--names", choices=NAMES, default=NAMES[0], help=NAMES_HELP)
    args = parser.parse_args(argv)
    if not 0 <= args.eval_share < 1:
        raise InputError(f"--eval-share {args.eval_share} is no share; use 0 up to but not including 1")
    labels = Labels(large=args.teacher, none=args.unlabelled, checked=args.check_labels, refusals=args.refusals)
    since = held_out_from(args.held_out_from) if args.held_out_from else None
    document = curate(
        args.store, args.out, consents=args.consent, eval_share=args.eval_share, labels=labels, since=since,
        names=args.names,
    )  # fmt: skip
    left_out = ", ".join(f"{count} {why}" for why, count in document["dropped"].items()) or "nothing"
    text = (
        f"{counted(document['examples'], 'example')} of {counted(document['customers'], 'customer')} "
        f"({document['train']} train, {document['eval']} eval) in {args.out}; left out: {left_out}; "
        f"prompts that people answered differently: {document['disputed']}; "
        f"corrections with the answer that they reject: {document['pairs']}"
    )
    if document["held_out_from"]:
        text += f"\nheld out from {document['held_out_from']} on"
    if document["renamed"]:
        named = ", ".join(f"{each['old']} → {each['new']} ({each['examples']})" for each in document["renamed"])
        text += f"\nrenamed functions: {named}"
    if taught := document.get("teacher"):
        text += f"\n{teacher.told(taught)}"
    terminal.show(document, text, as_json=args.json)
    return 0
