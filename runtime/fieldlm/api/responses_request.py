"""OpenAI's Responses API, its requests: one conversation in `input`, and nothing kept between two of them.

A device does not store what was said to it, so whatever refers to an earlier response is refused by name.
"""

from typing import Annotated, Any, Literal

import msgspec

from fieldlm.api.chat_request import MAX_TOKENS, MAX_TOP_LOGPROBS, SPEAKERS, AtLeastOne, CompletionParams
from fieldlm.api.forms.response_format import rule_of
from fieldlm.api.parameters import FORM, KEPT, LENGTH
from fieldlm.api.thoughts.wishes import Effort, ThinkingWish
from fieldlm.api.tools import (
    AllowedChoice,
    AllowedTools,
    AskedCall,
    Function,
    FunctionName,
    NamedChoice,
    Tool,
    Toolbox,
    toolbox,
)
from fieldlm.engines import Constraint, Sampling
from fieldlm.engines.rules.rule import Rule
from fieldlm.network.json_api import ApiError

LOGPROBS = "message.output_text.logprobs"
OTHERS = {"max_tokens": LENGTH, "response_format": FORM, "n": "one answer is given", "prompt": KEPT}
"""Parameters of the other endpoints, or of a store of prompts that is not here; what to do instead."""
TEXTS = ("input_text", "output_text", "text")

Plain = dict[str, Any]


class ContentPart(msgspec.Struct, frozen=True):
    """One part of an item's content; only text is read."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, frozen=True):
    """A message, a thought, a call that was made, or what it returned."""

    type: str | None = None
    role: str | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class FunctionTool(msgspec.Struct, frozen=True):
    """A tool, flat as this API spells it."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(msgspec.Struct, frozen=True, tag="function", tag_field="type"):
    """`tool_choice` of one function."""

    name: str

    def named(self) -> NamedChoice:
        """Return it as chat completions spell it."""
        return NamedChoice(FunctionName(self.name))


class AllowedFunctions(msgspec.Struct, frozen=True, tag="allowed_tools", tag_field="type"):
    """`tool_choice` of some of the functions."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], msgspec.Meta(min_length=1)]


class TextFormat(msgspec.Struct, frozen=True):
    """What the text has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextSettings(msgspec.Struct, frozen=True):
    """The form of the text; `verbosity` is another model's dial."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """How much the model is to think. Its thought is shown whole, so that no `summary` is made of it."""

    effort: Effort | None = None
    summary: str | None = None


class ResponsesRequest(CompletionParams, frozen=True, kw_only=True):
    """POST /v1/responses."""

    input: str | Annotated[list[Item], msgspec.Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: AtLeastOne | None = None
    text: TextSettings | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedFunctions | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: Reasoning | None = None
    prompt: Any = None

    def refuse(self) -> None:
        super().refuse()
        for name, why in OTHERS.items():
            if getattr(self, name) not in (None, {}, []):
                raise _refused(name, why)
        if self.text and self.text.verbosity not in (None, "medium"):
            raise _refused("text.verbosity", "not supported")
        if self.truncation == "auto":
            raise _refused("truncation", "nothing is left out of a conversation here; shorten it yourself")
        self.toolbox()

    def thinking(self) -> ThinkingWish:
        return ThinkingWish(effort=self.reasoning.effort if self.reasoning else None, effort_name="reasoning.effort")

    def rules(self) -> dict[str, Rule]:
        found = super().rules()
        format = self.text.format if self.text else None
        if format is None or format.type == "text":
            return found
        return {**found, "text.format": rule_of(format.type, format.schema, "text.format.schema")}

    def toolbox(self) -> Toolbox | None:
        choice = self.tool_choice
        if isinstance(choice, FunctionChoice):
            choice = choice.named()
        elif isinstance(choice, AllowedFunctions):
            choice = AllowedChoice(AllowedTools(choice.mode, [each.named() for each in choice.tools]))
        tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(self.tools or [])]
        return toolbox(tools, choice, several=bool(self.parallel_tool_calls))

    def wanted(self, constraint: Constraint | None = None, index: int = 0) -> Sampling:
        asks = self.top_logprobs is not None or LOGPROBS in (self.include or ())
        most = self.max_output_tokens or MAX_TOKENS
        return self.sampling(most, constraint, index, (self.top_logprobs or 0) if asks else None)

    def conversation_so_far(self) -> list[Plain]:
        messages: list[Plain] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for i, item in enumerate(self.input):
            _add(messages, item, f"input[{i}]")
        return messages


class InputTokensRequest(ResponsesRequest, frozen=True, kw_only=True):
    """POST /v1/responses/input_tokens: how many tokens the model would read; nothing is said."""


def _tool(tool: FunctionTool, where: str) -> Tool:
    plain = {name: getattr(tool, name) for name in ("name", "description", "parameters", "strict")}
    try:
        return Tool("function", msgspec.convert(plain, Function))
    except msgspec.ValidationError as error:
        raise ApiError(400, f"{where}: {error}", param=where, code="invalid_value") from error


def _add(messages: list[Plain], item: Item, where: str) -> None:
    """Append what `item` says, as templates know it; a call belongs to the assistant's message before it.

    A thought belongs to the message or the call behind it.
    """
    match item.type:
        case None | "message":
            said = _message(item, where)
            if said["role"] == "assistant" and messages and messages[-1].keys() == {*said, "reasoning_content"}:
                said = messages.pop() | said
            messages.append(said)
        case "reasoning":
            parts = item.content if isinstance(item.content, list) else []
            thought = "\n".join(part.text for part in parts if part.text)
            if thought:
                messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
        case "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(_call(item, where))
        case "function_call_output":
            text = _text(item.output, f"{where}.output")
            messages.append({"role": "tool", "content": text, "tool_call_id": item.call_id or ""})
        case kind:
            raise _invalid(
                f"{where}.type", f"is {kind!r}; want message, reasoning, function_call or function_call_output"
            )


def _message(item: Item, where: str) -> Plain:
    if item.role not in SPEAKERS:
        raise _invalid(f"{where}.role", f"is {item.role!r}; want one of {', '.join(SPEAKERS)}")
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": _text(item.content, f"{where}.content", is_answer=role == "assistant")}


def _call(item: Item, where: str) -> Plain:
    if not item.name:
        raise _invalid(f"{where}.name", "is missing")
    function = {"name": item.name, "arguments": item.arguments or "{}"}
    return msgspec.convert({"id": item.call_id, "function": function}, AskedCall).plain()


def _text(content: str | list[ContentPart] | None, where: str, *, is_answer: bool = False) -> str:
    if content is None:
        raise _invalid(where, "is missing")
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for i, part in enumerate(content):
        is_refusal = is_answer and part.type == "refusal"
        text = part.refusal if is_refusal else part.text if part.type in TEXTS else None
        if text is None:
            raise _invalid(f"{where}[{i}]", f"is {part.type!r}; this model reads text")
        texts.append(text)
    return "\n".join(texts)


def _refused(name: str, why: str) -> ApiError:
    return ApiError(400, f"{name}: {why}", param=name, code="unsupported_parameter")


def _invalid(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where} {what}", param=where, code="invalid_value")
