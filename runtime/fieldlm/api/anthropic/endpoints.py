"""Anthropic's Messages API beside OpenAI's: messages, and how many tokens they have; nothing kept."""

from typing import Any, Protocol

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from fieldlm.api.anthropic.requests import CountTokensRequest, MessagesRequest
from fieldlm.api.anthropic.responses import MessagesVoice, refusal
from fieldlm.api.chat_request import CompletionParams, parse
from fieldlm.api.response_stream import AnswerFormat
from fieldlm.network.json_api import as_json, read_body, worded


class Converses(Protocol):
    """What answers a conversation, whichever API it came by."""

    async def converse(self, request: Request, asked: CompletionParams, voice: AnswerFormat, size: int) -> Any: ...

    async def prompt_tokens(self, request: Request, asked: CompletionParams, size: int) -> int: ...


def routes(api: Converses) -> list[BaseRoute]:
    """Return the routes of Anthropic's API over `api`."""

    async def messages(request: Request) -> Any:
        body = await read_body(request)
        given = parse(body, MessagesRequest)
        given.refuse_begun()
        return await api.converse(request, given.asked(), MessagesVoice(), len(body))

    async def count(request: Request) -> Any:
        body = await read_body(request)
        asked = parse(body, CountTokensRequest).asked()
        return as_json({"input_tokens": await api.prompt_tokens(request, asked, len(body))})

    return [
        Route("/v1/messages", worded(messages, refusal), methods=["POST"]),
        Route("/v1/messages/count_tokens", worded(count, refusal), methods=["POST"]),
    ]
