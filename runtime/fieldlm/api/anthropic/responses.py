"""Anthropic's Messages API, the responses: blocks of content, and the events that build them up one by one."""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from fieldlm.api.choices import Said, own_fields
from fieldlm.api.response_stream import EVENTS, ResponseStream, StreamedChoice
from fieldlm.engines import Timings
from fieldlm.inference.tool_calls import Call
from fieldlm.network.json_api import ApiError

Document = dict[str, Any]
THOUGHT = {"type": "thinking", "thinking": "", "signature": ""}
"""A thought; nobody has signed it."""
REASONS = {"tool_calls": "tool_use", "length": "max_tokens"}
"""Their words for why an answer ended; any other is `end_turn`, also where a stop sequence ended it."""
KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class MessagesVoice:
    """How one request is answered. Blocks are finished in order; at most the last one is still being written."""

    prefix = "msg_"
    media_type = EVENTS

    def __init__(self) -> None:
        self._blocks = 0
        self._writes = ""
        """The kind of the block that is being written, if any."""
        self._held_space = ""

    def whole(self, turn: ResponseStream) -> Document:
        said = turn.answers[0].whole
        text = said.text.strip() if said.calls else said.text
        content: list[Document] = [{**THOUGHT, "thinking": said.thought}] if said.thought else []
        content += [{"type": "text", "text": text}] if text or not said.calls else []
        content += [{**_called(call), "input": msgspec.json.decode(call.arguments)} for call in said.calls]
        return {**self._message(turn, content), **_ended(turn), "usage": _usage(turn.exchange.timings)}

    def opening(self, turn: ResponseStream) -> Iterator[bytes]:
        used = _usage(turn.answers[0].generation.timings) | {"output_tokens": 0}
        yield _event("message_start", message={**self._message(turn, []), "usage": used})

    def said(self, turn: ResponseStream, pieces: Sequence[tuple[StreamedChoice, Said]]) -> Iterator[bytes]:
        for _, said in pieces:
            if said.thought:
                yield from self._turn_to(THOUGHT)
                yield self._delta({"type": "thinking_delta", "thinking": said.thought})
            text = self._held_space + said.text
            if turn.promise.toolbox and self._writes != "text" and not text.strip():
                self._held_space, text = text, ""  # space alone between calls is not said
            if text:
                self._held_space = ""
                yield from self._turn_to({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            for call in said.calls:
                yield from self._close()
                yield from self._begin({**_called(call), "input": {}})
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
                yield from self._finish()

    def ending(self, turn: ResponseStream) -> Iterator[bytes]:
        if not self._blocks or self._writes == "thinking":
            yield from self._turn_to({"type": "text", "text": ""})
        yield from self._close()
        used = _usage(turn.exchange.timings)
        yield _event("message_delta", delta=_ended(turn), usage=used, fieldlm=own_fields(turn.exchange))
        yield _event("message_stop")

    def failed(self, turn: ResponseStream, error: ApiError) -> Iterator[bytes]:
        yield _event("error", **{name: each for name, each in self.refusal(error).items() if name != "type"})

    def refusal(self, error: ApiError) -> Document:
        return refusal(error)

    def _turn_to(self, block: Document) -> Iterator[bytes]:
        """Begin a block of another kind than the one that is being written."""
        if self._writes != block["type"]:
            yield from self._close()
            yield from self._begin(block)
            self._writes = block["type"]

    def _begin(self, block: Document) -> Iterator[bytes]:
        self._blocks += 1
        yield _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _delta(self, delta: Document) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self) -> Iterator[bytes]:
        """Finish what is being written, if there is anything."""
        if self._writes:
            self._writes = ""
            yield from self._finish()

    def _finish(self) -> Iterator[bytes]:
        yield _event("content_block_stop", index=self._blocks - 1)

    def _message(self, turn: ResponseStream, content: list[Document]) -> Document:
        exchange = turn.exchange
        has_ended = turn.has_ended
        return {
            "id": exchange.id,
            "type": "message",
            "role": "assistant",
            "model": exchange.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "fieldlm": own_fields(exchange) if has_ended else {"generation": exchange.generation},
        }


def refusal(error: ApiError) -> Document:
    """Return an error as this API's clients read it; beside it what happened to an answer that had begun."""
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    document: Document = {"type": "error", "error": {"type": kind, "message": str(error)}}
    return document if error.own is None else {**document, "fieldlm": error.own}


def _ended(turn: ResponseStream) -> Document:
    return {"stop_reason": REASONS.get(turn.answers[0].reason or "", "end_turn"), "stop_sequence": None}


def _called(call: Call) -> Document:
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(8)}", "name": call.name}


def _usage(timings: Timings) -> Document:
    return {
        "input_tokens": timings.prompt_tokens - timings.cached_tokens,
        "cache_read_input_tokens": timings.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": timings.completion_tokens,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode({"type": kind, **fields}) + b"\n\n"
