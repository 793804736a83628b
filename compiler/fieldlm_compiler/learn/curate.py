"""Curation, records become labelled examples: filter, join feedback to its generation, dedupe, split by customer.

    out/
      examples.jsonl   one Example a line, in the order of their records
      curate.json      how many were kept, how many were left out, and why

The label is what the customer corrected, or what the model answered where the customer liked it; nothing else is one.
Text counts under the terms that the workshop names, and under no others. On a prompt the majority of customers decides
(`agreement`). A customer is in `train` or in `eval` with everything they said, so that no held-out sentence has a
sibling in training. What stood around the messages, the bundle's system prompt and the tools, belongs to an example.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.inference.chat_template import Message, as_served
from fieldlm.inference.tool_calls import Call, CallReader
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.agreement import agree, prompt_key
from fieldlm_compiler.learn.tokenized import VERSION, read_lines

EXAMPLES = "examples.jsonl"
FORMAT = "fieldlm.curate/1"
EVAL_SHARE = 0.1
Dropped = Literal[
    "no consent", "consent not listed", "no text", "cut short", "no label", "not finished", "not a chat",
    "context lost", "unreadable",
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
    coalesce(g.detail['cut'], '') AS cut
FROM records g LEFT JOIN said USING (response)
LEFT JOIN told ON told.device = g.device AND told.digest = g.detail['context']
WHERE g.kind = 'generation' ORDER BY g.device, g.epoch, g.seq
"""


class CuratedExample(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt with the answer it should have had. `messages` end with the customer's words, or a tool's.

    `answer` is text, or the JSON of the calls that `tool_calls` holds as a chat template knows them.
    """

    v: int = VERSION
    messages: list[dict[str, Any]]
    answer: str
    label_source: Literal["correction", "rated up"]
    session: str
    response: str
    split: Literal["train", "eval"]
    consent: str = ""
    generation: str = ""
    task: str = ""
    device: str = ""
    tools: list[Message] = []
    tool_calls: list[Message] = []

    @property
    def prompt_key(self) -> str:
        """What near copies of a prompt have in common."""
        said = [{**message, "content": prompt_key(str(message.get("content") or ""))} for message in self.messages]
        return json.dumps([said, self.tools], sort_keys=True, ensure_ascii=False)

    @property
    def voter(self) -> str:
        """Whose label it is; who gives no session speaks for the device, however often."""
        return self.session if self.session != self.response else self.device or self.response

    @property
    def is_correction(self) -> bool:
        return self.label_source == "correction"

    @property
    def utterance(self) -> str:
        """What the customer said last, before what tools may have answered."""
        said = [message for message in self.messages if message.get("role") == "user"] or self.messages
        content = said[-1].get("content") or ""
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def curate(
    store: Path | str, out: Path, *, consents: Collection[str], eval_share: float = EVAL_SHARE
) -> dict[str, Any]:
    """Write the examples that `store` holds under the terms `consents` to `out`; return what curate.json says.

    The same store gives the same bytes. Raises InputError when no term is named, and when nothing is an example.
    """
    with open_sink(str(store), read_only=True) as opened:
        rows = opened.query(_SQL)
    if not consents:
        terms = Counter(row["consent"] for row in rows if row["consent"])
        held = ", ".join(f"{term!r} ({count})" for term, count in terms.most_common(8)) or "none"
        raise InputError(f"name the terms that allow training: --consent TERM; {store} holds: {held}")
    judged = [judge(row, consents=consents, eval_share=eval_share) for row in rows]
    dropped: Counter[str] = Counter(found for found in judged if isinstance(found, str))
    agreed = agree([found for found in judged if isinstance(found, CuratedExample)])
    examples = agreed.kept
    dropped.update(agreed.lost)
    document = {
        "format": FORMAT,
        "generations": len(rows),
        "examples": len(examples),
        "train": sum(example.split == "train" for example in examples),
        "eval": sum(example.split == "eval" for example in examples),
        "customers": len({example.session for example in examples}),
        "labels": dict(Counter(example.label_source for example in examples)),
        "consents": sorted(consents),
        "disputed": agreed.disputed,
        "dropped": {why: count for why, count in sorted(dropped.items()) if count},
    }
    if not examples:
        raise InputError(f"{store} holds no example: {document['dropped'] or 'no generation is in it'}")
    write_examples(out / EXAMPLES, examples)
    write_whole(out / "curate.json", canonical_json(document))
    return document


def judge(
    row: dict[str, Any], *, consents: Collection[str], eval_share: float = EVAL_SHARE
) -> CuratedExample | Dropped:
    """Make an example of one joined row, or say why it is none."""
    if why := _unfit(row, consents):
        return why
    context = _context(row)
    if context is None:
        return "context lost"
    if context.raw:
        return "not a chat"
    messages = _messages(row["prompt"])
    said = spoken(row["correction"] or row["answer"], context.tools)
    if not messages or said is None:
        return "unreadable"
    session = row["session"] or row["response"]
    return CuratedExample(
        messages=as_served(messages, context.system),
        answer=said[0],
        label_source="correction" if row["correction"] else "rated up",
        session=session,
        response=row["response"],
        split="eval" if share_of(session) < eval_share else "train",
        consent=row["consent"],
        generation=row["generation"],
        device=row["device"],
        tools=context.tools,
        tool_calls=said[1],
    )


def _unfit(row: dict[str, Any], consents: Collection[str]) -> Dropped | None:
    is_corrected = bool(row["correction"].strip())
    checks: tuple[tuple[Dropped, bool], ...] = (
        ("no consent", not row["consent"]),
        ("consent not listed", row["consent"] not in consents),
        ("no text", not row["prompt"]),
        ("cut short", bool(row["cut"])),
        ("no label", not is_corrected and row["rating"] != "up"),
        ("not finished", not is_corrected and (row["outcome"] != "stop" or not row["answer"].strip())),
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
    except msgspec.MsgspecError:
        return None


def spoken(text: str, tools: Sequence[Message]) -> tuple[str, list[Message]] | None:
    """Return an answer and the tool calls that it is, if it is some; None where its calls cannot be read.

    Calls are what the API writes (`{"tool_calls": […]}`), OpenAI's own list, or what a model said to call `tools`.
    """
    calls = _listed(text)
    if calls is None:
        reader = CallReader(frozenset(str(tool.get("function", {}).get("name")) for tool in tools))
        parts = [*reader.push(text), *reader.finish()] if tools else []
        found = [part for part in parts if isinstance(part, Call)]
        if not found or any(isinstance(part, str) and part.strip() for part in parts):
            return text, []
        calls = [{"name": call.name, "arguments": call.arguments} for call in found]
    try:
        plain = [_plain_call(call) for call in calls]
    except (KeyError, TypeError, ValueError):
        return None
    functions = [call["function"] for call in plain]
    return json.dumps(functions[0] if len(functions) == 1 else functions, ensure_ascii=False), plain


def _listed(text: str) -> list[Any] | None:
    """Return the calls of a text that is a list of them in OpenAI's shape, alone or in an object; None if it is not."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = cast(dict[str, Any], said).get("tool_calls") if isinstance(said, dict) else said
    if not isinstance(calls, list) or not calls:
        return None
    listed = cast(list[Any], calls)
    is_openai = all(isinstance(c, dict) and isinstance(cast(dict[str, Any], c).get("function"), dict) for c in listed)
    return [call["function"] for call in listed] if is_openai else None


def _plain_call(function: dict[str, Any]) -> Message:
    arguments = function.get("arguments") or {}
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"type": "function", "function": {"name": str(function["name"]), "arguments": arguments}}


def share_of(session: str) -> float:
    """Return where a customer falls between 0 and 1, the same for ever."""
    return int.from_bytes(hashlib.sha256(session.encode()).digest()[:8]) / 2**64


def read_examples(path: Path) -> list[CuratedExample]:
    """Read an examples file, or the one in a folder; raises InputError."""
    file = path / EXAMPLES if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} does not exist; make it with: fieldlm curate STORE --out {file.parent}")
    try:
        return [msgspec.json.decode(line, type=CuratedExample) for line in read_lines(file)]
    except msgspec.MsgspecError as error:
        raise InputError(f"{file} is no examples file: {error}") from error


def write_examples(path: Path, examples: Iterable[CuratedExample]) -> None:
    write_whole(path, b"".join(msgspec.json.encode(example) + b"\n" for example in examples))


def _messages(prompt: str) -> list[dict[str, Any]]:
    try:
        messages = msgspec.json.decode(prompt, type=list[dict[str, Any]])
    except msgspec.MsgspecError:
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
    args = parser.parse_args(argv)
    if not 0 <= args.eval_share < 1:
        raise InputError(f"--eval-share {args.eval_share} is no share; use 0 up to but not including 1")
    document = curate(args.store, args.out, consents=args.consent, eval_share=args.eval_share)
    left_out = ", ".join(f"{count} {why}" for why, count in document["dropped"].items()) or "nothing"
    text = (
        f"{document['examples']} examples of {document['customers']} customers "
        f"({document['train']} train, {document['eval']} eval) in {args.out}; left out: {left_out}; "
        f"prompts that people answered differently: {document['disputed']}"
    )
    terminal.show(document, text, as_json=args.json)
    return 0
