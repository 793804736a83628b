"""/tokenize, /detokenize, /tokenizer_info and /apply-template: what a text is to the model, without an answer.

The first two have one path in llama.cpp's server and in vLLM, and bodies and replies with other names; here both are
understood, and a reply holds the names of both. A special token is written out.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fieldlm.api.chat_request import ChatMessage, ChatRequest, conversation, parse
from fieldlm.api.models.admission import Admission
from fieldlm.api.preparation import Preparation
from fieldlm.api.thoughts.asked_prompt import AskedPrompt
from fieldlm.api.thoughts.wishes import ThinkingWish
from fieldlm.api.tools import Tool, toolbox
from fieldlm.engines import DEFAULT_TERMS, SEAM, Engine
from fieldlm.inference.chat_template import opening, parted, special_tokens, template_of
from fieldlm.inference.generations import Serving
from fieldlm.network.json_api import ApiError, as_json, read_body

Token = Annotated[int, msgspec.Meta(ge=0)]


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: llama.cpp's `content`, or vLLM's `prompt` or `messages`.

    `add_special` and `add_special_tokens` put the BOS in front for models that want one; of a `prompt` it is there
    unless that is false. Without `parse_special` special tokens in `content` are text. `with_pieces` and
    `return_token_strs` tell the text of each token.
    """

    model: str | None = None
    content: str | list[str | Token] | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize: the text of `tokens`, as `content` (llama.cpp) and `prompt` (vLLM)."""

    tokens: list[Token]
    model: str | None = None


class TemplateRequest(ChatRequest, frozen=True, kw_only=True):
    """POST /apply-template: a chat's body; the answer is the `prompt` that the model would be asked."""

    add_generation_prompt: bool = True


@dataclass(frozen=True)
class Pieces:
    """The bytes of every token of a model, those of control as they are written."""

    of: list[bytes]

    @classmethod
    def of_serving(cls, serving: Serving) -> "Pieces":
        engine = serving.engine
        with _reading:
            found = _known.get(engine)
            if found is None:
                pieces = list(engine.vocabulary())
                for text in special_tokens(serving.bundle).control:
                    tokens = engine.tokenize(text)
                    if len(tokens) == 1 and not pieces[tokens[0]]:
                        pieces[tokens[0]] = text.encode()
                found = _known[engine] = cls(pieces)
            return found

    def check(self, tokens: list[int], param: str) -> None:
        """Raise ApiError for a token that the model has not."""
        if tokens and max(tokens) >= len(self.of):
            what = f"{param} names token {max(tokens)}; this model has 0 to {len(self.of) - 1}"
            raise ApiError(400, what, param=param, code="invalid_value")


_known: "weakref.WeakKeyDictionary[Engine, Pieces]" = weakref.WeakKeyDictionary()
_reading = threading.Lock()


def routes(admission: Admission, texts: Preparation, refuse: Callable[[str | None], None]) -> list[BaseRoute]:
    """Return the routes over what `admission` lets in, done in `texts`; `refuse` raises for a model without tokens."""

    async def held(request: Request, model: str | None, job: Callable[[Serving], dict[str, Any]]) -> Response:
        refuse(model)
        with ExitStack() as needs:
            serving = await admission.admit(request, needs, model, DEFAULT_TERMS)
            return as_json(await texts.run(request, lambda: job(serving)))

    async def tokenize(request: Request) -> Response:
        asked = parse(await read_body(request), TokenizeRequest)
        return await held(request, asked.model, lambda serving: tokenized(asked, serving))

    async def detokenize(request: Request) -> Response:
        asked = parse(await read_body(request), DetokenizeRequest)
        return await held(request, asked.model, lambda serving: detokenized(asked, serving))

    async def template(request: Request) -> Response:
        asked = parse(await read_body(request), TemplateRequest)
        asked.refuse()
        return await held(request, asked.model, lambda serving: rendered(asked, serving))

    async def tokenizer_info(request: Request) -> Response:
        return await held(request, request.query_params.get("model"), info)

    return [
        Route("/tokenizer_info", tokenizer_info),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/apply-template", template, methods=["POST"]),
    ]


def tokenized(asked: TokenizeRequest, serving: Serving) -> dict[str, Any]:
    """Return the tokens of what `asked` holds; raises ApiError where that is not one text."""
    given = [name for name in ("content", "prompt", "messages") if getattr(asked, name) is not None]
    if len(given) != 1:
        what = f"want one of content, prompt and messages, not {' and '.join(given) or 'none'}"
        raise ApiError(400, what, param=given[0] if given else "content", code="invalid_value")
    engine = serving.engine
    adds = asked.add_special if asked.add_special_tokens is None else asked.add_special_tokens
    if asked.messages is not None:
        tokens = engine.tokenize(_conversation(asked, asked.messages, serving))
    elif asked.prompt is not None:
        adds = asked.add_special_tokens is not False
        tokens = engine.tokenize(asked.prompt)
    else:
        tokens = _of_content(asked, serving)
    bos = engine.tokenize(opening(serving.bundle)) if adds else []
    tokens = tokens if tokens[: len(bos)] == bos else [*bos, *tokens]
    reply: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": engine.context}
    pieces = Pieces.of_serving(serving).of if asked.with_pieces or asked.return_token_strs else []
    if asked.with_pieces:
        reply["tokens"] = [{"id": token, "piece": _piece(pieces[token])} for token in tokens]
    if asked.return_token_strs:
        reply["token_strs"] = [pieces[token].decode(errors="replace") for token in tokens]
    return reply


def detokenized(asked: DetokenizeRequest, serving: Serving) -> dict[str, Any]:
    """Return the text of tokens under both its names."""
    pieces = Pieces.of_serving(serving)
    pieces.check(asked.tokens, "tokens")
    text = b"".join(pieces.of[token] for token in asked.tokens).decode(errors="replace")
    return {"content": text, "prompt": text}


def rendered(asked: TemplateRequest, serving: Serving) -> dict[str, Any]:
    """Return the prompt of a conversation; what parts a special token in somebody's words is not shown."""
    asks = asked.add_generation_prompt
    prompt = AskedPrompt.of(serving, asked, asked.conversation_so_far(), asked.toolbox(), asks=asks)
    return {"prompt": prompt.text().replace(SEAM, "")}


def _conversation(asked: TokenizeRequest, messages: list[ChatMessage], serving: Serving) -> str:
    wish = ThinkingWish(variables=asked.chat_template_kwargs or {})
    wish.refuse()
    tools = toolbox(asked.tools or [], None, several=True)
    asks = asked.add_generation_prompt
    return AskedPrompt(serving, conversation(messages), tools, wish, is_formed=False, asks=asks).text()


def _of_content(asked: TokenizeRequest, serving: Serving) -> list[int]:
    given = asked.content if isinstance(asked.content, list) else [asked.content or ""]
    tokens: list[int] = []
    for part in given:
        if isinstance(part, int):
            Pieces.of_serving(serving).check([part], "content")
            tokens.append(part)
        else:
            text = part if asked.parse_special else parted(part, special_tokens(serving.bundle))
            tokens += serving.engine.tokenize(text)
    return tokens


def _piece(piece: bytes) -> str | list[int]:
    """Return a token as llama.cpp has it: its text, or its bytes where it is part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def info(serving: Serving) -> dict[str, Any]:
    """Return what vLLM tells of a tokenizer: special tokens (null where there is none), the template, the context."""
    special, template = special_tokens(serving.bundle), template_of(serving.bundle)
    return {
        "model_max_length": serving.engine.context,
        "bos_token": special.bos or None,
        "eos_token": special.eos or None,
        "add_bos_token": special.adds_bos,
        "chat_template": None if template is None else template.source,
    }
