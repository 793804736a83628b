"""Chat completions and completions, the responses: whole, or as events."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from fieldlm.api.choices import Prompt, Said, Shape, characters, own_fields, usage
from fieldlm.api.response_stream import EVENTS, ResponseStream, StreamedChoice
from fieldlm.network.json_api import ApiError, as_event


class Choices:
    """A `Voice`: one choice per answer, in chunks that repeat their head.

    The answers to each of `prompts`, all of one number, stand in a row; with `echo` each begins with its prompt.
    """

    media_type = EVENTS

    def __init__(self, shape: Shape, *, wants_usage: bool, prompts: Sequence[Prompt] = (), echo: bool = False) -> None:
        self.prefix = shape.prefix
        self._shape = shape
        self._wants_usage = wants_usage
        self._prompts = prompts
        self._echo = echo
        self._offsets: dict[int, int] = {}
        """By answer: the characters of its prompt, and of what its tokens have said."""
        self._frames: dict[int, tuple[bytes, bytes]] = {}
        """By answer: an event that says a piece of text, before and after the text."""

    def refusal(self, error: ApiError) -> dict[str, Any]:
        return error.document()

    def whole(self, turn: ResponseStream) -> dict[str, Any]:
        vocabulary = turn.promise.vocabulary
        choices = [self._shape.choice(self._all(turn, answer), answer.reason, vocabulary) for answer in turn.answers]
        return self._shape.whole(turn.exchange, choices)

    def _all(self, turn: ResponseStream, answer: StreamedChoice) -> Said:
        said = answer.final()
        if not self._echo:
            return self._placed(turn, said)
        prompt = self._prompt_of(turn, said.index)
        return replace(said, text=prompt.text + said.text, tokens=[*prompt.choices, *said.tokens])

    def _prompt_of(self, turn: ResponseStream, index: int) -> Prompt:
        return self._prompts[index * len(self._prompts) // len(turn.answers)]

    def _placed(self, turn: ResponseStream, said: Said) -> Said:
        """Return `said` behind what was said before it."""
        vocabulary = turn.promise.vocabulary
        if vocabulary is None or not self._prompts:
            return said
        offset = self._offsets.get(said.index) or len(self._prompt_of(turn, said.index).text)
        self._offsets[said.index] = offset + sum(characters(vocabulary[choice.token]) for choice in said.tokens)
        return replace(said, offset=offset)

    def opening(self, turn: ResponseStream) -> Iterator[bytes]:
        for answer in turn.answers if self._shape.is_chat else ():
            yield self._event(turn, self._shape.opening(answer.index))
        for answer in turn.answers if self._echo else ():
            prompt = self._prompt_of(turn, answer.index)
            said = Said(index=answer.index, text=prompt.text, tokens=list(prompt.choices))
            yield self._event(turn, self._shape.delta(said, None, turn.promise.vocabulary))

    def said(self, turn: ResponseStream, pieces: Sequence[tuple[StreamedChoice, Said]]) -> Iterator[bytes]:
        for answer, said in pieces:
            if said.text and not said.calls and not said.thought and turn.promise.vocabulary is None:
                before, after = self._frame(turn, answer.index)
                yield b"".join((before, msgspec.json.encode(said.text), after))
            elif said.text or said.calls or said.thought or (said.tokens and turn.promise.vocabulary is not None):
                yield self._event(turn, self._delta(turn, said, len(answer.whole.calls) - len(said.calls)))

    def ending(self, turn: ResponseStream) -> Iterator[bytes]:
        exchange = turn.exchange
        used = usage(exchange)
        for answer in turn.answers:
            if turn.promise.fallback is not None:
                yield self._event(turn, self._delta(turn, answer.final()))
            end = self._shape.delta(Said(index=answer.index), answer.reason)
            yield self._event(turn, end, fieldlm={**own_fields(exchange), "usage": used})
        if self._wants_usage:
            yield self._event(turn, usage=used)
        yield b"data: [DONE]\n\n"

    def failed(self, turn: ResponseStream, error: ApiError) -> Iterator[bytes]:
        yield as_event(error.document())

    def _event(self, turn: ResponseStream, *choices: dict[str, Any], **more: Any) -> bytes:
        head = self._shape.head(turn.exchange, self._shape.chunk_object)
        if self._wants_usage:
            head["usage"] = None  # OpenAI: all chunks have the field; who reads the last one alone waits for its value
        return as_event({**head, "choices": list(choices), **more})

    def _frame(self, turn: ResponseStream, index: int) -> tuple[bytes, bytes]:
        found = self._frames.get(index)
        if found is None:
            # What stands for the text is nowhere else in the event.
            mark = secrets.token_hex(16)
            event = self._event(turn, self._delta(turn, Said(index=index, text=mark)))
            before, _, after = event.partition(msgspec.json.encode(mark))
            found = self._frames[index] = before, after
        return found

    def _delta(self, turn: ResponseStream, said: Said, first_call: int = 0) -> dict[str, Any]:
        return self._shape.delta(self._placed(turn, said), None, turn.promise.vocabulary, first_call=first_call)
