"""Ollama's API beside OpenAI's: chat, generate, embed, and what is served, for clients that speak nothing else.

Models come to a device by signed updates and not by a client's word: pulling, creating and deleting are refused.
"""

import time
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fieldlm.api.chat_request import CompletionParams, parse
from fieldlm.api.completion_request import CompletionRequest
from fieldlm.api.embeddings import EmbeddingRequest
from fieldlm.api.models.listing import ModelList, memory_mb
from fieldlm.api.ollama.requests import OllamaChat, OllamaEmbed, OllamaGenerate, OllamaName
from fieldlm.api.ollama.responses import Document, OllamaVoice, refusal, stamp
from fieldlm.api.response_stream import AnswerFormat
from fieldlm.formats.bundle import MANIFEST
from fieldlm.inference.chat_template import thought_marks
from fieldlm.inference.generations import Serving
from fieldlm.inference.model_pool import LATEST
from fieldlm.network.json_api import ApiError, as_json, read_body, worded

VERSION = "0.12.0"
"""Clients ask for the least version that has what they need: the API is spoken here as it was in this one."""
FOREVER = "2100-01-01T00:00:00Z"
"""When a model that stays is unloaded."""


class ApiEndpoints(Protocol):
    """The endpoints that Ollama's are told in the words of."""

    async def converse(self, request: Request, asked: CompletionParams, voice: AnswerFormat, size: int) -> Any: ...

    async def completed(self, request: Request, asked: CompletionRequest, voice: AnswerFormat | None = None) -> Any: ...

    async def vectors(self, request: Request, asked: EmbeddingRequest) -> Document: ...

    async def held(self, request: Request, model: str, keep_s: float | None) -> bool: ...


class Ollama:
    """Ollama's endpoints over `answers`."""

    def __init__(self, answers: ApiEndpoints, listed: ModelList) -> None:
        self._answers = answers
        self._listed = listed

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/api/chat", worded(self._chat, refusal), methods=["POST"]),
            Route("/api/generate", worded(self._generate, refusal), methods=["POST"]),
            Route("/api/embed", worded(self._embed, refusal), methods=["POST"]),
            Route("/api/embeddings", worded(self._embed_one, refusal), methods=["POST"]),
            Route("/api/show", worded(self._show, refusal), methods=["POST"]),
            Route("/api/tags", worded(self._tags, refusal)),
            Route("/api/ps", worded(self._ps, refusal)),
            Route("/api/version", worded(self._version, refusal)),
            Route("/api/pull", worded(_withheld, refusal), methods=["POST"]),
            Route("/api/push", worded(_withheld, refusal), methods=["POST"]),
            Route("/api/create", worded(_withheld, refusal), methods=["POST"]),
            Route("/api/copy", worded(_withheld, refusal), methods=["POST"]),
            Route("/api/delete", worded(_withheld, refusal), methods=["DELETE"]),
            Route("/api/blobs/{digest}", worded(_withheld, refusal), methods=["POST", "HEAD"]),
        ]

    async def _chat(self, request: Request) -> Any:
        body = await read_body(request)
        return await self._answer(request, parse(body, OllamaChat), len(body))

    async def _generate(self, request: Request) -> Any:
        body = await read_body(request)
        return await self._answer(request, parse(body, OllamaGenerate), len(body))

    async def _answer(self, request: Request, asked: OllamaChat | OllamaGenerate, size: int) -> Any:
        voice = OllamaVoice(asked.model, is_chat=isinstance(asked, OllamaChat))
        if asked.is_empty:
            is_leaving = await self._answers.held(request, asked.name, asked.keep_s)
            return as_json(voice.held(is_leaving=is_leaving))
        if isinstance(asked, OllamaGenerate) and asked.raw:
            return await self._answers.completed(request, asked.asked_raw(), voice)
        return await self._answers.converse(request, asked.asked(), voice, size)

    async def _embed(self, request: Request) -> Response:
        asked = parse(await read_body(request), OllamaEmbed)
        found = await self._vectors(request, asked, asked.input)
        spent_ns = int(found["fieldlm"]["timings"]["total_ms"] * 1e6)
        return as_json(
            {
                "model": asked.model,
                "embeddings": [row["embedding"] for row in found["data"]],
                "total_duration": spent_ns,
                "load_duration": 0,
                "prompt_eval_count": found["usage"]["prompt_tokens"],
            }
        )

    async def _embed_one(self, request: Request) -> Response:
        asked = parse(await read_body(request), OllamaEmbed)
        found = await self._vectors(request, asked, asked.prompt)
        return as_json({"embedding": found["data"][0]["embedding"]})

    async def _vectors(self, request: Request, asked: OllamaEmbed, texts: str | list[str] | None) -> Document:
        return await self._answers.vectors(
            request,
            EmbeddingRequest(input=texts, model=asked.name, dimensions=asked.dimensions, keep_alive=asked.keep_alive),
        )

    async def _tags(self, _: Request) -> Response:
        return as_json({"models": [_described(serving) for serving, _ in self._listed.served()]})

    async def _ps(self, _: Request) -> Response:
        awake = [(serving, model) for serving, model in self._listed.served() if model.is_awake]
        rows = [_running(serving, self._listed.expires_s(model)) for serving, model in awake]
        return as_json({"models": rows})

    async def _show(self, request: Request) -> Response:
        serving, _ = await self._listed.named(parse(await read_body(request), OllamaName).named)
        manifest, template = serving.bundle.manifest, serving.bundle.path("template")
        family = manifest.model.architecture
        return as_json(
            {
                "license": manifest.model.licence,
                "modelfile": "",
                "parameters": "",
                "template": template.read_text(encoding="utf-8") if template else "",
                "system": manifest.system_prompt or "",
                "details": _details(serving),
                "model_info": {
                    "general.architecture": family,
                    "general.parameter_count": manifest.model.parameters,
                    f"{family}.context_length": serving.engine.context,
                },
                "capabilities": ["completion", "tools", *(["thinking"] if thought_marks(serving.bundle) else [])],
                "modified_at": _described(serving)["modified_at"],
            }
        )

    async def _version(self, _: Request) -> Response:
        return as_json({"version": VERSION})


async def _withheld(_: Request) -> Response:
    what = "models come to this device by signed updates (fieldlm publish), or when it is started (fieldlm serve MODEL)"
    raise ApiError(400, what, code="unsupported")


def _described(serving: Serving) -> Document:
    bundle, name = serving.bundle, serving.called
    tagged = name if ":" in name else name + LATEST
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": stamp((bundle.folder / MANIFEST).stat().st_mtime),
        "size": sum(file.size for file in bundle.manifest.files),
        "digest": bundle.id,
        "details": _details(serving),
    }


def _running(serving: Serving, expires_s: float | None) -> Document:
    return _described(serving) | {
        "expires_at": FOREVER if expires_s is None else stamp(time.time() + expires_s),
        "size": round(1e6 * sum(memory_mb(serving).values())),
        "size_vram": 0,
        "context_length": serving.engine.context,
    }


def _details(serving: Serving) -> Document:
    manifest = serving.bundle.manifest
    base = manifest.file("base")
    family = manifest.model.architecture
    return {
        "parent_model": "",
        "format": base.path.rpartition(".")[2] if base else manifest.engine,
        "family": family,
        "families": [family],
        "parameter_size": f"{manifest.model.parameters / 1e6:.0f}M",
        "quantization_level": manifest.recipe.quant,
    }
