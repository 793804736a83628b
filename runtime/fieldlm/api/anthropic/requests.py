"""Anthropic's Messages API, the requests: what they ask for in the words of chat completions.

Pictures and documents are refused by name. `cache_control` is harmless: a common beginning is kept anyway.
"""

from typing import Annotated, Any, Literal

import msgspec

from fieldlm.api.chat_request import AtLeastOne, ChatRequest, converted
from fieldlm.network.json_api import ApiError

Plain = dict[str, Any]
THINKS = {"enabled": True, "disabled": False, "adaptive": None}


class ContentBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a message: a text, a thought, a call that was made, or what it returned."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[ContentBlock] | None" = None
    is_error: bool | None = None


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str | list[ContentBlock]


class MessagesTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool, as this API spells it."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None


class MessagesToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which tools may, or must, be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The schema that the text has to follow."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer has to look like."""

    format: OutputFormat | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model is to think first; `adaptive` leaves that to its template."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/messages."""

    model: str
    max_tokens: AtLeastOne
    messages: Annotated[list[Turn], msgspec.Meta(min_length=1)]
    system: str | list[ContentBlock] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: Thinking | None = None
    metadata: dict[str, str] | None = None

    def asked(self) -> ChatRequest:
        """Return it as chat completions have it; raises ApiError for what is not honoured."""
        given: Plain = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "messages": self._messages(),
            "stop": self.stop_sequences or None,
            "stream": self.stream,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "metadata": self.metadata,
            "enable_thinking": None if self.thinking is None else THINKS[self.thinking.type],
            "thinking_token_budget": None if self.thinking is None else self.thinking.budget_tokens,
            **self._tools(),
        }
        if self.output_config and self.output_config.format:
            schema = {"schema": self.output_config.format.schema}
            given["response_format"] = {"type": "json_schema", "json_schema": schema}
        return converted(given, ChatRequest)

    def refuse_begun(self) -> None:
        """Raise ApiError where the last message is the beginning of the answer, as this API has it."""
        if self.messages[-1].role == "assistant":
            raise _refused("messages", "an answer that has begun is not gone on with here; end with a user's message")

    def _messages(self) -> list[Plain]:
        system = _text(self.system, "system") if self.system else ""
        messages: list[Plain] = [{"role": "system", "content": system}] if system else []
        for i, turn in enumerate(self.messages):
            messages += _spoken(turn, f"messages[{i}]")
        return messages

    def _tools(self) -> Plain:
        if not self.tools:
            return {}
        for tool in self.tools:
            if tool.type not in (None, "custom"):
                raise _refused(f"tools: {tool.name}", f"{tool.type!r} runs at Anthropic's; declare a tool of your own")
        declared = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                    "strict": tool.strict,
                },
            }
            for tool in self.tools
        ]
        choice = self.tool_choice or MessagesToolChoice(type="auto")
        named = {"type": "function", "function": {"name": choice.name or ""}}
        spelt = {"auto": "auto", "any": "required", "none": "none", "tool": named}[choice.type]
        return {"tools": declared, "tool_choice": spelt, "parallel_tool_calls": not choice.disable_parallel_tool_use}


class CountTokensRequest(MessagesRequest, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens: a request that nothing is said to."""

    max_tokens: AtLeastOne = 1


def _spoken(turn: Turn, where: str) -> list[Plain]:
    """Return a message as templates know it: results of calls stand by themselves, before what the user says."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    results: list[Plain] = []
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Plain] = []
    for i, block in enumerate(turn.content):
        place = f"{where}.content[{i}]"
        match block.type:
            case "text":
                texts.append(_text([block], place))
            case "thinking" | "redacted_thinking" if turn.role == "assistant":
                thoughts += [block.thinking] if block.thinking else []
            case "tool_use" if turn.role == "assistant" and block.name is not None:
                call = {"name": block.name, "arguments": block.input or {}}
                calls.append({"id": block.id, "type": "function", "function": call})
            case "tool_result" if turn.role == "user":
                text = _text(block.content or "", f"{place}.content")
                told = f"Error: {text}" if block.is_error else text
                results.append({"role": "tool", "content": told, "tool_call_id": block.tool_use_id or ""})
            case kind:
                what = f"is {kind!r}; this model reads text, thinking and tool_use (assistant), tool_result (user)"
                raise _refused(f"{place}.type", what)
    said: Plain = {"role": turn.role, "content": "\n".join(texts)}
    if thoughts:
        said["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    return [*results, said] if texts or calls or not results else results


def _text(content: str | list[ContentBlock], where: str) -> str:
    if isinstance(content, str):
        return content
    for i, block in enumerate(content):
        if block.type != "text" or block.text is None:
            raise _refused(f"{where}[{i}].type", f"is {block.type!r}; this model reads text")
    return "\n".join(block.text or "" for block in content)


def _refused(param: str, what: str) -> ApiError:
    return ApiError(400, f"{param}: {what}", param=param, code="unsupported_parameter")
