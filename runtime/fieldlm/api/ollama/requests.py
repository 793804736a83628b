"""Ollama's API, the requests: what they ask for in the words of chat completions.

A stream is the default there. How a model is loaded (`num_ctx`, `num_gpu`, …) was decided when it was
served; what would change an answer and is not built is refused by name, as everywhere.
"""

from typing import Any, Literal

import msgspec

from fieldlm.api.chat_request import MAX_TOKENS, UNLIMITED, AtLeastOne, ChatRequest, converted, parse
from fieldlm.api.completion_request import CompletionRequest
from fieldlm.api.models.keep_alive import keep_seconds
from fieldlm.api.tools import AskedCall, Tool
from fieldlm.inference.model_pool import LATEST
from fieldlm.network.json_api import ApiError


class OllamaOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`options`: how words are chosen, and how many."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    num_predict: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def sampling(self) -> dict[str, Any]:
        """Return them as chat completions spell them."""
        given = {name: each for name, each in msgspec.structs.asdict(self).items() if each is not None}
        most = given.pop("num_predict", MAX_TOKENS)
        return {**given, "max_tokens": most if most > 0 else UNLIMITED}


class OllamaMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str = ""
    tool_calls: list[AskedCall] | None = None
    tool_name: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None

    def plain(self, where: str) -> dict[str, Any]:
        """Return it as chat completions have it; raises ApiError for pictures."""
        if self.images:
            what = f"{where}.images: this model reads text"
            raise ApiError(400, what, param=f"{where}.images", code="unsupported_parameter")
        named = self.role == "tool" and self.tool_name is not None
        role = "function" if named else self.role  # the old role carries the function's name
        calls = None if self.tool_calls is None else msgspec.to_builtins(self.tool_calls)
        said = {"role": role, "content": self.content, "tool_calls": calls, "name": self.tool_name}
        return {**said, "reasoning_content": self.thinking} if self.thinking else said


class OllamaRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a chat and a generation have in common."""

    model: str
    options: msgspec.Raw = msgspec.Raw(b"{}")
    format: Any = None
    """`json`, or a schema."""
    stream: bool = True
    logprobs: bool | None = None
    top_logprobs: int | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: float | str | None = None

    @property
    def keep_s(self) -> float | None:
        """How long the model is to stay loaded; None where that is not said."""
        return keep_seconds(self.keep_alive)

    @property
    def name(self) -> str:
        return self.model.removesuffix(LATEST)

    def shared(self) -> dict[str, Any]:
        """Return what chat and plain completions call alike; raises ApiError for an option that is not honoured."""
        options = parse(bytes(self.options), OllamaOptions) if self.options != b"null" else OllamaOptions()
        given: dict[str, Any] = {"model": self.name, "stream": self.stream, **options.sampling()}
        if self.keep_alive is not None:
            given["keep_alive"] = self.keep_alive
        match self.format:
            case None | "":
                pass
            case "json":
                given["response_format"] = {"type": "json_object"}
            case dict():
                given["response_format"] = {"type": "json_schema", "json_schema": {"schema": self.format}}
            case _:
                raise ApiError(400, "format is neither json nor a schema", param="format", code="invalid_value")
        return given

    def chat_shared(self) -> dict[str, Any]:
        name = "reasoning_effort" if isinstance(self.think, str) else "enable_thinking"
        return {**self.shared(), "logprobs": self.logprobs, "top_logprobs": self.top_logprobs, name: self.think}


class OllamaChat(OllamaRequest, frozen=True, kw_only=True):
    """POST /api/chat."""

    messages: list[OllamaMessage] = []
    tools: list[Tool] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it only asks for the model to be there."""
        return not self.messages

    def asked(self) -> ChatRequest:
        messages = [message.plain(f"messages[{i}]") for i, message in enumerate(self.messages)]
        tools = {"tools": msgspec.to_builtins(self.tools), "parallel_tool_calls": True} if self.tools else {}
        return converted({**self.chat_shared(), **tools, "messages": messages}, ChatRequest)


class OllamaGenerate(OllamaRequest, frozen=True, kw_only=True):
    """POST /api/generate."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.prompt

    def asked(self) -> ChatRequest:
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, {"role": "user", "content": self.prompt}]
        return converted({**self.chat_shared(), "messages": messages}, ChatRequest)

    def asked_raw(self) -> CompletionRequest:
        """Return it as a text that is gone on with, without a template."""
        if self.think:
            raise ApiError(400, "think: a raw prompt has no template", param="think", code="invalid_value")
        if self.system:
            raise ApiError(400, "system: a raw prompt has no template", param="system", code="invalid_value")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return converted({**self.shared(), "prompt": self.prompt, "logprobs": logprobs}, CompletionRequest)


class OllamaEmbed(msgspec.Struct, frozen=True, kw_only=True):
    """POST /api/embed, and /api/embeddings with `prompt`. A text that does not fit is refused, never cut."""

    model: str
    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: AtLeastOne | None = None
    truncate: bool | None = None
    options: Any = None
    keep_alive: float | str | None = None

    @property
    def name(self) -> str:
        return self.model.removesuffix(LATEST)


class OllamaName(msgspec.Struct, frozen=True, kw_only=True):
    """POST /api/show: about which model."""

    model: str = ""
    name: str = ""

    @property
    def named(self) -> str:
        return (self.model or self.name).removesuffix(LATEST)
