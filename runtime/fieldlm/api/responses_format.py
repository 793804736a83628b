"""OpenAI's Responses API, the responses: items of output, and the events that build them up one by one."""

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import msgspec

from fieldlm.api.chat_request import Exchange
from fieldlm.api.choices import Said, own_fields, token_logprobs
from fieldlm.api.response_stream import EVENTS, ResponseStream, StreamedChoice
from fieldlm.api.responses_request import ResponsesRequest
from fieldlm.inference.tool_calls import Call
from fieldlm.network.json_api import ApiError

Status = Literal["in_progress", "completed", "incomplete", "failed"]
Item = dict[str, Any]
PLAIN = {"type": "text"}


class ResponseVoice:
    """A `Voice` for one request. Items are finished in order; at most the last one is still being written."""

    prefix = "resp_"
    media_type = EVENTS

    def __init__(self, asked: ResponsesRequest) -> None:
        self._asked = asked
        self._items: list[Item] = []
        self._is_writing = self._is_thinking = False
        self._held_space = ""
        self._number = 0

    def refusal(self, error: ApiError) -> dict[str, Any]:
        return error.document()

    def whole(self, turn: ResponseStream) -> dict[str, Any]:
        said = turn.answers[0].final()
        status = _status(turn)
        # The same items as in a stream; their events go nowhere.
        begun = () if said.text or said.calls else self._begin_text()
        deque(chain(self._write(turn, said), begun, self._close(status)), maxlen=0)
        return self._response(turn, status, items=self._items)

    def opening(self, turn: ResponseStream) -> Iterator[bytes]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response(turn, "in_progress"))

    def said(self, turn: ResponseStream, pieces: Sequence[tuple[StreamedChoice, Said]]) -> Iterator[bytes]:
        for _, said in pieces:
            yield from self._write(turn, said)

    def ending(self, turn: ResponseStream) -> Iterator[bytes]:
        if turn.promise.fallback is not None:
            yield from self._write(turn, turn.answers[0].final())
        if all(item["type"] == "reasoning" for item in self._items):
            yield from self._begin_text()
        status = _status(turn)
        yield from self._close(status)
        yield self._event(f"response.{status}", response=self._response(turn, status, items=self._items))

    def failed(self, turn: ResponseStream, error: ApiError) -> Iterator[bytes]:
        yield from self._close("incomplete")
        document = self._response(turn, "failed", items=self._items)
        document |= {"error": {"code": error.code, "message": str(error)}, "fieldlm": error.own}
        yield self._event("response.failed", response=document)

    def _write(self, turn: ResponseStream, said: Said) -> Iterator[bytes]:
        """Yield the events of thoughts, then of text, then of calls. Space alone between calls is not said."""
        if said.thought:
            yield from self._think(said.thought)
        text = self._held_space + said.text
        if turn.promise.toolbox and not self._is_writing and not text.strip():
            self._held_space, text = text, ""
        if text:
            self._held_space = ""
            if not self._is_writing:
                yield from self._begin_text()
            yield self._text_delta(turn, said, text)
        for call in said.calls:
            yield from self._close("completed")
            yield from self._call(call)

    def _think(self, thought: str) -> Iterator[bytes]:
        if not self._is_thinking:
            item = {"id": f"rs_{secrets.token_hex(8)}", "type": "reasoning", "summary": [], "status": "in_progress"}
            part = {"type": "reasoning_text", "text": ""}
            self._items.append({**item, "content": [part]})
            self._is_thinking = True
            yield self._event("response.output_item.added", output_index=self._at, item={**item, "content": []})
            yield self._event("response.content_part.added", **self._place, part=part)
        self._part["text"] += thought
        yield self._event("response.reasoning_text.delta", **self._place, delta=thought)

    def _begin_text(self) -> Iterator[bytes]:
        yield from self._close("completed")
        item = {"id": f"msg_{secrets.token_hex(8)}", "type": "message", "role": "assistant"}
        self._items.append({**item, "status": "in_progress", "content": [_part("")]})
        self._is_writing = True
        begun = {**item, "status": "in_progress", "content": []}
        yield self._event("response.output_item.added", output_index=self._at, item=begun)
        yield self._event("response.content_part.added", **self._place, part=_part(""))

    def _text_delta(self, turn: ResponseStream, said: Said, text: str) -> bytes:
        part = self._part
        part["text"] += text
        logprobs = token_logprobs(said, turn.promise.vocabulary) if turn.promise.vocabulary is not None else []
        part["logprobs"] += logprobs
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=logprobs)

    def _close(self, status: Status) -> Iterator[bytes]:
        """Finish the text or the thought that is being written, if there is one."""
        if not self._is_writing and not self._is_thinking:
            return
        self._items[-1]["status"] = "completed" if status == "completed" else "incomplete"
        part = self._part
        if self._is_thinking:
            yield self._event("response.reasoning_text.done", **self._place, text=part["text"])
        else:
            yield self._event("response.output_text.done", **self._place, text=part["text"], logprobs=part["logprobs"])
        self._is_writing = self._is_thinking = False
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=self._at, item=self._items[-1])

    def _call(self, call: Call) -> Iterator[bytes]:
        item = {
            "id": f"fc_{secrets.token_hex(8)}",
            "type": "function_call",
            "call_id": f"call_{secrets.token_hex(8)}",
            "name": call.name,
        }
        done = {**item, "status": "completed", "arguments": call.arguments}
        self._items.append(done)
        place = {"item_id": item["id"], "output_index": self._at}
        begun = {**item, "status": "in_progress", "arguments": ""}
        yield self._event("response.output_item.added", output_index=self._at, item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield self._event("response.output_item.done", output_index=self._at, item=done)

    @property
    def _at(self) -> int:
        return len(self._items) - 1

    @property
    def _part(self) -> dict[str, Any]:
        return self._items[-1]["content"][0]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": self._at, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"

    def _response(self, turn: ResponseStream, status: Status, items: Sequence[Item] = ()) -> dict[str, Any]:
        exchange, asked = turn.exchange, self._asked
        has_ended = status != "in_progress"
        format = asked.text.format if asked.text else None
        return {
            "id": exchange.id,
            "object": "response",
            "created_at": int(exchange.started_wall_s),
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": exchange.model,
            "output": list(items),
            "parallel_tool_calls": bool(asked.parallel_tool_calls),
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature or 0.0,
            "text": {"format": PLAIN if format is None else format},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": _usage(exchange) if has_ended else None,
            "fieldlm": own_fields(exchange) if has_ended else {"generation": exchange.generation},
        }


def _status(turn: ResponseStream) -> Status:
    return "completed" if turn.answers[0].reason in ("stop", "tool_calls") else "incomplete"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(exchange: Exchange) -> dict[str, Any]:
    timings = exchange.timings
    return {
        "input_tokens": timings.prompt_tokens,
        "input_tokens_details": {"cached_tokens": timings.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": timings.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": exchange.reasoning_tokens},
        "total_tokens": timings.prompt_tokens + timings.completion_tokens,
    }
