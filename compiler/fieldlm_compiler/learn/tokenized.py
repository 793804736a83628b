"""Tokenised examples: the lines of a dataset, rendered and tokenised by the code that serves them.

The prompt is what the device puts before its model, to the token; what follows is what the model has to say, with the
token that ends its turn. A line that cannot be learned from is left out, and counted by why. Where a person corrected
an answer, the one that they rejected may stand beside it; where that cannot be read, the right one is learned alone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.logs import logger
from fieldlm.engines import SpecialTokens
from fieldlm.engines.hf_tokenizer import HfTokenizer
from fieldlm.engines.special_texts import control_tokens
from fieldlm.inference.chat_template import ChatTemplate, Message
from fieldlm_compiler.checkpoints.checkpoint import chat_template, special_tokens

log = logger(__name__)

VERSION = 1
"""Of a line; those from before there were versions have none and are read as the first."""
Skipped = Literal["unreadable", "refused by the chat template", "too long", "no answer", "ambiguous border"]
Unpaired = Skipped | Literal["same as the right one"]


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """One conversation as token ids; the loss counts from `answer_at` on."""

    tokens: tuple[int, ...]
    answer_at: int
    rejected: tuple[int, ...] = ()
    """The same prompt with the answer that a person rejected; empty where there is none."""
    task: str = ""

    @property
    def work(self) -> int:
        """How many tokens a step has to go through for it."""
        return len(self.tokens) + len(self.rejected)


@dataclass(frozen=True, kw_only=True)
class TokenizedSplit:
    """The examples of one file, how many of its lines are none, by why, and how many rejected answers are not used."""

    examples: tuple[TokenizedExample, ...]
    dropped: dict[str, int]
    unpaired: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def pairs(self) -> int:
        """How many examples have a rejected answer."""
        return sum(bool(each.rejected) for each in self.examples)


class DatasetLine(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a line: messages of which the last one is the answer, the tools at hand, and `rejected`.

    That is the answer that a person corrected, as a message or a text. It is read apart: what else it may be costs the
    line nothing.
    """

    messages: list[Message]
    tools: list[Message] | None = None
    rejected: msgspec.Raw = msgspec.Raw()
    task: Any = ""


def read_conversation(line: bytes) -> DatasetLine:
    """Return what a line says; raises ValueError, with what is missing, unless it is messages and their answer."""
    try:
        found = msgspec.json.decode(line, type=DatasetLine)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not found.messages:
        raise ValueError("it has no messages")
    if not _ends_with_answer(found):
        raise ValueError(f"its last message is of the role {found.messages[-1]['role']}; want assistant")
    return found


def no_conversation(number: int, path: Path, error: Exception) -> str:
    """Return what a user is told of a line that is no example."""
    return (
        f"line {number} of {path} is no conversation with its answer at the end ({error}); make the file "
        "with: fieldlm dataset EXAMPLES --out DIR"
    )


def _ends_with_answer(found: DatasetLine) -> bool:
    # Some models' own names for the assistant are no OpenAI's; of these none is one.
    return found.messages[-1].get("role") not in ("system", "developer", "user", "tool", "function")


class _RejectedAnswer(msgspec.Struct):
    """A rejected answer that is a message."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    tool_calls: list[Message] | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(call.get("function"), dict) for call in self.tool_calls or ()):
            raise ValueError("a call without a function")


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a JSON Lines file, as `numbered_lines` does."""
    return (line for _, line in numbered_lines(path))


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a JSON Lines file that hold something, each with its number in the file, from 1 on.

    Only a line feed ends one: JSON may hold U+2028 and the like as they are. Raises InputError when there is no such
    file, or when a line is of a version that is not known.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file of it, such as {path / 'eval.jsonl'}")
    if not path.is_file():
        raise InputError(f"{path} does not exist; make a dataset with: fieldlm dataset EXAMPLES --out DIR")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                check_version(line, f"{path}:{number}")
                yield number, line.removesuffix(b"\n")


class _Versioned(msgspec.Struct):
    v: int = VERSION


def check_version(line: bytes, place: str) -> None:
    """Raise InputError unless `line` is of a known version; it may have other fields. One that is no JSON has none."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if (found := msgspec.json.decode(line, type=_Versioned).v) != VERSION:
            raise InputError(f"{place} is of version {found}, known: {VERSION}; update fieldlm-compiler")


def read_examples(path: Path, checkpoint: Path, max_tokens: int, *, in_pairs: bool = False) -> TokenizedSplit:
    """Render every line of a dataset file with the checkpoint's own chat template and tokenise it.

    With `in_pairs` rejected answers are read, too. Raises InputError when the file or what the checkpoint needs is
    missing, and when there are lines but none of them is an example.
    """
    lines = list(numbered_lines(path))
    writer = _Writer(checkpoint)
    read = [(number, writer.example(line, max_tokens)) for number, line in lines]
    examples = tuple(each for _, each in read if isinstance(each, TokenizedExample))
    dropped = [(number, each) for number, each in read if isinstance(each, str)]
    if lines and not examples:
        raise InputError(_why_none(path, lines, dropped, max_tokens))
    if dropped:
        log.info(f"  {path.name}: {_reasons(dropped)} left out")
    unpaired: list[tuple[int, str]] = []
    if in_pairs:
        found = [
            (number, each, writer.rejected(line, each, max_tokens))
            for (number, line), (_, each) in zip(lines, read, strict=True)
            if isinstance(each, TokenizedExample)
        ]
        examples = tuple(replace(each, rejected=said) if isinstance(said, tuple) else each for _, each, said in found)
        unpaired = [(number, said) for number, _, said in found if isinstance(said, str)]
    if unpaired:
        log.info(f"  {path.name}: of the rejected answers {_reasons(unpaired)} not used; the right ones are")
    return TokenizedSplit(examples=examples, dropped=_counted(dropped), unpaired=_counted(unpaired))


def _why_none(
    path: Path, lines: Sequence[tuple[int, bytes]], dropped: Sequence[tuple[int, str]], max_tokens: int
) -> str:
    """Say why none of the lines is an example, and what the first one lacks that is no conversation."""
    wrong: list[str] = []
    for number, line in lines:
        try:
            read_conversation(line)
        except ValueError as error:
            wrong.append(no_conversation(number, path, error))
    if len(wrong) == len(lines):
        return wrong[0]
    said = f"{path} holds no example for this model: {_reasons(dropped)}; at most {max_tokens} tokens (--max-tokens)"
    return "; ".join([said, *wrong[:1]])


def _counted(reasons: Iterable[tuple[int, str]]) -> dict[str, int]:
    return dict(sorted(Counter(reason for _, reason in reasons).items()))


def _reasons(found: Sequence[tuple[int, str]]) -> str:
    """Return how often each reason was, and the number of its first line."""
    first = {reason: number for number, reason in reversed(found)}
    return ", ".join(
        f"{count} {reason} ({'first ' if count > 1 else ''}line {first[reason]})"
        for reason, count in _counted(found).items()
    )


def _line(line: bytes) -> DatasetLine | None:
    """Return what a line says; None where it cannot be read."""
    try:
        return msgspec.json.decode(line, type=DatasetLine)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class _Writer:
    """Conversations as the tokens of one model."""

    def __init__(self, checkpoint: Path) -> None:
        path, source = checkpoint / "tokenizer.json", chat_template(checkpoint) if checkpoint.is_dir() else None
        for what, is_there in (("tokenizer.json", path.is_file()), ("chat template", source)):
            if not is_there:
                raise InputError(f"{checkpoint} has no {what}; name a model's folder, such as `fieldlm unpack` makes")
        said = special_tokens(checkpoint)
        special = SpecialTokens(
            bos=str(said.get("bos_token") or ""),
            eos=str(said.get("eos_token") or ""),
            control=control_tokens(path.read_bytes()),
        )
        self._template = ChatTemplate(source or "", special)
        self._tokenizer = HfTokenizer(path)
        self._control = {ids[0] for text in special.control if len(ids := self._tokenizer.encode(text)) == 1}
        self._eos = self._tokenizer.encode(special.eos) if special.eos else []

    def example(self, line: bytes, max_tokens: int) -> TokenizedExample | Skipped:
        found = _line(line)
        if found is None or not found.messages:
            return "unreadable"
        if not _ends_with_answer(found):
            return "no answer"
        made = self._example(found.messages, found.tools, max_tokens)
        return made if isinstance(made, str) else replace(made, task=str(found.task or ""))

    def rejected(self, line: bytes, right: TokenizedExample, max_tokens: int) -> tuple[int, ...] | Unpaired | None:
        """Return the prompt of `line` with the answer that a person rejected; None where there is none.

        `right` is the example that the line makes.
        """
        found = _line(line)
        if found is None or not bytes(found.rejected):
            return None
        try:
            said = msgspec.json.decode(found.rejected, type=_RejectedAnswer | str | None)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "unreadable"
        if not said:
            return None
        answer: Message = {"role": "assistant", "content": said if isinstance(said, str) else said.content or ""}
        if not isinstance(said, str) and said.tool_calls:
            answer["tool_calls"] = said.tool_calls
        made = self._example([*found.messages[:-1], answer], found.tools, max_tokens)
        if isinstance(made, str):
            return made
        return "same as the right one" if made.tokens == right.tokens else made.tokens

    def _example(
        self, messages: Sequence[Message], tools: Sequence[Message] | None, max_tokens: int
    ) -> TokenizedExample | Skipped:
        try:
            asked = self._template.render(messages[:-1], tools=tools)
            whole = self._template.render(messages, tools=tools, asks=False)
        except InputError:
            return "refused by the chat template"
        prompt = self._tokenizer.encode(asked)
        tokens = self._continued(asked, prompt, self._answered_at_once(asked, whole.rstrip("\n")))
        if tokens is None:
            return "ambiguous border"
        if self._control.issuperset(tokens[len(prompt) :]):
            return "no answer"
        if tokens[-1] not in self._control:
            # Without the token that ends a turn a model never learns to stop.
            tokens += self._eos
        return "too long" if len(tokens) > max_tokens else TokenizedExample(tokens=(*tokens,), answer_at=len(prompt))

    def _answered_at_once(self, asked: str, whole: str) -> str:
        """Return `whole` so that it goes on from `asked` where that has begun a thought and `whole` has none in it.

        So R1's templates are: a prompt ends in `<think>`, and of an answer they write what stands behind the thought.
        GLM's write the end of the thought before it.
        """
        marks = self._template.marks
        if marks is None or whole.startswith(asked) or not marks.is_open(asked):
            return whole
        before = asked.rstrip().removesuffix(marks.opens)
        if not whole.startswith(before):
            return whole
        answer = whole[len(before) :]
        rest = answer.removeprefix(marks.opens).lstrip()
        if rest.startswith(marks.closes):
            return asked + rest
        closed = marks.closed(asked)
        closed = closed if closed.startswith(asked) else f"{asked}{marks.closes}{marks.space}"
        return closed + answer

    def _continued(self, asked: str, prompt: list[int], whole: str) -> list[int] | None:
        """Return the tokens of `whole` that begin with `prompt`; None where its text goes on from another prompt."""
        tokens = self._tokenizer.encode(whole)
        if tokens[: len(prompt)] == prompt:
            return tokens
        if not whole.startswith(asked):
            return None
        # The answer's first letters and the prompt's last make one token here; the device has them apart.
        apart = [*prompt, *self._tokenizer.encode(whole[len(asked) :])]
        return apart if self._tokenizer.decode(apart) == self._tokenizer.decode(tokens) else None
