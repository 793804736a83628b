"""Calibration and evaluation text, never the same; a task's examples with their right answers.

A line of a `.jsonl` file is a conversation, {"messages": [...]}, or {"text": ...}; any other file is plain text; a
`.gguf` holds sums that devices collected, and no text at all.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import json_tokens
from fieldlm_compiler.export.imatrix import read_imatrix

WINDOW = 256
LEARN_WINDOWS = 64
HOLD_WINDOWS = 32
HELD_BACK = 3  # every third window is measured on
SUMS = ".gguf"
MANY_BYTES = 64 << 20

Message = dict[str, Any]
Render = Callable[[Sequence[Message]], str]
Windows = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Windows of tokens to `learn` from and to `hold` back for measuring; files of `sums` from devices."""

    learn: Windows
    hold: Windows
    sums: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskExample:
    """One conversation of a task up to its right `answer`; both also as the tokens the model sees, end included."""

    messages: list[Message]
    answer: str
    prompt_tokens: list[int]
    answer_tokens: list[int]


def read_corpus(paths: Sequence[Path], checkpoint: Checkpoint, render: Render) -> Corpus:
    """Cut the text of `paths` into windows, an equal share from each file; files of sums are only named.

    Raises InputError for a file that is missing, empty, or holds something else.
    """
    texts = [path for path in paths if path.suffix != SUMS]
    learn: list[Windows] = []
    hold: list[Windows] = []
    for path in texts:
        windows = _windows([*documents(path, render)], checkpoint, count=(LEARN_WINDOWS + HOLD_WINDOWS) // len(texts))
        if len(windows) < HELD_BACK:
            raise InputError(
                f"{path} has {sum(map(len, windows))} tokens of text, calibration needs {HELD_BACK * WINDOW} or more; "
                "name a larger file"
            )
        hold.append(windows[HELD_BACK - 1 :: HELD_BACK])
        learn.append([window for at, window in enumerate(windows) if at % HELD_BACK != HELD_BACK - 1])
    sums = tuple(path for path in paths if path.suffix == SUMS)
    for path in sums:
        # What is no importance matrix is better refused now than after the model has written its text.
        read_imatrix(path)
    return Corpus(learn=_in_turn(learn), hold=_in_turn(hold), sums=sums)


def read_task(path: Path, checkpoint: Checkpoint, render: Render, stops: Sequence[int]) -> list[TaskExample]:
    """Return the examples in the `.jsonl` file `path`: the last message of each is the right answer.

    Raises InputError when a line is no conversation or does not end with an answer.
    """
    rows = [*_rows(path)]
    for number, row in rows:
        messages = row.get("messages")
        if not messages or messages[-1].get("role") != "assistant" or len(messages) < 2:
            raise InputError(
                f"{path} line {number} has no answer: a task's line is "
                '{"messages": [{"role": "user", …}, {"role": "assistant", …}]}'
            )
    if not rows:
        raise InputError(f"{path} has no examples; a task is a .jsonl file of conversations")
    asked = [render(row["messages"][:-1]) for _, row in rows]
    whole = [render(row["messages"]) for _, row in rows]
    pairs = zip(json_tokens(checkpoint.folder, asked), json_tokens(checkpoint.folder, whole), strict=True)
    return [
        TaskExample(
            messages=row["messages"][:-1],
            answer=row["messages"][-1]["content"],
            prompt_tokens=prompt,
            answer_tokens=_until_stop(full[len(prompt) :], stops),
        )
        for (_, row), (prompt, full) in zip(rows, pairs, strict=True)
    ]


def documents(path: Path, render: Render) -> Iterator[str]:
    """Yield the texts in `path`, conversations as the model sees them."""
    if path.suffix != ".jsonl":
        yield _read(path)
        return
    for number, row in _rows(path):
        if isinstance(row.get("messages"), list) and row["messages"]:
            yield render(row["messages"])
        elif isinstance(row.get("text"), str):
            yield row["text"]
        else:
            raise InputError(f'{path} line {number} has neither "messages" nor "text"')


def _windows(texts: Sequence[str], checkpoint: Checkpoint, count: int) -> Windows:
    """Lay the tokens of `texts` end to end and take `count` windows from all over them."""
    tokens = [token for text in json_tokens(checkpoint.folder, texts) for token in text]
    whole = [tokens[at : at + WINDOW] for at in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    if len(whole) <= count:
        return whole
    return [whole[at * len(whole) // count] for at in range(count)]


def _in_turn(files: Sequence[Windows]) -> Windows:
    """Take one window from each file in turn, so that the first few stand for all."""
    longest = max(map(len, files), default=0)
    return [windows[at] for at in range(longest) for windows in files if at < len(windows)]


def _until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    end = next((at + 1 for at, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


def _read(path: Path) -> str:
    with disk_errors(path), path.open("rb") as file:
        data = file.read(MANY_BYTES)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if len(data) == MANY_BYTES and error.start > len(data) - 4:
            return data[: error.start].decode()
        raise InputError(f"{path} is not text (byte {error.start}); calibration takes .txt, .jsonl or .gguf") from error


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} is not a JSON object")
        yield number, row
