"""Thoughts parted from answers, as the text comes.

A thought stands before the answer, and what is written in it is neither said nor called. Marks further down are text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fieldlm.engines import Chunk, Outcome, RunningAnswer
from fieldlm.engines.stop_text import Part, PreambleReader, beginning_at_end
from fieldlm.inference.thoughts.marks import ThoughtMarks


class ThoughtReader:
    """The text of one answer as it comes, parted into what is thought and what is answered.

    Space around a thought, and between it and the answer, belongs to neither.
    """

    def __init__(self, marks: ThoughtMarks) -> None:
        self._marks = marks
        self._held = ""
        self._space = ""
        """What a thought ends in so far, if nothing but space."""
        self._before = ""
        """What parts the next thought from one before it."""
        self._has_thought = False
        self.has_opened = False
        """Whether there was a thought, if only an empty one."""
        self.is_inside = False
        """Whether what comes next is thought."""
        self.has_ended = False
        """Whether all that comes is answer."""

    @property
    def undecided(self) -> str:
        """What is held back, as it was written, and may be a thought's mark, space around it, or answer."""
        return "" if self.is_inside else self._held

    @property
    def is_holding(self) -> bool:
        """Whether the text so far ends in what may become a mark."""
        return bool(self._held.strip())

    def push(self, text: str) -> tuple[str, str]:
        """Return what is now certain, the thought and the answer; what may still become a mark is held back."""
        if self.has_ended:
            return "", text
        self._held += text
        thought = ""
        while not self.has_ended:
            if self.is_inside:
                said, is_closed = self._inside()
                thought += said
                if not is_closed:
                    return thought, ""
                continue
            start = self._held.lstrip()
            if start.startswith(self._marks.opens):
                self._open(start.removeprefix(self._marks.opens))
            elif self._marks.opens.startswith(start):
                return thought, ""
            else:
                self.has_ended = True
        held, self._held = self._held, ""
        return thought, held.lstrip() if self.has_opened else held

    def finish(self, *, is_cut: bool = False) -> tuple[str, str]:
        """Return what was held back, now that nothing follows; of one that `is_cut`, no beginning of a mark."""
        held, self._held = self._held, ""
        if self.has_ended:
            return "", ""
        self.has_ended = True
        if self.is_inside:
            return "" if is_cut else self._think(held), ""
        is_mark = is_cut and len(held.strip()) > 1
        return "", "" if is_mark or (self.has_opened and not held.strip()) else held

    def _open(self, rest: str) -> None:
        self._held, self._space = rest, ""
        self.has_opened, self.is_inside, self._has_thought = True, True, False

    def _inside(self) -> tuple[str, bool]:
        """Take what is thought off what is held, and whether the thought has ended with it."""
        before, mark, rest = self._held.partition(self._marks.closes)
        if not mark:
            certain = len(before) - beginning_at_end(before, (self._marks.closes,))
            self._held = before[certain:]
            return self._think(before[:certain]), False
        self._held, self.is_inside = rest, False
        return self._think(before), True

    def _think(self, text: str) -> str:
        text = self._space + text
        text = text if self._has_thought else text.lstrip()
        thought = text.rstrip()
        self._space = text[len(thought) :]
        if thought and not self._has_thought:
            thought, self._has_thought, self._before = self._before + thought, True, "\n\n"
        return thought


@dataclass(frozen=True)
class ThoughtFirst:
    """A `Preamble`: thoughts, and the space around them. `is_open`: the prompt has begun one."""

    marks: ThoughtMarks
    is_open: bool = False

    def begin(self) -> PreambleReader:
        """See `Preamble.begin`."""
        return _ThoughtAsWritten(self)


class _ThoughtAsWritten:
    """A `PreambleReader`: parts thoughts off to the letter, where a `ThoughtReader` leaves marks and space out."""

    def __init__(self, thought: ThoughtFirst) -> None:
        self._reader = ThoughtReader(thought.marks)
        self._held = ""
        if thought.is_open:
            self._reader.push(thought.marks.opens)

    @property
    def part(self) -> Part:
        """See `PreambleReader.part`."""
        return "answer" if self._reader.has_ended else "preamble" if self._reader.is_inside else "undecided"

    def push(self, text: str) -> tuple[str, str]:
        """See `PreambleReader.push`."""
        _, answer = self._reader.push(text)
        written = self._held + text
        self._held = self._reader.undecided
        return written.removesuffix(answer or self._held), answer

    def finish(self) -> str:
        """See `PreambleReader.finish`."""
        held, self._held = self._held, ""
        return held


class OpenedThought:
    """A `RunningAnswer` to a prompt that has begun a thought: its text begins with the mark, as others' do."""

    def __init__(self, answer: RunningAnswer, marks: ThoughtMarks) -> None:
        self.timings = answer.timings
        self._answer = answer
        self._opens = marks.opens

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._answer:
            yield self._opened(chunk)

    def subscribe(self, receive: Callable[[Chunk], None]) -> None:
        self._answer.subscribe(lambda chunk: receive(self._opened(chunk)))

    def cancel(self) -> None:
        self._answer.cancel()

    def _opened(self, chunk: Chunk) -> Chunk:
        if not self._opens or not (chunk.text or chunk.tokens):
            return chunk
        opens, self._opens = self._opens, ""
        return replace(chunk, text=opens + chunk.text)


def parted_thought(text: str, marks: ThoughtMarks | None, outcome: Outcome) -> tuple[str, str]:
    """Return thought and answer of a whole text that ended with `outcome`."""
    if marks is None:
        return "", text
    reader = ThoughtReader(marks)
    pieces = [reader.push(text), reader.finish(is_cut=outcome != "stop")]
    return "".join(thought for thought, _ in pieces), "".join(answer for _, answer in pieces)


def without_thoughts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `messages` without what was thought in them: for records, and for other models."""
    return [{name: value for name, value in message.items() if name != "reasoning_content"} for message in messages]
