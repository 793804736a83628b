"""Tokenised examples: the lines of a dataset, rendered and tokenised by the code that serves them.

The prompt is what the device puts before its model, to the token; what follows is what the model has to say, with the
token that ends its turn. A line that cannot be learned from is left out, and counted by why.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """One conversation as token ids; the loss counts from `answer_at` on."""

    tokens: tuple[int, ...]
    answer_at: int


@dataclass(frozen=True, kw_only=True)
class TokenizedSplit:
    """The examples of one file, and how many of its lines are none, by why."""

    examples: tuple[TokenizedExample, ...]
    dropped: dict[str, int]


class DatasetLine(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a line: messages of which the last one is the answer, and the tools at hand."""

    messages: list[Message]
    tools: list[Message] | None = None


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
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            check_version(line, f"{path}:{number}")
            yield number, line


class _Versioned(msgspec.Struct):
    v: int = VERSION


def check_version(line: bytes, place: str) -> None:
    """Raise InputError unless `line` is of a known version; it may have other fields. One that is no JSON has none."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if (found := msgspec.json.decode(line, type=_Versioned).v) != VERSION:
            raise InputError(f"{place} is of version {found}, known: {VERSION}; update fieldlm-compiler")


def read_examples(path: Path, checkpoint: Path, max_tokens: int) -> TokenizedSplit:
    """Render every line of a dataset file with the checkpoint's own chat template and tokenise it.

    Raises InputError when the file or what the checkpoint needs is missing, and when there are lines but none of them
    is an example.
    """
    lines = list(numbered_lines(path))
    writer = _Writer(checkpoint)
    read = [(number, writer.example(line, max_tokens)) for number, line in lines]
    examples = tuple(each for _, each in read if isinstance(each, TokenizedExample))
    dropped = Counter(each for _, each in read if isinstance(each, str))
    first = {reason: number for number, reason in reversed(read) if isinstance(reason, str)}
    why = ", ".join(
        f"{count} {reason} ({'first ' if count > 1 else ''}line {first[reason]})"
        for reason, count in sorted(dropped.items())
    )
    if lines and not examples:
        raise InputError(f"{path} holds no example for this model: {why}; at most {max_tokens} tokens (--max-tokens)")
    if why:
        log.info(f"  {path.name}: {why} left out")
    return TokenizedSplit(examples=examples, dropped=dict(sorted(dropped.items())))


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
        try:
            found = msgspec.json.decode(line, type=DatasetLine)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "unreadable"
        if not found.messages:
            return "unreadable"
        try:
            asked = self._template.render(found.messages[:-1], tools=found.tools)
            whole = self._template.render(found.messages, tools=found.tools, asks=False)
        except InputError:
            return "refused by the chat template"
        prompt = self._tokenizer.encode(asked)
        tokens = self._continued(asked, prompt, whole.rstrip("\n"))
        if tokens is None:
            return "ambiguous border"
        if self._control.issuperset(tokens[len(prompt) :]):
            return "no answer"
        if tokens[-1] not in self._control:
            # Without the token that ends a turn a model never learns to stop.
            tokens += self._eos
        return "too long" if len(tokens) > max_tokens else TokenizedExample(tokens=(*tokens,), answer_at=len(prompt))

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
