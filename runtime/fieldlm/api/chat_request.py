"""Chat completions, the requests: OpenAI's JSON, checked, and turned into what an engine takes.

What is refused is an ApiError with the status that OpenAI gives it; no connection and no running model is known here.
What is accepted is honoured; what would change the answer and is not built is refused by name, never ignored.
Defaults are OpenAI's but for two: temperature is 0 (the likeliest token; the same answer each time takes `repeatable`),
an answer ends after 512 tokens (a small model that repeats itself must not hold a sequence until the context is full).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import msgspec

from fieldlm.api.forms.response_format import FormParams
from fieldlm.api.models.keep_alive import keep_seconds
from fieldlm.api.parameters import checked
from fieldlm.api.thoughts.wishes import Effort, ThinkingWish
from fieldlm.api.tools import (
    AskedCall,
    AskedFunction,
    Choice,
    Function,
    FunctionName,
    NamedChoice,
    Tool,
    Toolbox,
    toolbox,
)
from fieldlm.engines import Constraint, Outcome, Priority, Sampling, Schedule, Timings
from fieldlm.escalation.verdict import Verdict, Wish
from fieldlm.network.allowed_values import unknown_word
from fieldlm.network.json_api import ApiError

UNLIMITED = 1 << 20
"""Tokens, where a client wants no limit. The context ends an answer before."""
MAX_TOKENS = 512
MAX_STOPS = 16  # OpenAI takes 4; who tells speakers apart by their names sends more
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20

T = TypeVar("T")
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Stop = str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)]


class TextPart(msgspec.Struct, frozen=True):
    """One part of a message's content; only text is read, an assistant's refusal too."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # what vLLM calls it
    tool_calls: list[AskedCall] | None = None
    tool_call_id: str | None = None
    function_call: AskedFunction | None = None
    name: str | None = None
    refusal: str | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream carries beside text."""

    include_usage: bool = False


class Prediction(msgspec.Struct, frozen=True):
    """What the answer is expected to say; empty: what the conversation says. It is drafted, and changes no word."""

    type: Literal["content"]
    content: str | list[TextPart]


class CompletionParams(FormParams, frozen=True, kw_only=True):
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
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    # What OpenAI's API has no word for.
    deadline_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    max_queue_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    priority: Priority = "interactive"
    fallback: Any = None
    on_miss: Any = None  # what `fallback` was called before
    large: Wish | None = None
    keep_alive: float | str | None = None  # Ollama's
    cache_salt: str | None = None  # vLLM's

    @property
    def keep_s(self) -> float | None:
        """How long the model is to stay loaded after this request; None where the request does not say it."""
        return keep_seconds(self.keep_alive)

    def refuse(self) -> None:
        """Raise ApiError for a parameter that asks for what is not there."""
        if self.fallback is not None and self.on_miss is not None:
            message = "on_miss is the old name of fallback; send one of them"
            raise ApiError(400, message, param="on_miss", code="invalid_value")
        self.refuse_several()

    @property
    def canned(self) -> Any:
        """The answer that stands in for one that fails, None for none."""
        return self.on_miss if self.fallback is None else self.fallback

    def of(self, whose: str) -> Self:
        """Return the request as one of the key `whose`, whose prompts are remembered for nobody else."""
        return msgspec.structs.replace(self, cache_salt=f"{whose}/{self.cache_salt or ''}")

    def terms(self, spent_s: float = 0.0) -> Schedule:
        """Return when the answer is wanted, by the engine's clock: `spent_s` have passed since the request came."""
        return Schedule(
            priority=self.priority,
            deadline_s=_left_s(self.deadline_ms, spent_s),
            max_queue_s=_left_s(self.max_queue_ms, spent_s),
            cache_salt=self.cache_salt or "",
        )

    def sampling(self, max_tokens: int, constraint: Constraint | None, index: int, logprobs: int | None) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed + index,
            stop=tuple(stop),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repeat_penalty=self.repeat_penalty or 1.0,
            logit_bias=_bias(self.logit_bias or {}),
            logprobs=logprobs,
            constraint=constraint,
        )

    def wanted(self, constraint: Constraint | None = None, index: int = 0) -> Sampling:
        """Return how answer number `index` is chosen; every endpoint has its own words for that."""
        raise NotImplementedError

    def predicted(self) -> str | None:
        """Return the text of which much may stand in the answer; None where nothing is to be drafted."""
        return None

    def toolbox(self) -> Toolbox | None:
        """Return the tools that may be called; None where there are none. Raises ApiError for a choice of no tool."""
        return None

    def thinking(self) -> ThinkingWish | None:
        """Return what is said about thinking; None for what is no conversation."""
        return None

    def conversation_so_far(self) -> list[dict[str, Any]]:
        """Return the messages as templates know them: one text each, `developer` is the system."""
        raise NotImplementedError

    def label(self, name: str) -> str | None:
        return (self.metadata or {}).get(name)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(CompletionParams, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: AtLeastOne | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    # What tools were before they had that name: one call at most, and no ids.
    functions: list[Function] | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None
    modalities: list[str] | None = None
    prediction: Prediction | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: Annotated[int, msgspec.Meta(ge=0)] | None = None  # vLLM's
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM's and llama.cpp's

    def refuse(self) -> None:
        super().refuse()
        if self.modalities not in (None, ["text"]):
            raise ApiError(400, "modalities: not supported", param="modalities", code="unsupported_parameter")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
        for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
            if getattr(self, old) and (self.tools or self.tool_choice):
                what = f"{old} is the old name of {new}; send one kind of them"
                raise ApiError(400, what, param=old, code="invalid_value")
        self.toolbox()
        self.thinking().refuse()

    def thinking(self) -> ThinkingWish:
        given = self.chat_template_kwargs or {}
        most = self.thinking_token_budget
        return ThinkingWish(effort=self.reasoning_effort, is_on=self.enable_thinking, variables=given, most=most)

    def predicted(self) -> str | None:
        return None if self.prediction is None else _text(self.prediction.content, "prediction.content")

    @property
    def is_old(self) -> bool:
        """Whether calls are asked for by their old name."""
        return bool(self.functions)

    def toolbox(self) -> Toolbox | None:
        if not self.functions and not self.function_call:
            return toolbox(self.tools or [], self.tool_choice, several=bool(self.parallel_tool_calls))
        tools = [Tool("function", function) for function in self.functions or []]
        choice = self.function_call
        if isinstance(choice, FunctionName):
            choice = NamedChoice(choice)
        return toolbox(tools, choice, several=False, names=("function_call", "functions"))

    def wanted(self, constraint: Constraint | None = None, index: int = 0) -> Sampling:
        most = self.max_completion_tokens or self.max_tokens or MAX_TOKENS
        return self.sampling(most, constraint, index, (self.top_logprobs or 0) if self.logprobs else None)

    def conversation_so_far(self) -> list[dict[str, Any]]:
        return conversation(self.messages)


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as templates know them; raises ApiError for a role that is none, or content that is no text."""
    return [{**_plain(message, f"messages[{i}]"), **_thought(message)} for i, message in enumerate(messages)]


def _thought(message: ChatMessage) -> dict[str, Any]:
    thought = message.reasoning_content or message.reasoning
    return {"reasoning_content": thought} if thought and message.role == "assistant" else {}


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/feedback: what a person thought of the answer `id`."""

    id: str
    rating: Literal["up", "down"] | None = None
    correction: str | list[Any] | dict[str, Any] | None = None
    """Words, an object that is meant as JSON, or `tool_calls` as OpenAI spells them, alone or in a message."""

    @property
    def text(self) -> str | None:
        """The correction as one text, calls as `{"tool_calls": […]}`; raises ApiError where it says nothing."""
        said = self.correction
        if isinstance(said, dict) and said.get("role") == "assistant" and (called := said.get("function_call")):
            said = [{"function": called}]
        if isinstance(said, dict) and said.get("role") == "assistant" and not said.get("tool_calls"):
            said = said.get("content")
        calls = said.get("tool_calls") if isinstance(said, dict) else said
        if isinstance(calls, list) and calls:
            plain = [_right(call.plain(), f"correction[{i}]") for i, call in enumerate(_asked_calls(calls))]
            spelt = [{"type": "function", "function": call["function"]} for call in plain]
            return json.dumps({"tool_calls": spelt}, ensure_ascii=False)
        text = json.dumps(said, ensure_ascii=False) if isinstance(said, dict) else said
        if self.correction is not None and not (isinstance(text, str) and text.strip()):
            raise ApiError(400, "correction says nothing", param="correction", code="invalid_value")
        return cast(str | None, text)


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
    context: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the prompt held beside the messages: `system`, the bundle's own, and `tools`; `raw` says it was no chat."""
    answer: str = ""
    outcome: Outcome = "error"
    timings: Timings = field(default_factory=Timings)
    task: str = ""
    """The recurring task that it is: what the client calls it, or what the bundle's router takes it for."""
    verdict: Verdict | None = None  # which model answered, where there is a large one beside the small one
    adapter: str = ""  # which one answered, of several in its bundle
    answered_by: str = ""  # "classifier" where the bundle's own answered in the model's place
    reasoning_tokens: int = 0
    """How many of its tokens were thought; the thought itself is not told."""
    used_fallback: bool = False
    """Whether the client got its own `fallback` and not this answer."""
    duration_s: float = 0.0
    ttft_s: float | None = None
    confidence: float | None = None
    """How likely the answer is right; None where it is not whole, or its generation was not calibrated."""
    is_unsure: bool | None = None
    """Whether it is among the least sure of its generation; None where that was not calibrated."""

    @property
    def prompt_tokens(self) -> int:
        return self.timings.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        return self.timings.completion_tokens


def _asked_calls(calls: list[Any]) -> list[AskedCall]:
    try:
        return msgspec.convert(calls, list[AskedCall])
    except msgspec.ValidationError as error:
        raise ApiError(400, f"correction: {error}", param="correction", code="invalid_type") from error


def _right(call: dict[str, Any], where: str) -> dict[str, Any]:
    """Return `call`, which somebody is to learn; raises ApiError where its arguments are no object."""
    if isinstance(call["function"]["arguments"], dict):
        return call
    name = f"{where}.function.arguments"
    raise ApiError(400, f"{name} is not the JSON of an object", param=name, code="invalid_value")


def parse(body: bytes, kind: type[T]) -> T:
    """Read a request body; raises ApiError 400 with the parameter that is wrong, or that is not known here."""
    body = checked(body, kind)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `")
        found = where.strip("`").removeprefix("$").removeprefix(".")
        missing = re.search(r"missing required field `(\w+)`", what)
        param = ".".join(filter(None, (found, missing[1] if missing else ""))) or None
        if unknown := unknown_word(what, kind, found):
            raise ApiError(400, unknown, param=param, code="invalid_value") from error
        raise ApiError(400, f"{param or 'the body'}: {what}", param=param, code="invalid_type") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error


def converted(given: dict[str, Any], kind: type[T]) -> T:
    """Return what another API's request asks for, in the words of `kind`; raises ApiError for what is out of bounds."""
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        where = where.strip("`")
        if unknown := unknown_word(what, kind, where):
            raise ApiError(400, unknown, code="invalid_value") from error
        raise ApiError(400, f"{where or 'the body'}: {what}", code="invalid_type") from error


def _left_s(millis: float | None, spent_s: float) -> float | None:
    return None if millis is None else max(0.0, millis / 1000 - spent_s)


def _bias(biases: dict[str, float]) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((int(token), bias) for token, bias in biases.items())
    except ValueError as error:
        raise ApiError(400, "logit_bias: want token ids as keys", param="logit_bias", code="invalid_value") from error


SPEAKERS = ("system", "developer", "user", "assistant")
ROLES = (*SPEAKERS, "tool", "function")


def _plain(message: ChatMessage, where: str) -> dict[str, Any]:
    if message.role not in ROLES:
        what = f"{where}.role is {message.role!r}; want one of {', '.join(ROLES)}"
        raise ApiError(400, what, param=f"{where}.role", code="invalid_value")
    plain: dict[str, Any] = {"role": {"developer": "system", "function": "tool"}.get(message.role, message.role)}
    if message.role == "assistant":
        return {**plain, **_answered(message, f"{where}.content")}
    if message.role == "function" and message.name is not None:
        plain["name"] = message.name
    if message.role == "tool" and message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return {**plain, "content": _text(message.content, f"{where}.content")}


def _answered(message: ChatMessage, where: str) -> dict[str, Any]:
    """Return what an assistant said, declined and called. Whatever a model wrote may come back."""
    plain: dict[str, Any] = {}
    if message.tool_calls:
        plain["tool_calls"] = [call.plain() for call in message.tool_calls]
    elif message.function_call:
        plain["tool_calls"] = [{"type": "function", "function": message.function_call.plain()}]
    is_enough = plain or message.refusal is not None
    said = _text("" if message.content is None and is_enough else message.content, where, is_answer=True)
    return {**plain, "content": "\n".join(filter(None, (said, message.refusal)))}


def _text(content: str | Sequence[TextPart] | None, where: str, *, is_answer: bool = False) -> str:
    if content is None:
        raise ApiError(400, f"{where} is missing", param=where, code="missing_required_parameter")
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for i, part in enumerate(content):
        is_refusal = is_answer and part.type == "refusal"
        text = part.refusal if is_refusal else part.text if part.type == "text" else None
        if text is None:
            what = f"{where}[{i}] is {part.type!r}; this model reads text"
            raise ApiError(400, what, param=where, code="invalid_value")
        texts.append(text)
    return "\n".join(texts)
