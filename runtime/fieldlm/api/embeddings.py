"""OpenAI's embeddings: vectors from the hidden states of the very model that serves."""

import base64
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request

from fieldlm.api.models.keep_alive import keep_seconds
from fieldlm.api.preparation import Preparation, texts_of, tokens_of
from fieldlm.engines import Schedule, SupportsEmbeddings
from fieldlm.engines.sampling import Floats
from fieldlm.inference.generations import Serving
from fieldlm.network.json_api import ApiError

MAX_TEXTS = 256


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    input: Any
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    deadline_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    keep_alive: float | str | None = None

    @property
    def keep_s(self) -> float | None:
        return keep_seconds(self.keep_alive)

    def terms(self) -> Schedule:
        return Schedule(deadline_s=None if self.deadline_ms is None else self.deadline_ms / 1000)


@dataclass
class Wanted:
    """Whether anybody still waits for the vectors, and until when."""

    due_s: float
    has_left: bool = False

    def __call__(self) -> bool:
        return not self.has_left and time.monotonic() < self.due_s

    def leave(self) -> None:
        self.has_left = True

    def check(self) -> None:
        if self.has_left:
            raise ApiError(503, "the client left before its vectors were there", code="cancelled")
        if time.monotonic() >= self.due_s:
            raise ApiError(504, "the vectors were not there by their deadline", code="deadline_exceeded")


async def embeddings(
    request: Request, asked: EmbeddingRequest, serving: Serving, threads: Preparation
) -> dict[str, Any]:
    """Return the answer to `asked`; raises ApiError for what cannot be honoured."""
    began_s = time.monotonic()
    engine = serving.engine
    if not isinstance(engine, SupportsEmbeddings):
        what = (
            f"a bundle for the {serving.bundle.manifest.engine} engine gives no vectors; serve a GGUF bundle for them"
        )
        raise ApiError(400, what, param="model", code="unsupported")
    limit_s = asked.terms().deadline_s
    wanted = Wanted(began_s + (math.inf if limit_s is None else limit_s))

    async def run(job: Callable[[], Any]) -> Any:
        return await threads.run(request, job, leave=wanted.leave)

    texts: list[list[int]] = await run(lambda: _tokens(asked.input, serving))
    vectors: list[Floats] = []
    for tokens in texts:
        wanted.check()
        vectors.append(await run(lambda tokens=tokens: engine.embed(tokens, adapter=serving.adapter, is_wanted=wanted)))
        wanted.check()
    if asked.dimensions not in (None, len(vectors[0])):
        what = f"dimensions is {asked.dimensions}; this model's vectors have {len(vectors[0])}"
        raise ApiError(400, what, param="dimensions", code="invalid_value")
    spell = _base64 if asked.encoding_format == "base64" else Floats.tolist
    count = sum(map(len, texts))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": spell(v)} for i, v in enumerate(vectors)],
        "model": serving.called,
        "usage": {"prompt_tokens": count, "total_tokens": count},
        "fieldlm": {
            "generation": serving.bundle.generation,
            "timings": {"total_ms": round(1000 * (time.monotonic() - began_s), 3)},
        },
    }


def _tokens(given: Any, serving: Serving) -> list[list[int]]:
    engine = serving.engine
    found = [tokens_of(engine, text, param="input") for text in texts_of(engine, given, param="input", most=MAX_TEXTS)]
    if [] in found:
        what = f"input[{found.index([])}] has no tokens"
        raise ApiError(400, what, param="input", code="invalid_value")
    return found


def _base64(vector: Floats) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
