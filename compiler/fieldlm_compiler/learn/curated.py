"""A curated example, and the file of them: examples.jsonl, one a line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.files import write_whole
from fieldlm.inference.chat_template import Message
from fieldlm_compiler.learn.agreement import prompt_key
from fieldlm_compiler.learn.redacted.surrogates import PLACEHOLDER
from fieldlm_compiler.learn.tokenized import VERSION, numbered_lines

EXAMPLES = "examples.jsonl"


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
    rejected: str = ""
    """What was answered before a person corrected it, spelt as `answer`; empty where nobody did, or where it says the
    same, broke off or cannot be read."""
    rejected_calls: list[Message] = []
    at_ms: int = 0
    """When it was asked, by its device's clock; 0 where that was not to be believed."""
    agreement: float = 1.0
    """Share of the large model's answers to this prompt that say the same, where the label is its."""
    redacted: list[str] = []
    """What a device, or the second pass, has hidden in it, and stand-ins stand for: "name", "phone"."""
    is_alone: bool = False
    """Whether it was parted from the others by its time alone: nobody is known, and all would be on one side."""

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
    def names_nobody(self) -> bool:
        """Whether its device gave no session; `session` is the answer's own id then."""
        return self.session == self.response

    @property
    def voter(self) -> str:
        """Whose label it is; who gives no session speaks for the device, however often."""
        return self.session if not self.names_nobody else self.device or self.response

    @property
    def customer(self) -> str:
        """Who is on one side with all they said, trained on, watched or held out: the voter, if people are parted."""
        return self.response if self.is_alone else self.voter

    @property
    def is_correction(self) -> bool:
        return self.label_source == "correction"

    @property
    def utterance(self) -> str:
        """What the customer said last, before what tools may have answered."""
        said = [message for message in self.messages if message.get("role") == "user"] or self.messages
        content = said[-1].get("content") or ""
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def read_examples(path: Path) -> list[CuratedExample]:
    """Read an examples file, or the one in a folder; raises InputError."""
    return list(iterate_examples(path))


def iterate_examples(path: Path) -> Iterator[CuratedExample]:
    """Yield what an examples file holds, or the one in a folder, without holding all of it; raises InputError."""
    file = path / EXAMPLES if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} does not exist; make it with: fieldlm curate STORE --out {file.parent}")
    return (example_of(line, f"{file}:{number}") for number, line in numbered_lines(file))


def example_of(line: bytes, place: str) -> CuratedExample:
    """Return the example that a line holds; raises InputError, which names `place`."""
    try:
        return msgspec.json.decode(line, type=CuratedExample)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{place} is no example of fieldlm curate: {error}") from error


def write_examples(path: Path, examples: Iterable[CuratedExample]) -> None:
    write_whole(path, (msgspec.json.encode(example) + b"\n" for example in examples), private=True)
