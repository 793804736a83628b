"""Chat completions and completions, the responses: whole, or as events."""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from fieldlm.api.choices import Said, Shape, own_fields, usage
from fieldlm.api.response_stream import ResponseStream, StreamedChoice
from fieldlm.network.json_api import ApiError, as_event


class Choices:
    """A `Voice`: one choice per answer, in chunks that repeat their head."""

    def __init__(self, shape: Shape, *, wants_usage: bool) -> None:
        self.prefix = shape.prefix
        self._shape = shape
        self._wants_usage = wants_usage
        self._frames: dict[int, tuple[bytes, bytes]] = {}
        """By answer: an event that says a piece of text, before and after the text."""

    def whole(self, turn: ResponseStream) -> dict[str, Any]:
        vocabulary = turn.promise.vocabulary
        choices = [self._shape.choice(answer.final(), answer.reason, vocabulary) for answer in turn.answers]
        return self._shape.whole(turn.exchange, choices)

    def opening(self, turn: ResponseStream) -> Iterator[bytes]:
        for answer in turn.answers if self._shape.is_chat else ():
            yield self._event(turn, self._shape.opening(answer.index))

    def said(self, turn: ResponseStream, pieces: Sequence[tuple[StreamedChoice, Said]]) -> Iterator[bytes]:
        for answer, said in pieces:
            if said.text and not said.calls and turn.promise.vocabulary is None:
                before, after = self._frame(turn, answer.index)
                yield b"".join((before, msgspec.json.encode(said.text), after))
            elif said.text or said.calls or (said.tokens and turn.promise.vocabulary is not None):
                yield self._event(turn, self._delta(turn, said, len(answer.whole.calls) - len(said.calls)))

    def ending(self, turn: ResponseStream) -> Iterator[bytes]:
        exchange = turn.exchange
        used = usage(exchange.timings)
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
        return self._shape.delta(said, None, turn.promise.vocabulary, first_call=first_call)
