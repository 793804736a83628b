"""OpenAI's `choices`: an answer whole, and as the chunks of a stream."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fieldlm.api.chat_request import Exchange
from fieldlm.engines import Outcome, TokenChoice
from fieldlm.inference.tool_calls import Call

UNKNOWN = math.nan
"""The log probability of a token before which nothing stands."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text that a completion goes on with, and how likely its tokens were where that was asked for.

    The first `lead` of `tokens` are the model's own BOS and not of the text.
    """

    text: str
    tokens: list[int]
    lead: int = 0
    choices: tuple[TokenChoice, ...] = ()


@dataclass(kw_only=True)
class Said:
    """One of the answers to a prompt, or a piece of it: text, calls, and how likely its tokens were.

    `thought` is what was thought before; its tokens are not told.
    """

    index: int = 0
    thought: str = ""
    text: str = ""
    calls: list[Call] = field(default_factory=list[Call])
    tokens: list[TokenChoice] = field(default_factory=list[TokenChoice])
    offset: int = 0
    """Characters of prompt and answer before its tokens; where they are told."""


def usage(exchange: Exchange) -> dict[str, Any]:
    timings = exchange.timings
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "total_tokens": timings.prompt_tokens + timings.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": exchange.reasoning_tokens,
            "accepted_prediction_tokens": timings.accepted_tokens,
            "rejected_prediction_tokens": timings.drafted_tokens - timings.accepted_tokens,
        },
    }


def own_fields(exchange: Exchange) -> dict[str, Any]:
    """Return what OpenAI's answer has no place for: the generation, how it ended, how sure it is, where time went."""
    timings = exchange.timings
    millis = {"queue": timings.queue_s, "prefill": timings.prefill_s, "decode": timings.decode_s}
    if exchange.ttft_s is not None:
        millis["ttft"] = exchange.ttft_s
    own = {
        "generation": exchange.generation,
        "outcome": exchange.outcome,
        "timings": {f"{name}_ms": round(1000 * seconds, 3) for name, seconds in millis.items()},
        "margin": round(timings.margin, 4),
        "confidence": None if exchange.confidence is None else round(exchange.confidence, 3),
        **({"adapter": exchange.adapter} if exchange.adapter else {}),
    }
    if (verdict := exchange.verdict) is not None:
        own |= {"answered_by": verdict.by, **({"task": exchange.task} if exchange.task else {})}
        own |= {name: text for name, text in (("escalation", verdict.why), ("not_large", verdict.note)) if text}
    if exchange.answered_by:
        own["answered_by"] = exchange.answered_by
    return {**own, "used_fallback": True, "text": exchange.answer} if exchange.used_fallback else own


def finish_reason(outcome: Outcome | None, *, called: bool = False) -> str | None:
    """Return OpenAI's word for an outcome; what was cut off by time or hand has none."""
    if outcome == "stop" and called:
        return "tool_calls"
    return outcome if outcome in ("stop", "length") else None


@dataclass(frozen=True)
class Shape:
    """How one endpoint wraps text: whole, and as the chunks of a stream.

    `is_old` says a call by the name it had before there were tools: one, without an id.
    """

    object: str
    prefix: str
    is_chat: bool
    is_old: bool = False

    def whole(self, exchange: Exchange, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self.head(exchange, self.object),
            "choices": list(choices),
            "usage": usage(exchange),
            "fieldlm": own_fields(exchange),
        }

    def choice(self, said: Said, reason: str | None, vocabulary: Sequence[bytes] | None) -> dict[str, Any]:
        content: dict[str, Any] = {"text": said.text}
        if self.is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
            if said.calls:
                message |= {"content": said.text.strip() or None, **self._calls(said.calls, 0)}
            if said.thought:
                message["reasoning_content"] = said.thought
            content = {"message": message}
        return self._framed(said, content, reason, vocabulary)

    def delta(
        self,
        said: Said,
        reason: str | None = None,
        vocabulary: Sequence[bytes] | None = None,
        *,
        first_call: int = 0,
    ) -> dict[str, Any]:
        """Return a piece of an answer; its calls are numbered from `first_call`."""
        content: dict[str, Any] = {"text": said.text}
        if self.is_chat:
            delta: dict[str, Any] = {"reasoning_content": said.thought} if said.thought else {}
            if said.text:
                delta["content"] = said.text
            if said.calls:
                delta |= self._calls(said.calls, first_call)
            content = {"delta": delta}
        return self._framed(said, content, reason, vocabulary)

    def _calls(self, calls: Sequence[Call], first: int) -> dict[str, Any]:
        """Return the field for `calls`, which are numbered from `first`; of old ones there is the first alone."""
        documents = [call.document(first + i) for i, call in enumerate(calls)]
        if not self.is_old:
            return {"tool_calls": documents}
        return {} if first else {"function_call": documents[0]["function"]}

    def opening(self, index: int) -> dict[str, Any]:
        """The first delta of a chat: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def head(self, exchange: Exchange, kind: str) -> dict[str, Any]:
        """Return what every chunk of an answer repeats."""
        return {
            "id": exchange.id,
            "object": kind,
            "created": int(exchange.started_wall_s),
            "model": exchange.model,
            "system_fingerprint": exchange.generation,
        }

    @property
    def chunk_object(self) -> str:
        return "chat.completion.chunk" if self.is_chat else self.object

    def _framed(
        self, said: Said, content: dict[str, Any], reason: str | None, vocabulary: Sequence[bytes] | None
    ) -> dict[str, Any]:
        logprobs = None
        if vocabulary is not None and self.is_chat:
            logprobs = {"content": token_logprobs(said, vocabulary), "refusal": None}
        elif vocabulary is not None:
            logprobs = _plain_logprobs(said, vocabulary)
        if self.is_old and reason == "tool_calls":
            reason = "function_call"
        return {"index": said.index, **content, "logprobs": logprobs, "finish_reason": reason}


def token_logprobs(said: Said, vocabulary: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return how likely each token was, with its text and bytes."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        piece = vocabulary[token]
        return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}

    return [
        {**entry(choice.token, choice.logprob), "top_logprobs": [entry(*best) for best in choice.top]}
        for choice in said.tokens
    ]


def _plain_logprobs(said: Said, vocabulary: Sequence[bytes]) -> dict[str, Any]:
    def text(token: int) -> str:
        return vocabulary[token].decode(errors="replace")

    def best(choice: TokenChoice) -> dict[str, float] | None:
        # OpenAI: "The API will always return the logprob of the sampled token".
        listed = (*choice.top, (choice.token, choice.logprob))
        return None if math.isnan(choice.logprob) else {text(token): logprob for token, logprob in listed}

    return {
        "tokens": [text(choice.token) for choice in said.tokens],
        "token_logprobs": [None if math.isnan(choice.logprob) else choice.logprob for choice in said.tokens],
        "top_logprobs": [best(choice) for choice in said.tokens],
        "text_offset": list(_offsets(said, [vocabulary[choice.token] for choice in said.tokens])),
    }


def _offsets(said: Said, pieces: Sequence[bytes]) -> Iterator[int]:
    """Yield where each token's text begins, in characters."""
    text, at, offset = said.text.encode(), 0, said.offset
    for before, piece in zip((b"x", *pieces), pieces, strict=False):
        # A special token has no text of its own; in a prompt it was written out.
        if not before and not text.startswith(piece, at) and (found := text.find(piece, at)) > 0:
            at, offset = found, offset + characters(text[at:found])
        yield offset
        at, offset = at + len(piece), offset + characters(piece)


def characters(piece: bytes) -> int:
    """Return how many characters begin in `piece`."""
    return sum(byte & 0xC0 != 0x80 for byte in piece)


CHAT = Shape("chat.completion", "chatcmpl-", is_chat=True)
CHAT_WITH_FUNCTIONS = replace(CHAT, is_old=True)
COMPLETION = Shape("text_completion", "cmpl-", is_chat=False)
