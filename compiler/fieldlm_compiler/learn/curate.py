"""Curation, records become labelled examples: filter, join feedback to its generation, dedupe, split by customer.

    out/
      examples.jsonl   one Example a line, in the order of their records
      curate.json      how many were kept, how many were left out, and why

The label is what the customer corrected, or what the model answered where the customer liked it; on request also what
the large model answered ("large"), which a correction outranks. Examples without a label ("none") are kept for
clustering where that is asked for: their answer is empty, and no data set holds them.
Text counts under the terms that the workshop names, and under no others. On a prompt the majority of customers decides
(`agreement`). A customer is in `train` or in `eval` with everything they said, so that no held-out sentence has a
sibling in training. What a device redacted is redacted again with this version's rules, and people and numbers in
placeholders get stand-ins (`redacted`), the same all through an example. What stood around the messages, the bundle's
system prompt and the tools, belongs to an example.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.wording import counted
from fieldlm.inference.chat_template import Message, as_served
from fieldlm.inference.tool_calls import Call, CallReader
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn import teacher
from fieldlm_compiler.learn.agreement import agree, prompt_key
from fieldlm_compiler.learn.redacted.second_pass import again
from fieldlm_compiler.learn.redacted.surrogates import PLACEHOLDER, Surrogates
from fieldlm_compiler.learn.tokenized import VERSION, numbered_lines

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
    coalesce(g.detail['cut'], '') AS cut, coalesce(g.detail['redacted'], '') AS redacted,
    coalesce(g.route, '') AS route
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
    label_source: Literal["correction", "rated up", "large", "none"]
    session: str
    response: str
    split: Literal["train", "eval"]
    consent: str = ""
    generation: str = ""
    task: str = ""
    device: str = ""
    tools: list[Message] = []
    tool_calls: list[Message] = []
    agreement: float = 1.0
    """Share of the large model's answers to this prompt that say the same, where the label is its."""
    redacted: list[str] = []
    """What a device, or the second pass, has hidden in it, and stand-ins stand for: "name", "phone"."""

    @property
    def prompt_key(self) -> str:
        """What near copies of a prompt have in common."""
        said = [{**message, "content": prompt_key(str(message.get("content") or ""))} for message in self.messages]
        return json.dumps([said, self.tools], sort_keys=True, ensure_ascii=False)

    @property
    def is_about_somebody(self) -> bool:
        """Whether customers may say the same words of different people, or numbers."""
        said = [message for message in self.messages if message.get("role") != "system"]
        return any(PLACEHOLDER.search(str(message.get("content") or "")) for message in said)

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


class Labels(NamedTuple):
    """What is kept beside what customers said: answers of the large model, and prompts that have no label at all."""

    large: bool = False
    none: bool = False


CUSTOMERS = Labels()


def curate(
    store: Path | str,
    out: Path,
    *,
    consents: Collection[str],
    eval_share: float = EVAL_SHARE,
    labels: Labels = CUSTOMERS,
    check_labels: bool = False,
) -> dict[str, Any]:
    """Write the examples that `store` holds under the terms `consents` to `out`; return what curate.json says.

    With `check_labels`, training examples are left out whose label other customers' labels speak against. The same
    store gives the same bytes. Raises InputError when no term is named, and when nothing is an example.
    """
    with open_sink(str(store), read_only=True) as opened:
        rows = opened.query(_SQL)
    if not consents:
        raise InputError(f"name the terms that allow training: --consent TERM; {store} holds: {_terms(rows)}")
    judged = [judge(again(row), consents=consents, eval_share=eval_share, labels=labels) for row in rows]
    dropped: Counter[str] = Counter(found for found in judged if isinstance(found, str))
    found = [example for example in judged if isinstance(example, CuratedExample)]
    labelled = [example for example in found if example.label_source != "none"]
    agreed = agree(labelled)
    said = teacher.answers_of(labelled)
    kept = {id(example) for example in agreed.kept}
    if check_labels:
        doubted = _doubted(agreed.kept)
        kept -= doubted
        dropped["label in doubt"] += len(doubted)
    examples = [_with_surrogates(_rated(e, said)) for e in found if e.label_source == "none" or id(e) in kept]
    dropped.update(agreed.lost)
    left_out = {why: count for why, count in sorted(dropped.items()) if count}
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
        "redacted": dict(sorted(Counter(kind for example in examples for kind in example.redacted).items())),
        "dropped": left_out,
    }
    if labels.large:
        document["teacher"] = teacher.report(labelled, said)
    if not examples:
        raise InputError(_no_example(store, rows, consents, left_out))
    write_examples(out / EXAMPLES, examples)
    write_whole(out / "curate.json", canonical_json(document))
    return document


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
    if not made.kinds:
        return example
    messages = [m if m.get("role") == "system" else made.show_all(m) for m in example.messages]
    return msgspec.structs.replace(
        example, messages=messages, answer=made.show(example.answer), tool_calls=made.show_all(example.tool_calls),
        redacted=[kind.lower() for kind in made.kinds],
    )  # fmt: skip


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
    if why := _unfit(row, consents, source):
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
    session = row["session"] or row["response"]
    return CuratedExample(
        messages=as_served(messages, context.system),
        answer=said[0],
        label_source=source or "none",
        session=session,
        response=row["response"],
        split="eval" if share_of(session) < eval_share else "train",
        consent=row["consent"],
        generation=row["generation"],
        device=row["device"],
        tools=context.tools,
        tool_calls=said[1],
    )


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


def _unfit(row: dict[str, Any], consents: Collection[str], source: str | None) -> Dropped | None:
    is_answer = source in ("rated up", "large")
    checks: tuple[tuple[Dropped, bool], ...] = (
        ("no consent", not row["consent"]),
        ("consent not listed", row["consent"] not in consents),
        ("no text", not row["prompt"]),
        ("cut short", bool(row["cut"])),
        ("no label", source is None),
        ("not finished", is_answer and (row["outcome"] != "stop" or not row["answer"].strip())),
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
        functions = [cast(dict[str, Any], tool.get("function", {})) for tool in tools]
        schemas = {str(function.get("name")): function.get("parameters") or {} for function in functions}
        reader = CallReader(frozenset(schemas), schemas=schemas)
        parts = [*reader.push(text), *reader.finish()] if tools else []
        found = [part for part in parts if isinstance(part, Call)]
        if not found or any(isinstance(part, str) and part.strip() for part in parts):
            return text, []
        calls = [{"name": call.name, "arguments": call.arguments} for call in found]
    try:
        plain = [_plain_call(call) for call in calls]
    except (KeyError, TypeError, ValueError):
        return None
    called = [call["function"] for call in plain]
    return json.dumps(called[0] if len(called) == 1 else called, ensure_ascii=False), plain


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
    return [_example(line, f"{file}:{number}") for number, line in numbered_lines(file)]


def _example(line: bytes, place: str) -> CuratedExample:
    try:
        return msgspec.json.decode(line, type=CuratedExample)
    except msgspec.MsgspecError as error:
        raise InputError(f"{place} is no example of fieldlm curate: {error}") from error


def write_examples(path: Path, examples: Iterable[CuratedExample]) -> None:
    write_whole(path, b"".join(msgspec.json.encode(example) + b"\n" for example in examples))


def _messages(prompt: str) -> list[dict[str, Any]]:
    try:
        messages = msgspec.json.decode(prompt, type=list[dict[str, Any]])
    except msgspec.MsgspecError:
        return []
    return messages if messages and messages[-1].get("role") in ("user", "tool") else []


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


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
        help="leave out labels that others' labels of like requests speak against",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.eval_share < 1:
        raise InputError(f"--eval-share {args.eval_share} is no share; use 0 up to but not including 1")
    labels = Labels(large=args.teacher, none=args.unlabelled)
    document = curate(
        args.store,
        args.out,
        consents=args.consent,
        eval_share=args.eval_share,
        labels=labels,
        check_labels=args.check_labels,
    )
    left_out = ", ".join(f"{count} {why}" for why, count in document["dropped"].items()) or "nothing"
    text = (
        f"{counted(document['examples'], 'example')} of {counted(document['customers'], 'customer')} "
        f"({document['train']} train, {document['eval']} eval) in {args.out}; left out: {left_out}; "
        f"prompts that people answered differently: {document['disputed']}"
    )
    if taught := document.get("teacher"):
        text += (
            f"\nlarge model: {counted(taught['answers'], 'answer')} to "
            f"{counted(taught['prompts'], 'prompt')}; agreement with itself on "
            f"{taught['repeated_prompts']} that it answered again: {_share(taught['agreement'])}, "
            f"with {counted(taught['corrected_prompts'], 'correction')}: {_share(taught['corrected_alike'])}"
        )
    terminal.show(document, text, as_json=args.json)
    return 0
