"""Calibration and evaluation text, never the same; a task's examples with their right answers.

A line of a `.jsonl` file is a conversation, {"messages": [...]}, or {"text": ...}; any other file is plain text; a
`.gguf` holds sums that devices collected, and no text at all.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import json_tokens
from fieldlm_compiler.export.imatrix import read_imatrix

log = logger(__name__)

WINDOW = 256
LEARN_WINDOWS = 64
HOLD_WINDOWS = 32
HELD_BACK = 3  # one part of so many is measured on
HELD_BLOCKS = 2  # in so many places of a file: a window between two that were learned from is hardly new
SHARED_LINE = 20  # characters of a line that two files have in common by no chance
SUMS = ".gguf"
MANY_BYTES = 64 << 20
FEWEST_APART = 48  # examples of a task, of which a part is kept for the end

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
    """One conversation of a task up to its right `answer`; both also as the tokens the model sees, end included.

    `opening` is what the template writes between the two, such as Qwen3's empty `<think>`: the tokens of the answer
    begin with it, so a model that was tuned on them says it, too. `prompt` is the text of its tokens.
    """

    messages: list[Message]
    answer: str
    opening: str = ""
    prompt: str = ""
    prompt_tokens: list[int]
    answer_tokens: list[int]


def read_corpus(
    paths: Sequence[Path], checkpoint: Checkpoint, render: Render, *, without: Sequence[Sequence[Message]] = ()
) -> Corpus:
    """Cut the text of `paths` into windows, an equal share from each file; files of sums are only named.

    Conversations that begin as one of `without`, what a task asks, are left out: nothing is judged by what it was
    fitted to.

    Raises InputError for a file that is missing, empty, or holds something else.
    """
    texts = [path for path in paths if path.suffix != SUMS]
    learn: list[Windows] = []
    hold: list[Windows] = []
    for path in texts:
        windows = _windows(
            _others(path, render, without), checkpoint, count=(LEARN_WINDOWS + HOLD_WINDOWS) // len(texts)
        )
        if len(windows) < HELD_BACK:
            raise InputError(
                f"{path} has {sum(map(len, windows))} tokens of text, calibration needs {HELD_BACK * WINDOW} or more; "
                "name a larger file"
            )
        learned, held = _blocks_apart(windows)
        learn.append(learned)
        hold += held
    sums = tuple(path for path in paths if path.suffix == SUMS)
    for path in sums:
        # What is no importance matrix is better refused now than after the model has written its text.
        read_imatrix(path)
    return Corpus(learn=_in_turn(learn), hold=_in_turn(hold), sums=sums)


def check_sources(calibration: Sequence[Path], task: Path | None, *, least: int) -> None:
    """Raise InputError for files that can be refused without a model: it would else come after minutes of work.

    A task judges by `least` examples or more; it also gives the prompts where `calibration` names no text, then by
    twice as many.
    """
    for path in calibration:
        if path.suffix == SUMS:
            read_imatrix(path)
        elif not any(text.strip() or path.suffix == ".jsonl" for text in documents(path, lambda messages: "")):
            raise InputError(f"{path} is empty; name a file with text")
    if task is not None:
        count = len(_task_rows(task))
        least *= 1 if any(path.suffix != SUMS for path in calibration) else 2
        if count < least:
            raise InputError(f"{task} has {counted(count, 'example')}; {least} are the fewest that can judge anything")


def read_task(
    path: Path, checkpoint: Checkpoint, render: Render, stops: Sequence[int], *, ask: Render | None = None
) -> list[TaskExample]:
    """Return the examples in the `.jsonl` file `path`: the last message of each is the right answer.

    `ask` writes the prompts where they are others than `render` writes, such as those that want no thought.
    Raises InputError when a line is no conversation or does not end with an answer.
    """
    rows = _task_rows(path)
    asked = [(ask or render)(row["messages"][:-1]) for row in rows]
    whole = [_answered(prompt, row["messages"], render) for prompt, row in zip(asked, rows, strict=True)]
    rest = [text[len(prompt) :] for prompt, text in zip(asked, whole, strict=True)]
    prompts, fulls, rests = (json_tokens(checkpoint.folder, texts) for texts in (asked, whole, rest))
    return [
        TaskExample(
            messages=row["messages"][:-1],
            answer=row["messages"][-1]["content"],
            opening=_between(prompt_text, row["messages"][-1]["content"], text),
            prompt=prompt_text,
            prompt_tokens=prompt,
            # Where the two make one token together, a device has them apart.
            answer_tokens=_until_stop(full[len(prompt) :] if full[: len(prompt)] == prompt else apart, stops),
        )
        for row, prompt_text, text, prompt, full, apart in zip(rows, asked, whole, prompts, fulls, rests, strict=True)
    ]


def _answered(prompt: str, messages: Sequence[Message], render: Render) -> str:
    """Return `messages` as `render` writes them, their last one behind `prompt`."""
    whole = render(messages)
    if whole.startswith(prompt):
        return whole
    # A template that is told not to think writes that into the prompt, and into no answer of the past.
    plain = render(messages[:-1])
    return prompt + (whole[len(plain) :] if whole.startswith(plain) else str(messages[-1]["content"]))


def _between(prompt: str, answer: str, whole: str) -> str:
    """Return what stands in `whole` between `prompt` and `answer`."""
    if not whole.startswith(prompt):
        return ""
    rest = whole[len(prompt) :]
    return rest[: max(rest.find(answer.strip()), 0)]


def _others(path: Path, render: Render, without: Sequence[Sequence[Message]]) -> list[str]:
    """Return the texts in `path` but those that ask what one of `without` asks."""
    asked = {_asks(messages) for messages in without}
    rows = _rows(path) if asked and path.suffix == ".jsonl" else ()
    same = [_is_conversation(row.get("messages")) and _asks(row["messages"]) in asked for _, row in rows]
    texts = [*documents(path, render)]
    if any(same):
        log.info(f"  note: left out of the text: {counted(sum(same), 'conversation')} of {path} that the task has, too")
        texts = [text for text, is_same in zip(texts, same, strict=True) if not is_same]
    of_task = {*_long_lines(str(each.get("content")) for messages in without for each in messages[-1:])}
    if shared := of_task & {*_long_lines(texts)}:
        log.info(
            f"  note: the task's questions, too, have {counted(len(shared), 'line')} of {path}, for example "
            f"{min(shared)[:40]!r}: the task will look a little better than it is"
        )
    return texts


def _long_lines(texts: Iterable[str]) -> Iterator[str]:
    return (line.strip() for text in texts for line in text.split("\n") if len(line.strip()) >= SHARED_LINE)


def _asks(messages: Sequence[Message]) -> str:
    """Return what the users of a conversation say in it."""
    return json.dumps([message.get("content") for message in messages if message["role"] == "user"])


def apart_for_the_end(examples: Sequence[TaskExample]) -> tuple[list[TaskExample], list[TaskExample]]:
    """Return what the search may try mixtures on, and what only the one it chose is judged by at last.

    The best of several tries on the same examples looks better than it is. Where there are too few for two parts, both
    are all of them.
    """
    if len(examples) < FEWEST_APART:
        log.info(
            f"  note: {counted(len(examples), 'example')}, too few to keep "
            f"some apart for the end ({FEWEST_APART} would do): "
            "what is chosen on them will look a little better than it is"
        )
        return list(examples), list(examples)
    last = [example for at, example in enumerate(examples) if at % HELD_BACK == HELD_BACK - 1]
    return [example for at, example in enumerate(examples) if at % HELD_BACK != HELD_BACK - 1], last


def _task_rows(path: Path) -> list[dict[str, Any]]:
    rows = [*_rows(path)]
    for number, row in rows:
        messages = row.get("messages")
        if not _is_answered(messages):
            raise InputError(
                f"{path} line {number} has no answer: a task's line is "
                '{"messages": [{"role": "user", …}, {"role": "assistant", …}]}'
            )
    if not rows:
        raise InputError(f"{path} has no examples; a task is a .jsonl file of conversations")
    return [row for _, row in rows]


def _is_answered(messages: Any) -> bool:
    """Say whether these are messages of which the last one is an answer."""
    if not isinstance(messages, list) or len(cast(list[Any], messages)) < 2:
        return False
    if not all(isinstance(each, dict) for each in cast(list[Any], messages)):
        return False
    last = cast(list[Message], messages)[-1]
    return last.get("role") == "assistant" and isinstance(last.get("content"), str)


def documents(path: Path, render: Render) -> Iterator[str]:
    """Yield the texts in `path`, conversations as the model sees them."""
    if path.suffix != ".jsonl":
        yield _read(path)
        return
    for number, row in _rows(path):
        if _is_conversation(row.get("messages")):
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


def _blocks_apart(windows: Windows) -> tuple[Windows, list[Windows]]:
    """Return the windows to learn from, and those to measure on, in blocks that lie together in the text."""
    size = -(-len(windows) // (HELD_BACK * HELD_BLOCKS))
    blocks = [windows[at : at + size] for at in range(0, len(windows), size)]
    held = blocks[HELD_BACK - 1 :: HELD_BACK]
    return [window for at, block in enumerate(blocks) if at % HELD_BACK != HELD_BACK - 1 for window in block], held


def _in_turn(files: Sequence[Windows]) -> Windows:
    """Take one window from each file, or block of one, in turn, so that the first few stand for all."""
    longest = max(map(len, files), default=0)
    return [windows[at] for at in range(longest) for windows in files if at < len(windows)]


def _until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    end = next((at + 1 for at, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


def _read(path: Path) -> str:
    with disk_errors(path), path.open("rb") as file:
        data = file.read(MANY_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) == MANY_BYTES and error.start > len(data) - 4:
            return data[: error.start].decode("utf-8-sig")
        raise InputError(f"{path} is not text (byte {error.start}); calibration takes .txt, .jsonl or .gguf") from error


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # JSON Lines end at \n alone: str.splitlines would cut a text that holds U+2028, too.
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} is not a JSON object")
        yield number, cast(dict[str, Any], row)


def _is_conversation(messages: object) -> bool:
    """Say whether `messages` is a list of messages, each with a role."""
    if not isinstance(messages, list) or not messages:
        return False
    each = cast(list[object], messages)
    return all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in each)
