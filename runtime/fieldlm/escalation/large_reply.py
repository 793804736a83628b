"""A large model's reply as it comes: the events of its stream, read with bounds, and what they add up to."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from fieldlm.core.errors import FieldlmError, UnavailableError
from fieldlm.core.timing import within
from fieldlm.network.http_client import refusal

SILENCE_S = 60.0
"""How long nothing may come of an answer."""
LEFT_S = 0.1
"""How long the end of a stream may take after its last event; who takes longer gets a new connection next time."""
MOST_CHARS = 1 << 20
MOST_LINE = 1 << 20
MOST_CALLS = 128


class LargeModelError(FieldlmError):
    """The large model gave no answer: out of reach, out of budget, or it refused.

    `is_late` says that the deadline was the reason; `partial` is what it said before, which its operator counts.
    """

    def __init__(self, message: str, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late
        self.partial: LargeReply | None = None


@dataclass(kw_only=True)
class LargeReply:
    """What came of one answer: text as it comes, calls by their place, and what the endpoint counted."""

    text: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict[int, dict[str, str]])
    outcome: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    duration_s: float = 0.0
    pieces: int = 0
    """Events that held words: about a token each."""
    has_begun: bool = False
    """Whether the endpoint took the question: from then on it counts."""


@contextmanager
def shut_at(due_s: float | None, response: BaseHTTPResponse) -> Generator[None]:
    """Shut the connection of `response` at `due_s` by the monotonic clock: a timeout begins anew with each byte."""
    if due_s is None:
        yield
        return

    def shut() -> None:
        with suppress(Exception):  # it may have ended by itself
            cast(Any, response).shutdown()

    with within(max(0.0, due_s - time.monotonic()), shut):
        yield


def keep(response: BaseHTTPResponse) -> None:
    """Read the end of a stream, so that the next question goes over the same connection."""
    with suppress(HTTPError, OSError), shut_at(time.monotonic() + LEFT_S, response):
        response.drain_conn()


def events(response: BaseHTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream; a document that is no stream is one event."""
    if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
        with shut_at(time.monotonic() + SILENCE_S, response):
            yield _event(response.read(4 * MOST_CHARS))
        return
    heard_s = time.monotonic()
    for line in _lines(response):
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data:
            heard_s = time.monotonic()
        elif time.monotonic() - heard_s > SILENCE_S:
            raise UnavailableError("nothing came but signs of life")
        else:
            continue
        if data == b"[DONE]":
            return
        yield _event(data)


def _event(data: bytes) -> dict[str, Any]:
    event = msgspec.json.decode(data, type=dict[str, Any])
    if event.get("error"):
        raise UnavailableError(refusal(event))
    return event


def _lines(response: BaseHTTPResponse) -> Iterator[bytes]:
    held = b""
    # What is there, as soon as it is: `stream` would wait for a piece to be full.
    while piece := response.read1(1 << 14, decode_content=True):
        *lines, held = (held + piece).split(b"\n")
        yield from lines
        if len(held) > MOST_LINE:
            raise LargeModelError("the large model sends a line without an end")
    if held:
        yield held


def add(reply: LargeReply, event: dict[str, Any], on_text: Callable[[str], None]) -> None:
    """Take one event, or a whole document, into `reply`."""
    usage = event.get("usage") or {}
    if usage:
        reply.prompt_tokens = max(0, int(usage.get("prompt_tokens") or 0))
        reply.completion_tokens = max(0, int(usage.get("completion_tokens") or 0))
        reply.cached_tokens = max(0, int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0))
    for choice in event.get("choices") or ():
        said = choice.get("delta") or choice.get("message") or {}
        reply.pieces += bool(said.get("content") or said.get("tool_calls"))
        if text := said.get("content"):
            reply.text += text
            _check_size(reply)
            on_text(text)
        for place, call in enumerate(said.get("tool_calls") or ()):
            index = call.get("index")
            known = reply.calls.setdefault(int(place if index is None else index), {"name": "", "arguments": ""})
            function = call.get("function") or {}
            known["name"] += function.get("name") or ""
            known["arguments"] += function.get("arguments") or ""
            _check_size(reply)
        reply.outcome = str(choice.get("finish_reason") or reply.outcome)


def _check_size(reply: LargeReply) -> None:
    called = sum(len(call["name"]) + len(call["arguments"]) for call in reply.calls.values())
    if len(reply.text) + called > MOST_CHARS or len(reply.calls) > MOST_CALLS:
        what = f"{MOST_CHARS} characters or {MOST_CALLS} calls"
        raise LargeModelError(f"the large model's answer has more than {what}")
