"""The ASGI application: OpenAI's endpoints over whatever generation is live.

Nothing here computes: an answer's chunks come from the engine's thread into the event loop, and go out. A client that
leaves cancels its answer, whether it streams, waits or is still queued. No prompt and no answer is ever logged.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fieldlm.api import chat_request
from fieldlm.api.adapters import adapter_routes
from fieldlm.api.anthropic import endpoints as anthropic
from fieldlm.api.chat_format import Choices
from fieldlm.api.chat_request import Exchange, Feedback
from fieldlm.api.choices import CHAT, CHAT_WITH_FUNCTIONS, COMPLETION, Prompt
from fieldlm.api.classified.closed_request import closed_request
from fieldlm.api.completion_request import CompletionRequest
from fieldlm.api.dashboard import Leaves, Panel
from fieldlm.api.embeddings import EmbeddingRequest, embeddings
from fieldlm.api.job import Job, note_confidence
from fieldlm.api.models.admission import Admission
from fieldlm.api.models.listing import ModelList
from fieldlm.api.ollama.endpoints import Ollama
from fieldlm.api.output_contract import FORM_S, OutputContract, needs_compiling, output_contract
from fieldlm.api.preparation import LONG_TEXT, Preparation, tokens_of
from fieldlm.api.prompt_scores import PromptScores
from fieldlm.api.response_stream import AnswerFormat, EventStream, ResponseStream, whole
from fieldlm.api.responses_format import ResponseVoice
from fieldlm.api.responses_request import InputTokensRequest, ResponsesRequest
from fieldlm.api.shadow.live_request import HearsRequests, LiveRequest
from fieldlm.api.thoughts.asked_prompt import AskedPrompt
from fieldlm.api.tokens import endpoints as tokens
from fieldlm.api.tools import Toolbox
from fieldlm.core.errors import FieldlmError
from fieldlm.engines import DEFAULT_TERMS
from fieldlm.formats.kiosk import Kiosk
from fieldlm.formats.response_ids import ResponseIds
from fieldlm.formats.router import question_of
from fieldlm.hardware.energy import EnergyMeter
from fieldlm.inference.adapters import Shelf, routed
from fieldlm.inference.engine_watchdog import ProgressMonitor
from fieldlm.inference.generations import Generations, Serving
from fieldlm.inference.model_pool import ModelPool
from fieldlm.inference.thoughts.thought_reader import without_thoughts
from fieldlm.inference.warmup import UnreadyReason
from fieldlm.network.api_keys import Keys
from fieldlm.network.auth import WHOSE, AuthMiddleware
from fieldlm.network.cors import AllowedOrigins
from fieldlm.network.json_api import ApiError, as_json, error_response, read_body

if TYPE_CHECKING:
    from fieldlm.api.large import LargeSide
    from fieldlm.escalation.policy import Escalation


def make_app(
    live: Generations | ModelPool,
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
    large: "Escalation | None" = None,
    energy: EnergyMeter | None = None,
    kiosk: Kiosk | None = None,
    shadow: HearsRequests | None = None,
) -> Starlette:
    """Make the application over one model, or several.

    With `keys`, all but the page, /health and /ready asks for one; without, `names` are answered to beside the
    machine's own; None answers all names, and foreign pages, too. Pages of `origins` may use the API from elsewhere.
    `pulse` sees every answer. `shelf` has the adapters that requests may choose; `ids` names the answers; `crashes`
    counts those of background tasks, by name; `leaves` says what leaves the device, for the page: without it, nothing.
    `large` is the large model beside the small one; `energy` measures the machine; `kiosk` makes its page a
    kiosk's; `shadow` may ask again what was answered. `on_exchange` gets every answered, failed or cancelled request
    before its last byte is sent, in the event loop, and must not block; `on_feedback`, in a thread of its own, returns
    False for an answer it does not know.
    """
    pool = live if isinstance(live, ModelPool) else ModelPool.alone(live)
    more = shadow.readings if shadow else tuple
    panel = Panel(pool, ready, crashes, leaves, large, energy=energy, kiosk=kiosk, more=more)

    def ended(exchange: Exchange) -> None:
        panel.metrics.exchange(exchange)
        on_exchange(exchange)

    watched, named = pulse or ProgressMonitor(), ids or ResponseIds()
    api = _Api(
        pool,
        on_exchange=ended,
        on_feedback=on_feedback,
        ready=ready,
        pulse=watched,
        shelf=shelf,
        ids=named,
        large=large,
        shadow=shadow,
    )
    panel.count_inside(lambda: api.admission.inside)
    handlers: dict[Any, Any] = dict.fromkeys((ApiError, FieldlmError, HTTPException, 500), error_response)
    allowed, count = AllowedOrigins(origins), panel.metrics.status
    gate = Middleware(AuthMiddleware, keys=keys, names=names, on_status=count, origins=allowed)
    return Starlette(
        routes=[*api.routes(), *adapter_routes(shelf, api.listed.described), *panel.routes(), *extra_routes],
        exception_handlers=handlers,
        middleware=[gate],
    )


class _Api:
    """The endpoints."""

    def __init__(
        self,
        pool: ModelPool,
        *,
        on_exchange: Callable[[Exchange], None],
        on_feedback: Callable[[Feedback], bool],
        ready: UnreadyReason,
        pulse: ProgressMonitor,
        shelf: Shelf | None,
        ids: ResponseIds,
        large: "Escalation | None",
        shadow: HearsRequests | None,
    ) -> None:
        self._pool = pool
        self.admission = Admission(pool, shelf, large)
        self.listed = ModelList(self.admission, shelf, large)
        self._large = large
        if large is not None:
            import_module("fieldlm.api.large")  # else the first request waits for it, and all that run beside
        self._shadow = shadow
        self._ids = ids
        self._pulse = pulse
        self._on_exchange = on_exchange
        self._on_feedback = on_feedback
        self._ready = ready
        self._texts, self._forms, self._vectors = map(Preparation, ("texts", "forms", "vectors"))
        self._scores = PromptScores(pulse)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/responses", self.respond, methods=["POST"]),
            Route("/v1/responses/input_tokens", self.input_tokens, methods=["POST"]),
            Route("/v1/responses/{rest:path}", self.stored, methods=["GET", "POST", "DELETE"]),
            Route("/v1/embeddings", self.embed, methods=["POST"]),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            *self.listed.routes(),
            *Ollama(self, self.listed).routes(),
            *anthropic.routes(self),
            *tokens.routes(self.admission, self._texts, self._refuse_large),
        ]

    async def chat(self, request: Request) -> Any:
        body = await read_body(request)
        asked = chat_request.parse(body, chat_request.ChatRequest)
        voice = Choices(CHAT_WITH_FUNCTIONS if asked.is_old else CHAT, wants_usage=asked.wants_usage)
        return await self.converse(request, asked, voice, len(body))

    async def respond(self, request: Request) -> Any:
        body = await read_body(request)
        asked = chat_request.parse(body, ResponsesRequest)
        return await self.converse(request, asked, ResponseVoice(asked), len(body))

    async def input_tokens(self, request: Request) -> Response:
        body = await read_body(request)
        asked = chat_request.parse(body, InputTokensRequest)
        count = await self.prompt_tokens(request, asked, len(body))
        return as_json({"object": "response.input_tokens", "input_tokens": count})

    async def complete(self, request: Request) -> Any:
        return await self.completed(request, chat_request.parse(await read_body(request), CompletionRequest))

    async def completed(self, request: Request, asked: CompletionRequest, voice: AnswerFormat | None = None) -> Any:
        """Go on with prompts; spoken by `voice`, by OpenAI's choices else."""
        came_s = time.monotonic()
        asked.refuse()
        asked = asked.of(request.scope.get("state", {}).get(WHOSE, ""))
        self._refuse_large(asked.model)
        with ExitStack() as needs:
            serving = await self.admission.admit(request, needs, asked.model, asked.terms(), asked.keep_s)
            promised = await self._promise(request, serving, asked, None)
            prompts = await self._prompts(request, serving, asked)
            if asked.scores_prompts:
                prompts = await self._scores.of(prompts, request, serving, asked, came_s)
            messages = [{"role": "user", "content": prompts[0].text}]
            plain = Choices(COMPLETION, wants_usage=asked.wants_usage, prompts=prompts, echo=bool(asked.echo))
            job = Job(
                serving=serving,
                asked=asked,
                voice=voice or plain,
                messages=messages,
                prompts=[prompt.tokens for prompt in prompts],
                prediction=None,
                promise=promised,
                constraint=promised.rule,
                came_s=came_s,
            )
            return await self._answer(request, needs, job)

    def _refuse_large(self, model: str | None) -> None:
        """Raise ApiError where only the large model could answer what is no conversation."""
        if self._large is None or (model and (found := self._pool.find(model)) and found is not self._pool.own):
            return
        if not self._large.has_small or (model and self._large.is_named(model)):
            what = "the large model answers conversations and nothing else: POST /v1/chat/completions"
            raise ApiError(400, what, param="model", code="unsupported")

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
        asked = asked.of(request.scope.get("state", {}).get(WHOSE, ""))
        toolbox = asked.toolbox()
        said = asked.conversation_so_far()
        messages = without_thoughts(said)  # for records, and for the large model
        with ExitStack() as needs:
            serving = await self.admission.admit(request, needs, asked.model, asked.terms(), asked.keep_s)
            serving = routed(serving, messages, task=asked.label("task") or "")
            promised = await self._promise(request, serving, asked, toolbox)
            large = self._beside(serving, asked, came_s, messages=messages, contract=promised, toolbox=toolbox)
            written = AskedPrompt.of(serving, asked, said, toolbox)
            try:
                prompt, drafted = await self._tokens(request, serving, asked, written.text, size, param="messages")
            except ApiError as error:
                # What the small model cannot hold may fit into the large one.
                if error.code != "context_length_exceeded" or large is None or large.withheld():
                    raise
                prompt, drafted = [], None
            job = Job(
                serving=serving,
                asked=asked,
                voice=voice,
                messages=messages,
                prompts=[prompt],
                prediction=drafted,
                promise=promised,
                constraint=written.held_to(promised),
                came_s=came_s,
                is_open=written.is_open,
                closed=closed_request(serving, asked, messages, toolbox, promised),
                large=large,
            )
            return await self._answer(request, needs, job)

    async def prompt_tokens(self, request: Request, asked: chat_request.CompletionParams, size: int) -> int:
        """Return how many tokens the prompt of a conversation of `size` bytes has, as an answer's usage would say."""
        asked.refuse()
        toolbox = asked.toolbox()
        with ExitStack() as needs:
            serving = await self.admission.admit(request, needs, asked.model, asked.terms(), asked.keep_s)
            written = AskedPrompt.of(serving, asked, asked.conversation_so_far(), toolbox)
            return len((await self._tokens(request, serving, asked, written.text, size, param="messages"))[0])

    def _beside(
        self,
        serving: Serving,
        asked: chat_request.CompletionParams,
        came_s: float,
        *,
        messages: list[dict[str, Any]],
        contract: OutputContract,
        toolbox: Toolbox | None,
    ) -> "LargeSide | None":
        """Return the request's way to the large model; None where there is no such model."""
        if self._large is None or not self.admission.is_own(serving):
            return None
        # What asks a large model is imported only where there is one.
        from fieldlm.api.large import LargeSide, wanted_of

        return LargeSide(
            escalation=self._large,
            wanted=wanted_of(asked, self._large, came_s, serving=serving, question=question_of(messages)),
            asked=asked,
            messages=messages,
            toolbox=toolbox,
            contract=contract,
            serving=serving,
        )

    async def _promise(
        self, request: Request, serving: Serving, asked: chat_request.CompletionParams, toolbox: Toolbox | None
    ) -> OutputContract:
        end_s = time.monotonic() + FORM_S

        def make() -> OutputContract:
            return output_contract(serving, asked, toolbox, end_s)

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
        self._refuse_large(asked.model)
        with ExitStack() as needs:
            serving = await self.admission.admit(request, needs, asked.model, asked.terms(), asked.keep_s)
            return await embeddings(request, asked, serving, self._vectors)

    async def _answer(self, request: Request, needs: ExitStack, job: Job) -> Any:
        exchange = job.exchange(self._ids)
        turn = ResponseStream(
            exchange,
            [self._pulse.watch(generation) for generation in job.start()],
            job.promise,
            prompts=len(job.prompts),
        )

        def finish() -> None:
            if job.large is not None:
                job.large.settle()
            note_confidence(turn.exchange, job.serving)
            self._on_exchange(turn.exchange)
            if self._shadow is not None and (request := LiveRequest.of(job, turn)) is not None:
                self._shadow.hear(request)

        if job.asked.stream:
            return EventStream(turn, job.voice, finish=finish).keep(needs)
        async with turn.cancelled_on_leave(request.scope, request.receive):
            await turn.read_all()
        finish()
        return whole(turn, job.voice)

    async def held(self, request: Request, model: str, keep_s: float | None) -> bool:
        """Have `model` loaded and kept so long; with 0 it is unloaded, and True returned where that is to happen."""
        found, _ = self.admission.resolve(model)
        if keep_s != 0:
            with ExitStack() as needs:
                await self.admission.admit(request, needs, model, DEFAULT_TERMS, keep_s)
            return False
        self._pool.keep(found, 0)
        return not (self._pool.is_alone or found.is_pinned)

    async def feedback(self, request: Request) -> Response:
        given = chat_request.parse(await read_body(request), Feedback)
        _ = given.text
        # What was answered before a restart is on the disk, and that may hang.
        if not await asyncio.to_thread(self._on_feedback, given):
            raise ApiError(404, f"no answer {given.id!r} is remembered here", param="id", code="unknown_id")
        if self._large is not None and (given.correction is not None or given.rating is not None):
            self._large.judged(given.id, is_right=given.correction is None and given.rating == "up")
        return as_json({"id": given.id, "object": "feedback"})

    async def health(self, _: Request) -> Response:
        return as_json({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        reason = self._ready()
        document = {
            "status": "ready" if reason is None else reason,
            "generation": self._pool.own.live.current.bundle.generation,
        }
        return as_json(document, status=200 if reason is None else 503)
