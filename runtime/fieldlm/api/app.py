"""The ASGI application: OpenAI's endpoints over whatever generation is live.

Nothing here computes: an answer's chunks come from the engine's thread into the event loop, and go out. A client that
leaves cancels its answer, whether it streams, waits or is still queued. No prompt and no answer is ever logged.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fieldlm.api import chat_request
from fieldlm.api.anthropic import endpoints as anthropic
from fieldlm.api.chat_format import Choices
from fieldlm.api.chat_request import Exchange, Feedback
from fieldlm.api.choices import CHAT, CHAT_WITH_FUNCTIONS, COMPLETION, Prompt
from fieldlm.api.completion_request import CompletionRequest, answer_of_nothing
from fieldlm.api.dashboard import Leaves, Panel
from fieldlm.api.embeddings import EmbeddingRequest, embeddings
from fieldlm.api.ollama.endpoints import Ollama
from fieldlm.api.output_contract import OutputContract, needs_compiling, output_contract
from fieldlm.api.preparation import LONG_TEXT, Preparation, tokens_of
from fieldlm.api.prompt_scores import PromptScores
from fieldlm.api.response_stream import AnswerFormat, EventStream, ResponseStream, whole
from fieldlm.api.responses_format import ResponseVoice
from fieldlm.api.responses_request import ResponsesRequest
from fieldlm.api.tools import Toolbox
from fieldlm.core.errors import ConflictError, FieldlmError, InputError, NotFoundError
from fieldlm.engines import RunningAnswer, Schedule
from fieldlm.formats.response_ids import ResponseIds
from fieldlm.inference.adapters import Shelf, name_of
from fieldlm.inference.chat_template import as_served, render
from fieldlm.inference.engine_watchdog import ProgressMonitor
from fieldlm.inference.generations import Generations, Serving
from fieldlm.inference.warmup import UnreadyReason
from fieldlm.network.auth import AuthMiddleware, Keys
from fieldlm.network.cors import AllowedOrigins
from fieldlm.network.json_api import ApiError, as_json, error_response, read_body

MAX_WAITING = 64  # requests beside those that run; a longer queue only makes answers late
RETRY_AFTER_S = 2
HELD_LOOK_S = 0.02


def make_app(
    live: Generations,
    on_exchange: Callable[[Exchange], None],
    *,
    ready: UnreadyReason,
    on_feedback: Callable[[Feedback], bool] = lambda _: False,
    extra_routes: Sequence[BaseRoute] = (),
    keys: Keys | None = None,
    names: frozenset[str] | None = frozenset(),
    origins: Collection[str] = (),
    pulse: ProgressMonitor | None = None,
    shelf: Shelf | None = None,
    ids: ResponseIds | None = None,
    crashes: Callable[[], Mapping[str, int]] = dict,
    leaves: Callable[[], Leaves] | None = None,
) -> Starlette:
    """Make the application.

    With `keys`, all but the page, /health and /ready asks for one; without, `names` are answered to beside the
    machine's own; None answers all names, and foreign pages, too. Pages of `origins` may use the API from elsewhere.
    `pulse` sees every answer. `shelf` has the adapters that requests may choose; `ids` names
    the answers; `crashes` counts those of background tasks, by name; `leaves` says what leaves the
    device, for the page: without it, nothing.
    `on_exchange` gets every answered, failed or cancelled request before its last byte is sent, in the event loop, and
    must not block; `on_feedback`, in a thread of its own, returns False for an answer it does not know.
    """
    panel = Panel(live, ready, crashes, leaves)

    def ended(exchange: Exchange) -> None:
        panel.metrics.exchange(exchange)
        on_exchange(exchange)

    watched = pulse or ProgressMonitor()
    named = ids or ResponseIds()
    api = _Api(live, on_exchange=ended, on_feedback=on_feedback, ready=ready, pulse=watched, shelf=shelf, ids=named)
    panel.count_inside(lambda: api.inside)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.complete, methods=["POST"]),
        Route("/v1/responses", api.respond, methods=["POST"]),
        Route("/v1/responses/{rest:path}", api.stored, methods=["GET", "POST", "DELETE"]),
        Route("/v1/embeddings", api.embed, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{model:path}", api.model),
        Route("/v1/adapters", api.load_adapter, methods=["POST"]),
        Route("/v1/adapters/{name}", api.drop_adapter, methods=["DELETE"]),
        Route("/v1/feedback", api.feedback, methods=["POST"]),
        Route("/health", api.health),
        Route("/ready", api.ready),
        *(*Ollama(api).routes(), *anthropic.routes(api), *panel.routes()),
    ]
    handlers: dict[Any, Any] = {
        ApiError: error_response,
        FieldlmError: error_response,
        HTTPException: error_response,
        500: error_response,
    }
    allowed, count = AllowedOrigins(origins), panel.metrics.status
    gate = Middleware(AuthMiddleware, keys=keys, names=names, on_status=count, origins=allowed)
    return Starlette(routes=[*routes, *extra_routes], exception_handlers=handlers, middleware=[gate])


class _Api:
    """The endpoints, and how many requests are inside."""

    def __init__(
        self,
        live: Generations,
        *,
        on_exchange: Callable[[Exchange], None],
        on_feedback: Callable[[Feedback], bool],
        ready: UnreadyReason,
        pulse: ProgressMonitor,
        shelf: Shelf | None,
        ids: ResponseIds,
    ) -> None:
        self._live = live
        self._ids = ids
        self._shelf = shelf
        self._pulse = pulse
        self._on_exchange = on_exchange
        self._on_feedback = on_feedback
        self._ready = ready
        self.inside = 0
        self._texts, self._forms, self._vectors = map(Preparation, ("texts", "forms", "vectors"))
        self._scores = PromptScores(pulse)
        self._started_wall_s = int(time.time())

    async def chat(self, request: Request) -> Any:
        body = await read_body(request)
        asked = chat_request.parse(body, chat_request.ChatRequest)
        voice = Choices(CHAT_WITH_FUNCTIONS if asked.is_old else CHAT, wants_usage=asked.wants_usage)
        return await self.converse(request, asked, voice, len(body))

    async def respond(self, request: Request) -> Any:
        body = await read_body(request)
        asked = chat_request.parse(body, ResponsesRequest)
        return await self.converse(request, asked, ResponseVoice(asked), len(body))

    async def complete(self, request: Request) -> Any:
        return await self.completed(request, chat_request.parse(await read_body(request), CompletionRequest))

    async def completed(self, request: Request, asked: CompletionRequest, voice: AnswerFormat | None = None) -> Any:
        """Go on with prompts; spoken by `voice`, by OpenAI's choices else."""
        came_s = time.monotonic()
        asked.refuse()
        with ExitStack() as needs:
            serving = await self._admit(needs, asked.model, asked.terms())
            promised = await self._promise(request, serving, asked, None)
            prompts = await self._prompts(request, serving, asked)
            if asked.scores_prompts:
                prompts = await self._scores.of(prompts, request, serving, asked, came_s)
            messages = [{"role": "user", "content": prompts[0].text}]
            plain = Choices(COMPLETION, wants_usage=asked.wants_usage, prompts=prompts, echo=bool(asked.echo))
            tokens = [prompt.tokens for prompt in prompts]
            job = _Job(serving, asked, voice or plain, messages, tokens, None, promised, came_s)
            return await self._answer(request, needs, job)

    async def _prompts(self, request: Request, serving: Serving, asked: CompletionRequest) -> list[Prompt]:
        def make() -> list[Prompt]:
            return asked.prompts(serving)

        return await self._texts.run(request, make) if asked.is_long else make()

    async def converse(
        self, request: Request, asked: chat_request.CompletionParams, voice: AnswerFormat, size: int
    ) -> Any:
        """Answer a conversation of `size` bytes, whichever API it came by."""
        came_s = time.monotonic()
        asked.refuse()
        toolbox = asked.toolbox()
        messages = asked.conversation_so_far()
        tools = toolbox.plain if toolbox else None
        with ExitStack() as needs:
            serving = await self._admit(needs, asked.model, asked.terms())
            promised = await self._promise(request, serving, asked, toolbox)

            def text() -> str:
                return render(serving.bundle, messages, tools=tools)

            prompt, drafted = await self._tokens(request, serving, asked, text, size, param="messages")
            job = _Job(serving, asked, voice, messages, [prompt], drafted, promised, came_s)
            return await self._answer(request, needs, job)

    async def _promise(
        self, request: Request, serving: Serving, asked: chat_request.CompletionParams, toolbox: Toolbox | None
    ) -> OutputContract:
        def make() -> OutputContract:
            return output_contract(serving.engine, asked, toolbox)

        return await self._forms.run(request, make) if needs_compiling(asked, toolbox) else make()

    async def _tokens(
        self,
        request: Request,
        serving: Serving,
        asked: chat_request.CompletionParams,
        text: Callable[[], str],
        size: int,
        *,
        param: str,
    ) -> tuple[list[int], tuple[int, ...] | None]:
        """Return the tokens of the prompt `text()`, which has about `size` characters, and those that are predicted."""
        engine, predicted = serving.engine, asked.predicted()

        def make() -> tuple[list[int], tuple[int, ...] | None]:
            tokens = tokens_of(engine, text(), param=param, room=1)
            return tokens, None if predicted is None else tuple(tokens_of(engine, predicted, param="prediction"))

        return await self._texts.run(request, make) if size + len(predicted or "") > LONG_TEXT else make()

    async def stored(self, request: Request) -> Response:
        what = "responses are not stored on this device; keep what POST /v1/responses returned"
        raise ApiError(400, what, param="response_id", code="unsupported")

    async def embed(self, request: Request) -> Response:
        return as_json(await self.vectors(request, chat_request.parse(await read_body(request), EmbeddingRequest)))

    async def vectors(self, request: Request, asked: EmbeddingRequest) -> dict[str, Any]:
        with ExitStack() as needs:
            serving = await self._admit(needs, asked.model, asked.terms())
            return await embeddings(request, asked, serving, self._vectors)

    async def _admit(self, needs: ExitStack, model: str | None, terms: Schedule) -> Serving:
        """Return the generation that answers, held by `needs`; raises ApiError when the queue is full."""
        needs.enter_context(self._room())
        serving = await self._serving(needs, terms)
        return await self._named(serving, model) if model else serving

    async def _named(self, serving: Serving, model: str) -> Serving:
        """Return the generation that `model` names: the one that answers, or an adapter beside it."""
        known = (serving.bundle.manifest.model.name, serving.bundle.generation)
        if model in known:
            return serving
        base, colon, adapter = model.rpartition(":")
        if colon and base in known and self._shelf is not None:
            with _adapter_errors("model"):
                return await asyncio.to_thread(self._shelf.find, serving, adapter)
        raise ApiError(404, f"the model {model!r} is not here; {known[0]!r} is", param="model", code="model_not_found")

    async def _serving(self, needs: ExitStack, terms: Schedule) -> Serving:
        """Wait while one generation takes another's place, but not beyond what the request allows."""
        limits_s = (terms.deadline_s, terms.max_queue_s)
        end_s = time.monotonic() + min((limit for limit in limits_s if limit is not None), default=math.inf)
        while (leased := self._live.try_lease()) is None:
            if time.monotonic() > end_s:
                message = "a generation is being replaced, and this request does not wait so long"
                raise ApiError(503, message, code="replacing", retry_after_s=RETRY_AFTER_S)
            await asyncio.sleep(HELD_LOOK_S)
        serving, give_back = leased
        needs.callback(give_back)
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
        turn = ResponseStream(
            job.exchange(self._ids),
            [self._pulse.watch(generation) for generation in job.start()],
            job.promise,
            prompts=len(job.prompts),
        )

        def finish() -> None:
            self._on_exchange(turn.exchange)

        if job.asked.stream:
            return EventStream(turn, job.voice, finish=finish).keep(needs)
        async with turn.cancelled_on_leave(request.scope, request.receive):
            await turn.read_all()
        finish()
        return whole(turn, job.voice)

    def served(self) -> list[Serving]:
        """Return what can be asked for by name: the generation that answers, and the adapters beside it."""
        with self._live.lease() as serving:
            return [serving, *(self._shelf.all() if self._shelf is not None else [])]

    async def named(self, model: str) -> Serving:
        """Return what `model` names; raises ApiError 404 when that is not here."""
        with self._live.lease() as serving:
            return await self._named(serving, model)

    async def models(self, _: Request) -> Response:
        return as_json({"object": "list", "data": [self._describe(one) for one in self.served()]})

    async def model(self, request: Request) -> Response:
        return as_json(self._describe(await self.named(request.path_params["model"])))

    async def load_adapter(self, request: Request) -> Response:
        asked = chat_request.parse(await read_body(request), AdapterRequest)
        with _adapter_errors("name"):
            chosen = await asyncio.to_thread(self._adapters().load, asked.name)
        return as_json(self._describe(chosen))

    async def drop_adapter(self, request: Request) -> Response:
        name = request.path_params["name"]
        with _adapter_errors("name"):
            await asyncio.to_thread(self._adapters().drop, name)
        return as_json({"id": name, "object": "adapter", "deleted": True})

    def _adapters(self) -> Shelf:
        if self._shelf is None:
            raise ApiError(404, "this server has no folder of adapters", code="not_found")
        return self._shelf

    def _describe(self, serving: Serving) -> dict[str, Any]:
        manifest = serving.bundle.manifest
        own = {
            "generation": serving.bundle.generation,
            "engine": manifest.engine,
            "quant": manifest.recipe.quant,
            "context": serving.engine.context,
            "parallel": self._live.parallel,
            "adapter": serving.adapter is not None,
            "licence": manifest.model.licence,
            "proved": manifest.is_proved,
            "memory_mb": {name: round(size, 1) for name, size in serving.engine.memory_mb().items()},
            "requests": self.inside,
        }
        name, created = name_of(serving), self._started_wall_s
        return {"id": name, "object": "model", "created": created, "owned_by": "fieldlm", "fieldlm": own}

    async def feedback(self, request: Request) -> Response:
        given = chat_request.parse(await read_body(request), Feedback)
        _ = given.text
        # What was answered before a restart is on the disk, and that may hang.
        if not await asyncio.to_thread(self._on_feedback, given):
            raise ApiError(404, f"no answer {given.id!r} is remembered here", param="id", code="unknown_id")
        return as_json({"id": given.id, "object": "feedback"})

    async def health(self, _: Request) -> Response:
        return as_json({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        reason = self._ready()
        document = {"status": "ready" if reason is None else reason, "generation": self._live.current.bundle.generation}
        return as_json(document, status=200 if reason is None else 503)


class AdapterRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/adapters: load the bundle in the folder of that name."""

    name: str


@contextmanager
def _adapter_errors(param: str) -> Generator[None]:
    """Say in OpenAI's shape what is wrong with the adapter that `param` names."""
    try:
        yield
    except NotFoundError as error:
        raise ApiError(404, str(error), param=param, code="model_not_found") from error
    except ConflictError as error:
        raise ApiError(409, str(error), param=param, code="invalid_value") from error
    except InputError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from error


@dataclass(frozen=True)
class _Job:
    """What was asked, of which generation, as which tokens."""

    serving: Serving
    asked: chat_request.CompletionParams
    voice: AnswerFormat
    messages: list[dict[str, Any]]
    prompts: list[list[int]]
    prediction: tuple[int, ...] | None
    promise: OutputContract
    came_s: float
    """When the request came: its time runs from there, and not from when its form was compiled."""

    def start(self) -> list[RunningAnswer]:
        """Start every answer that was asked for; what is the same in them is computed once."""
        started: list[RunningAnswer] = []
        try:
            for prompt in self.prompts:
                started.extend(self._start(prompt, index) for index in range(self.asked.n or 1))
        except BaseException:
            for generation in started:
                generation.cancel()
            raise
        return started

    def _start(self, prompt: list[int], index: int) -> RunningAnswer:
        sampling = replace(self.asked.wanted(self.promise.rule, index), prediction=self.prediction)
        if not sampling.max_tokens:
            return answer_of_nothing(prompt)
        adapter, terms = self.serving.adapter, self.asked.terms(time.monotonic() - self.came_s)
        return self.serving.engine.start(prompt, sampling, adapter=adapter, terms=terms)

    def _context(self) -> dict[str, Any]:
        """Return what `render` put into the prompt beside the messages."""
        if isinstance(self.asked, CompletionRequest):
            return {"raw": True}
        system, toolbox = self.serving.bundle.manifest.system_prompt, self.asked.toolbox()
        has_own = len(as_served(self.messages, system)) > len(self.messages)
        return ({"system": system} if has_own else {}) | ({"tools": toolbox.plain} if toolbox else {})

    def exchange(self, ids: ResponseIds) -> Exchange:
        return Exchange(
            id=ids.next(self.voice.prefix),
            generation=self.serving.bundle.generation,
            model=name_of(self.serving),
            messages=self.messages,
            context=self._context(),
            started_wall_s=time.time(),
            session=self.asked.label("session"),
            consent=self.asked.label("consent"),
            route=self.asked.label("route"),
        )
