"""Text and tasks are read line by line as JSON Lines means it, and what is none is one clear line."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fieldlm.core.errors import InputError
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.search.calibrate import sample
from fieldlm_compiler.verify.corpus import Message, documents, read_task

ODD = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven"


def said(messages: Sequence[Message]) -> str:
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages)


def conversation(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def lines(path: Path, *rows: object, start: str = "") -> Path:
    path.write_text(start + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_characters_that_only_python_takes_for_line_ends_stay_in_their_line(tiny: Checkpoint, tmp_path: Path) -> None:
    path = lines(tmp_path / "odd.jsonl", conversation(ODD, ODD), conversation("b", "c"))
    assert [*documents(path, said)] == [f"user: {ODD}\nassistant: {ODD}\n", "user: b\nassistant: c\n"]
    assert [example.answer for example in read_task(path, tiny, said, [2])] == [ODD, "c"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_content(tiny: Checkpoint, tmp_path: Path) -> None:
    path = lines(tmp_path / "mark.jsonl", conversation("a", "b"), start="\ufeff")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [example.answer for example in read_task(path, tiny, said, [2])] == ["b"]


@pytest.mark.parametrize("messages", ["hello", ["a", "b"], [], None, [{"content": "x"}], 7, [{"role": "user"}]])
def test_what_is_no_conversation_is_one_line(messages: object, tiny: Checkpoint, tmp_path: Path) -> None:
    path = lines(tmp_path / "broken.jsonl", conversation("a", "b"), {"messages": messages})
    with pytest.raises(InputError, match=r"broken\.jsonl line 2 has no answer: a task's line is"):
        read_task(path, tiny, said, [2])
    if messages != [{"role": "user"}]:
        with pytest.raises(InputError, match=r'broken\.jsonl line 2 has neither "messages" nor "text"'):
            list(documents(path, said))


def test_a_model_writes_its_own_text_behind_prompts_of_any_length(tiny: Checkpoint) -> None:
    """A prompt longer than a window left less than no room, and a short one cut all others to its length."""
    long, short = list(range(100, 140)), [7, 8]
    windows = sample(tiny.folder, [long, short], 4, 32)
    assert [len(window) for window in windows] == [32] * 4
    assert [window[: len(start)] for window, start in zip(windows, (long[-16:], short) * 2, strict=True)] == [
        long[-16:], short, long[-16:], short,
    ]  # fmt: skip


def test_a_line_that_nests_without_end_is_one_line_that_names_it(tiny: Checkpoint, tmp_path: Path) -> None:
    path = lines(tmp_path / "deep.jsonl", conversation("a", "b"))
    path.write_text(path.read_text() + "[" * 100_000 + "\n")
    with pytest.raises(InputError, match=r"deep\.jsonl line 2 is not JSON"):
        read_task(path, tiny, said, [2])
