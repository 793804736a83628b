"""The HTTP surface: OpenAI's endpoints over whatever generation is live.

Nothing here computes: an answer's chunks come from the engine's thread into the event loop, and go out. A client that
leaves cancels its answer, whether it streams, waits or is still queued. No prompt and no answer is ever logged.
"""

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from fieldlm.formats.errors import FieldlmError
from fieldlm.runtime import openai
from fieldlm.runtime.auth import Gate, Keys
from fieldlm.runtime.engines import Chunk, Generation
from fieldlm.runtime.live import Live, Serving, canary
from fieldlm.runtime.openai import ApiError, Exchange, Feedback, Shape
from fieldlm.runtime.panel import Panel
from fieldlm.runtime.replies import as_event, as_json, read_body, refusal
from fieldlm.runtime.template import opening, render
from fieldlm.runtime.watch import Pulse

MAX_WAITING = 64  # requests beside those that run; a longer queue only makes answers late
RETRY_AFTER_S = 2
LONG_TEXT = 8192  # characters; tokenising more than this is not done in the event loop

Ready = Callable[[], str | None]
"""Says why the server cannot answer yet, or None."""


def make_app(
    live: Live,
    on_exchange: Callable[[Exchange], None],
    *,
    ready: Ready,
    on_feedback: Callable[[Feedback], bool] = lambda _: False,
    extra_routes: Sequence[BaseRoute] = (),
    keys: Keys | None = None,
    any_name: bool = False,
    pulse: Pulse | None = None,
) -> Starlette:
    """Make the application.

    With `keys`, all but the page, /health and /ready asks for one; without, `any_name` answers foreign pages, too.
    `pulse` sees every answer.
    `on_exchange` gets every answered, failed or cancelled request before its last byte is sent, in the event loop, and
    must not block; `on_feedback` returns False for an answer it does not know.
    """
    panel = Panel(live, ready)

    def ended(exchange: Exchange) -> None:
        panel.metrics.exchange(exchange)
        on_exchange(exchange)

    api = _Api(live, ended, on_feedback, ready, pulse or Pulse())
    panel.count_inside(lambda: api.inside)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.complete, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{model:path}", api.model),
        Route("/v1/feedback", api.feedback, methods=["POST"]),
        Route("/health", api.health),
        Route("/ready", api.ready),
        *panel.routes(),
    ]
    handlers: dict[Any, Any] = {ApiError: refusal, FieldlmError: refusal, HTTPException: refusal, 500: refusal}
    gate = Middleware(Gate, keys=keys, any_name=any_name, on_status=panel.metrics.status)
    return Starlette(routes=[*routes, *extra_routes], exception_handlers=handlers, middleware=[gate])


def warm(live: Live) -> Ready:
    """Ask `live` for one token in the background; the system prompt is in memory afterwards."""
    state: list[str | None] = ["the first answer is not there yet"]

    def ask() -> None:
        try:
            with live.lease() as serving:
                canary(serving)
            state[0] = None
        except FieldlmError as error:
            state[0] = str(error)

    threading.Thread(target=ask, name="canary", daemon=True).start()
    return lambda: state[0]


class _Turn:
    """One request while it is answered: its chunks in the event loop, and the exchange they add up to."""

    def __init__(self, exchange: Exchange, generation: Generation) -> None:
        self.exchange = exchange
        self.generation = generation
        self._asked_s = time.monotonic()
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        generation.subscribe(self._receive)

    def _receive(self, chunk: Chunk) -> None:
        try:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        except RuntimeError:  # the loop is closed: the server has stopped
            self.generation.cancel()

    async def read(self) -> Chunk:
        """Return all that has come since the last call, as one chunk; the last one has an outcome."""
        chunks = [await self._chunks.get()]
        while not self._chunks.empty():
            chunks.append(self._chunks.get_nowait())
        text = "".join(chunk.text for chunk in chunks)
        exchange, last = self.exchange, chunks[-1]
        if exchange.ttft_s is None and any(chunk.tokens for chunk in chunks):
            exchange.ttft_s = time.monotonic() - self._asked_s
        exchange.answer += text
        if last.outcome is not None:
            exchange.outcome = last.outcome
            exchange.timings = self.generation.timings
            exchange.duration_s = time.monotonic() - self._asked_s
        return Chunk(text=text, tokens=(), outcome=last.outcome, error=last.error)

    async def read_all(self) -> Chunk:
        while (chunk := await self.read()).outcome is None:
            pass
        return chunk

    @asynccontextmanager
    async def cancelled_on_leave(self, receive: Receive) -> AsyncGenerator[None]:
        """Cancel the answer when the client leaves, or when this block ends before the answer does."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.generation.cancel()

        watcher = asyncio.create_task(watch(), name=f"watch[{self.exchange.id}]")
        try:
            yield
        finally:
            self.generation.cancel()
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher


class _EventStream:
    """An answer as server-sent events. Holds what the answer needs until the last event is out."""

    def __init__(self, turn: _Turn, shape: Shape, *, wants_usage: bool, finish: Callable[[], None]) -> None:
        self._turn = turn
        self._shape = shape
        self._wants_usage = wants_usage
        self._finish = finish
        self._needs = ExitStack()

    def keep(self, needs: ExitStack) -> "_EventStream":
        self._needs = needs.pop_all()
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        with self._needs:
            async with self._turn.cancelled_on_leave(receive):
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                async for event in self._events():
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes]:
        shape, exchange = self._shape, self._turn.exchange
        head = shape.head(exchange, shape.chunk_object)
        if shape.is_chat:
            yield as_event({**head, "choices": [shape.opening]})
        while (chunk := await self._turn.read()).outcome is None:
            if chunk.text:
                yield as_event({**head, "choices": [shape.delta(chunk.text)]})
        self._finish()
        if error := _failure(chunk):
            yield as_event(error.document())
            return
        if chunk.text:
            yield as_event({**head, "choices": [shape.delta(chunk.text)]})
        last = {**head, "choices": [shape.delta("", chunk.outcome)], "fieldlm": openai.own_fields(exchange)}
        yield as_event(last)
        if self._wants_usage:
            yield as_event({**head, "choices": [], "usage": openai.usage(exchange.timings)})
        yield b"data: [DONE]\n\n"


class _Api:
    """The endpoints, and how many requests are inside."""

    def __init__(
        self,
        live: Live,
        on_exchange: Callable[[Exchange], None],
        on_feedback: Callable[[Feedback], bool],
        ready: Ready,
        pulse: Pulse,
    ) -> None:
        self._live = live
        self._pulse = pulse
        self._on_exchange = on_exchange
        self._on_feedback = on_feedback
        self._ready = ready
        self.inside = 0
        self._started_wall_s = int(time.time())

    async def chat(self, request: Request) -> Any:
        asked = openai.parse(await read_body(request), openai.ChatRequest)
        asked.refuse()
        messages = asked.conversation()
        with ExitStack() as needs:
            serving = self._admit(needs, asked)
            prompt = await _prompt(serving, render(serving.bundle, messages), param="messages")
            return await self._answer(request, needs, _Job(serving, asked, openai.CHAT, messages, prompt))

    async def complete(self, request: Request) -> Any:
        asked = openai.parse(await read_body(request), openai.CompletionRequest)
        asked.refuse()
        messages = [{"role": "user", "content": asked.prompt}]
        with ExitStack() as needs:
            serving = self._admit(needs, asked)
            prompt = await _prompt(serving, opening(serving.bundle) + asked.prompt, param="prompt")
            return await self._answer(request, needs, _Job(serving, asked, openai.COMPLETION, messages, prompt))

    def _admit(self, needs: ExitStack, asked: openai.Request) -> Serving:
        """Return the generation that answers, held by `needs`; raises ApiError when the queue is full."""
        needs.enter_context(self._room())
        serving = needs.enter_context(self._live.lease())
        known = (serving.bundle.manifest.model.name, serving.bundle.generation)
        if asked.model and asked.model not in known:
            raise ApiError(
                404, f"the model {asked.model!r} is not here; {known[0]!r} is", param="model", code="model_not_found"
            )
        return serving

    @contextmanager
    def _room(self) -> Generator[None]:
        limit = self._live.parallel + MAX_WAITING
        if self.inside >= limit:
            raise ApiError(
                429, f"{limit} requests are running or waiting", code="queue_full", retry_after_s=RETRY_AFTER_S
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def _answer(self, request: Request, needs: ExitStack, job: "_Job") -> Any:
        turn = _Turn(job.exchange(), self._pulse.watch(job.start()))

        def finish() -> None:
            self._on_exchange(turn.exchange)

        if job.asked.stream:
            return _EventStream(turn, job.shape, wants_usage=job.asked.wants_usage, finish=finish).keep(needs)
        async with turn.cancelled_on_leave(request.receive):
            last = await turn.read_all()
        finish()
        if error := _failure(last):
            raise error
        return as_json(job.shape.whole(turn.exchange))

    async def models(self, _: Request) -> Response:
        return as_json({"object": "list", "data": [self._describe()]})

    async def model(self, request: Request) -> Response:
        name, found = request.path_params["model"], self._describe()
        if name not in (found["id"], found["fieldlm"]["generation"]):
            raise ApiError(404, f"the model {name!r} is not here; {found['id']!r} is", code="model_not_found")
        return as_json(found)

    def _describe(self) -> dict[str, Any]:
        with self._live.lease() as serving:
            manifest = serving.bundle.manifest
            own = {
                "generation": serving.bundle.generation,
                "engine": manifest.engine,
                "quant": manifest.recipe.quant,
                "context": serving.engine.context,
                "parallel": self._live.parallel,
                "adapter": serving.adapter is not None,
                "licence": manifest.model.licence,
                "memory_mb": {name: round(size, 1) for name, size in serving.engine.memory_mb().items()},
                "requests": self.inside,
            }
        name, created = manifest.model.name, self._started_wall_s
        return {"id": name, "object": "model", "created": created, "owned_by": "fieldlm", "fieldlm": own}

    async def feedback(self, request: Request) -> Response:
        given = openai.parse(await read_body(request), Feedback)
        if not self._on_feedback(given):
            raise ApiError(404, f"no answer {given.id!r} is remembered here", param="id", code="unknown_id")
        return as_json({"id": given.id, "object": "feedback"})

    async def health(self, _: Request) -> Response:
        return as_json({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        reason = self._ready()
        document = {"status": "ready" if reason is None else reason, "generation": self._live.current.bundle.generation}
        return as_json(document, status=200 if reason is None else 503)


@dataclass(frozen=True)
class _Job:
    """What was asked, of which generation, as which tokens."""

    serving: Serving
    asked: openai.ChatRequest | openai.CompletionRequest
    shape: Shape
    messages: list[dict[str, Any]]
    prompt: list[int]

    def start(self) -> Generation:
        return self.serving.engine.start(self.prompt, self.asked.wanted(), adapter=self.serving.adapter)

    def exchange(self) -> Exchange:
        return Exchange(
            # Unique among what one device remembers; half of a UUID is half of a record's bytes on the wire.
            id=self.shape.prefix + secrets.token_hex(8),
            generation=self.serving.bundle.generation,
            model=self.serving.bundle.manifest.model.name,
            messages=self.messages,
            started_wall_s=time.time(),
            session=self.asked.label("session"),
            consent=self.asked.label("consent"),
            route=self.asked.label("route"),
        )


async def _prompt(serving: Serving, text: str, *, param: str) -> list[int]:
    """Return the tokens of `text`; raises ApiError when they leave no room for an answer."""
    engine = serving.engine
    tokens = await asyncio.to_thread(engine.tokenize, text) if len(text) > LONG_TEXT else engine.tokenize(text)
    if len(tokens) >= engine.context:
        raise ApiError(
            400,
            f"the prompt has {len(tokens)} tokens; the context of {engine.context} holds it and the answer",
            param=param,
            code="context_length_exceeded",
        )
    return tokens


def _failure(last: Chunk) -> ApiError | None:
    if last.outcome == "error":
        return ApiError(500, last.error or "the engine failed", code="engine_error")
    if last.outcome == "cancelled":
        return ApiError(503, "the answer was cancelled", code="cancelled")
    return None
