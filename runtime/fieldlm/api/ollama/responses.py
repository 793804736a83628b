"""Ollama's API, the responses: one document, or a line of JSON (NDJSON) for each piece."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from fieldlm.api.choices import Said, own_fields, token_logprobs
from fieldlm.api.response_stream import ResponseStream, StreamedChoice
from fieldlm.network.json_api import ApiError

Document = dict[str, Any]
NS = 1_000_000_000


class OllamaVoice:
    """How a chat, or else a generation, is answered."""

    prefix = "ollama-"
    media_type = "application/x-ndjson"

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat

    def whole(self, turn: ResponseStream) -> Document:
        return {**self._piece(turn, turn.answers[0].whole), **self._end(turn)}

    def opening(self, turn: ResponseStream) -> Iterator[bytes]:
        yield from ()

    def said(self, turn: ResponseStream, pieces: Sequence[tuple[StreamedChoice, Said]]) -> Iterator[bytes]:
        for _, said in pieces:
            if said.text or said.calls or said.thought or (said.tokens and turn.promise.vocabulary is not None):
                yield _line({**self._piece(turn, said), "done": False})

    def ending(self, turn: ResponseStream) -> Iterator[bytes]:
        yield _line({**self._piece(turn, Said()), **self._end(turn)})

    def failed(self, turn: ResponseStream, error: ApiError) -> Iterator[bytes]:
        yield _line(self.refusal(error))

    def refusal(self, error: ApiError) -> Document:
        return refusal(error)

    def held(self, *, is_leaving: bool) -> Document:
        """Return the answer to a request for nothing, by which clients ask for a model to be loaded, or unloaded."""
        text: Document = {"message": {"role": "assistant", "content": ""}} if self._is_chat else {"response": ""}
        reason = "unload" if is_leaving else "load"
        return {"model": self._model, "created_at": stamp(), **text, "done": True, "done_reason": reason}

    def _piece(self, turn: ResponseStream, said: Said) -> Document:
        text: Document = {"response": said.text}
        if self._is_chat:
            message: Document = {"role": "assistant", "content": said.text}
            if said.calls:
                calls = [{"name": call.name, "arguments": msgspec.json.decode(call.arguments)} for call in said.calls]
                message["tool_calls"] = [{"function": call} for call in calls]
                message["content"] = said.text.strip()
            text = {"message": message}
        if said.thought:
            (text["message"] if self._is_chat else text)["thinking"] = said.thought
        if turn.promise.vocabulary is not None and said.tokens:
            text["logprobs"] = token_logprobs(said, turn.promise.vocabulary)
        return {"model": self._model, "created_at": stamp(), **text}

    def _end(self, turn: ResponseStream) -> Document:
        exchange, timings = turn.exchange, turn.exchange.timings
        return {
            "done": True,
            "done_reason": "length" if turn.answers[0].reason == "length" else "stop",
            "total_duration": int(exchange.duration_s * NS),
            "load_duration": 0,
            "prompt_eval_count": timings.prompt_tokens,
            "prompt_eval_duration": int(timings.prefill_s * NS),
            "eval_count": timings.completion_tokens,
            "eval_duration": int(timings.decode_s * NS),
            "fieldlm": {"id": exchange.id, **own_fields(exchange)},
        }


def refusal(error: ApiError) -> Document:
    """Return an error as Ollama's clients read it; beside it what happened to an answer that had begun."""
    return {"error": str(error)} if error.own is None else {"error": str(error), "fieldlm": error.own}


def stamp(wall_s: float | None = None) -> str:
    """Return a time (RFC 3339), now by default."""
    return datetime.fromtimestamp(time.time() if wall_s is None else wall_s, UTC).isoformat().replace("+00:00", "Z")


def _line(document: Document) -> bytes:
    return msgspec.json.encode(document) + b"\n"
