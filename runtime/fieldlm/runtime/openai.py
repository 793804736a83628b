"""OpenAI's JSON in and out. Knows nothing of HTTP and nothing of engines.

What is accepted is honoured; what would change the answer and is not built is refused by name, never ignored.
Defaults are OpenAI's but for two: temperature is 0 (a device answers the same question the same way), and an answer
ends after 512 tokens (a small model that repeats itself must not hold a sequence until the context is full).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from fieldlm.runtime.engines import Outcome, Sampling, Timings

MAX_TOKENS = 512
MAX_TOKENS_COMPLETION = 16  # OpenAI's own default for plain completions
MAX_STOPS = 4

T = TypeVar("T")
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Stop = str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)]


class ApiError(Exception):
    """A refusal in OpenAI's shape: status, what is wrong, with which parameter."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def document(self) -> dict[str, Any]:
        kinds = {429: "rate_limit_error", 404: "not_found_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class TextPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only text is read."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart] | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream carries beside text."""

    include_usage: bool = False


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the answer has to look like."""

    type: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and plain completions have in common."""

    model: str | None = None
    max_tokens: AtLeastOne | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    min_p: Share | None = None
    seed: int | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def refuse(self) -> None:
        """Raise ApiError for a parameter that asks for what is not there."""
        if self.n not in (None, 1):
            raise _unsupported("n")
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise _unsupported(name)

    def sampling(self, max_tokens: int) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            seed=self.seed,
            stop=tuple(stop),
        )

    def label(self, name: str) -> str | None:
        return (self.metadata or {}).get(name)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Request, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: AtLeastOne | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None

    def refuse(self) -> None:
        super().refuse()
        for name in ("logprobs", "top_logprobs", "tools", "functions"):
            if getattr(self, name):
                raise _unsupported(name)
        if self.tool_choice not in (None, "none", "auto"):
            raise _unsupported("tool_choice")
        if self.response_format and self.response_format.type != "text":
            raise _unsupported("response_format")
        if self.modalities not in (None, ["text"]):
            raise _unsupported("modalities")

    def wanted(self) -> Sampling:
        return self.sampling(self.max_completion_tokens or self.max_tokens or MAX_TOKENS)

    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages as templates know them: one text each, `developer` is the system."""
        return [_plain(message, f"messages[{i}]") for i, message in enumerate(self.messages)]


class CompletionRequest(Request, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def refuse(self) -> None:
        super().refuse()
        if self.best_of not in (None, 1):
            raise _unsupported("best_of")
        for name in ("logprobs", "echo", "suffix"):
            if getattr(self, name):
                raise _unsupported(name)

    def wanted(self) -> Sampling:
        return self.sampling(self.max_tokens or MAX_TOKENS_COMPLETION)


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/feedback: what a person thought of the answer `id`."""

    id: str
    rating: Literal["up", "down"] | None = None
    correction: str | None = None


@dataclass(kw_only=True)
class Exchange:
    """What one request did, for telemetry. It holds the text; what may be kept of it is decided elsewhere."""

    id: str
    generation: str
    model: str
    messages: list[dict[str, Any]]
    started_wall_s: float
    session: str | None = None
    consent: str | None = None
    route: str | None = None
    answer: str = ""
    outcome: Outcome = "error"
    timings: Timings = field(default_factory=Timings)
    duration_s: float = 0.0
    ttft_s: float | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.timings.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        return self.timings.completion_tokens


def parse(body: bytes, kind: type[T]) -> T:
    """Read a request body; raises ApiError 400 with the parameter that is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `")
        found = where.strip("`").removeprefix("$").removeprefix(".")
        missing = re.search(r"missing required field `(\w+)`", what)
        param = ".".join(filter(None, (found, missing[1] if missing else ""))) or None
        raise ApiError(400, f"{param or 'the body'}: {what}", param=param, code="invalid_type") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error


def _unsupported(name: str) -> ApiError:
    return ApiError(400, f"{name} is not supported yet", param=name, code="unsupported_parameter")


def _plain(message: Message, where: str) -> dict[str, Any]:
    if message.role not in ("system", "developer", "user", "assistant"):
        raise ApiError(
            400,
            f"{where}.role is {message.role!r}; want system, developer, user or assistant",
            param=f"{where}.role",
            code="invalid_value",
        )
    return {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message.content, f"{where}.content"),
    }


def _text(content: str | Sequence[TextPart] | None, where: str) -> str:
    if content is None:
        raise ApiError(400, f"{where} is missing", param=where, code="missing_required_parameter")
    if isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise ApiError(
                400, f"{where}[{i}] is {part.type!r}; this model reads text", param=where, code="invalid_value"
            )
    return "\n".join(part.text or "" for part in content)


def usage(timings: Timings) -> dict[str, Any]:
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "total_tokens": timings.prompt_tokens + timings.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.cached_tokens},
    }


def own_fields(exchange: Exchange) -> dict[str, Any]:
    """Return what OpenAI's answer has no place for: the generation, and where the time went."""
    timings = exchange.timings
    millis = {"queue": timings.queue_s, "prefill": timings.prefill_s, "decode": timings.decode_s}
    if exchange.ttft_s is not None:
        millis["ttft"] = exchange.ttft_s
    return {
        "generation": exchange.generation,
        "timings": {f"{name}_ms": round(1000 * seconds, 3) for name, seconds in millis.items()},
        "margin": round(timings.margin, 4),
    }


def finish_reason(outcome: Outcome | None) -> str | None:
    """Return OpenAI's word for an outcome; what was cancelled has none."""
    return outcome if outcome in ("stop", "length") else None


@dataclass(frozen=True)
class Shape:
    """How one endpoint wraps text: whole, and as the chunks of a stream."""

    object: str
    prefix: str
    is_chat: bool

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        content: dict[str, Any] = {"text": exchange.answer}
        if self.is_chat:
            content = {"message": {"role": "assistant", "content": exchange.answer, "refusal": None}}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason(exchange.outcome)}
        return {
            **self.head(exchange, self.object),
            "choices": [choice],
            "usage": usage(exchange.timings),
            "fieldlm": own_fields(exchange),
        }

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

    def delta(self, text: str, outcome: Outcome | None = None) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.is_chat else {"text": text}
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason(outcome)}

    @property
    def opening(self) -> dict[str, Any]:
        """The first delta of a chat: who speaks."""
        return {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }


CHAT = Shape("chat.completion", "chatcmpl-", is_chat=True)
COMPLETION = Shape("text_completion", "cmpl-", is_chat=False)
