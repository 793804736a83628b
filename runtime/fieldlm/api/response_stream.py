"""The response to one request while it streams, in the event loop: one answer or several, whole or as events.

A robot has to be able to rely on two things. An answer that was cut off (its deadline, its queue) is an error and never
looks like a whole one: what was said so far is in the error's `fieldlm.text`. And a request that brings `fallback`, its
own canned answer, gets that instead of any failure; because what has been said can't be taken back, such a stream says
nothing before the answer is whole.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from itertools import dropwhile
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fieldlm.api.chat_request import Exchange
from fieldlm.api.choices import Said, finish_reason, own_fields
from fieldlm.api.output_contract import OutputContract
from fieldlm.engines import Chunk, Outcome, RunningAnswer, Timings, TokenChoice
from fieldlm.inference.thoughts.thought_reader import ThoughtReader
from fieldlm.inference.tool_calls import Call, CallReader
from fieldlm.network.json_api import SIGN_OF_LIFE, STOPPING, WRITE, ApiError, as_json

RETRY_AFTER_S = 2
PING_S = 10.0  # of silence while a prompt is read or waits; proxies and clients give up after 30 to 60 of them
PING = b": ping\n\n"


class StreamedChoice:
    """One of the answers to a prompt, as far as it is known."""

    def __init__(self, index: int, generation: RunningAnswer, promise: OutputContract) -> None:
        self.index = index
        self.generation = generation
        self.raw = ""
        self.outcome: Outcome | None = None
        self.error: str | None = None
        self.whole = Said(index=index)
        self._promise = promise
        tools = promise.toolbox
        self._reader = tools and CallReader(tools.names, marked_only=promise.is_formed, schemas=tools.schemas)
        self._thoughts = promise.thoughts and ThoughtReader(promise.thoughts)
        self.reasoning_tokens = 0
        self._undecided: list[Chunk] = []
        """What may be of a thought's mark, or of the answer."""

    def take(self, chunks: Sequence[Chunk]) -> Said:
        """Add `chunks`; return what may be said now."""
        thought, text, choices = self._parted(chunks)
        self.raw += text
        pieces: list[str | Call] = self._reader.push(text) if self._reader else [text]
        if self.outcome is not None:
            pieces += self._reader.finish(is_cut=self.outcome != "stop") if self._reader else []
        said = Said(
            index=self.index,
            thought=thought,
            text="".join(piece for piece in pieces if isinstance(piece, str)),
            calls=[piece for piece in pieces if isinstance(piece, Call)],
            tokens=choices,
        )
        self.whole.thought += said.thought
        self.whole.text += said.text
        self.whole.calls += said.calls
        self.whole.tokens += said.tokens
        return said

    def _parted(self, chunks: Sequence[Chunk]) -> tuple[str, str, list[TokenChoice]]:
        """Return what `chunks` think, what they answer, and how likely the tokens of the answer were."""
        thoughts, texts, choices = list[str](), list[str](), list[TokenChoice]()
        for chunk in chunks:
            if chunk.outcome is not None:
                self.outcome, self.error = chunk.outcome, chunk.error
            reader = self._thoughts
            if reader is None or reader.has_ended:
                texts.append(chunk.text)
                choices += chunk.choices
                continue
            was_inside, had_opened = reader.is_inside, reader.has_opened
            pieces = [reader.push(chunk.text)]
            self._undecided.append(chunk)
            if chunk.outcome is not None:
                pieces.append(reader.finish(is_cut=chunk.outcome != "stop"))
            if was_inside or reader.is_inside or pieces[0][0] or had_opened != reader.has_opened:
                self.reasoning_tokens += sum(len(each.tokens) for each in self._undecided)
                self._undecided.clear()
            elif reader.has_ended:
                late = [choice for each in self._undecided for choice in each.choices]
                choices += dropwhile(self._is_space, late) if reader.has_opened else late
                self._undecided.clear()
            thoughts += [thought for thought, _ in pieces]
            texts += [text for _, text in pieces]
        return "".join(thoughts), "".join(texts), choices

    def _is_space(self, choice: TokenChoice) -> bool:
        """Say whether a token is nothing but space, which belongs to no answer behind a thought."""
        vocabulary = self._promise.vocabulary
        return vocabulary is not None and not vocabulary[choice.token].strip()

    @property
    def uses_fallback(self) -> bool:
        return self._promise.uses_fallback(self.raw, self.outcome)

    @property
    def reason(self) -> str | None:
        return "stop" if self.uses_fallback else finish_reason(self.outcome, called=bool(self.whole.calls))

    def final(self) -> Said:
        """Return the whole answer, or what stands in for it."""
        return Said(index=self.index, text=self._promise.fallback or "") if self.uses_fallback else self.whole


class ResponseStream:
    """The answers to one request, as many to each of its prompts, and the exchange they add up to."""

    def __init__(
        self,
        exchange: Exchange,
        generations: Sequence[RunningAnswer],
        promise: OutputContract,
        *,
        prompts: int = 1,
    ) -> None:
        self.exchange = exchange
        self._prompts = prompts
        self.promise = promise
        self.answers = [StreamedChoice(i, generation, promise) for i, generation in enumerate(generations)]
        self._asked_s = time.monotonic()
        self._come: deque[tuple[StreamedChoice, Chunk]] = deque()
        self._news = asyncio.Event()
        self._look: Callable[[], None] = self._news.set
        self._is_told = self._is_stopping = False
        self._is_read_whole = promise.fallback is not None
        self._loop = asyncio.get_running_loop()
        for answer in self.answers:
            answer.generation.subscribe(self._receiver(answer))

    def _receiver(self, answer: StreamedChoice) -> Callable[[Chunk], None]:
        def receive(chunk: Chunk) -> None:
            if self.exchange.ttft_s is None and (chunk.tokens or chunk.text):
                self.exchange.ttft_s = time.monotonic() - self._asked_s
            self._come.append((answer, chunk))
            # Waking the loop takes from the threads that compute: not for what it will see anyway, or reads at the end.
            if self._is_told or (self._is_read_whole and chunk.outcome is None):
                return
            self._is_told = True
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # the loop is closed: the server has stopped
                answer.generation.cancel()

        return receive

    def _tell(self) -> None:
        # Before looking: what comes after this wakes the loop again.
        self._is_told = False
        self._look()

    @property
    def has_ended(self) -> bool:
        return None not in [answer.outcome for answer in self.answers]

    async def read(self) -> list[tuple[StreamedChoice, Said]]:
        """Return all that has come since the last call, one piece per answer."""
        while not self._come:
            await self._news.wait()
            self._news.clear()
        return self._take()

    def _take(self) -> list[tuple[StreamedChoice, Said]]:
        come = [self._come.popleft() for _ in range(len(self._come))]
        if len(come) == 1:
            each = [(come[0][0], [come[0][1]])]
        else:
            each = [(answer, [chunk for whose, chunk in come if whose is answer]) for answer in self.answers]
        said = [(answer, answer.take(chunks)) for answer, chunks in each if chunks]
        if self.has_ended:
            self._sum_up()
        return said

    async def follow(self, say: Callable[[list[tuple[StreamedChoice, Said]]], None]) -> None:
        """Have `say` called with all that comes, in the event loop, until the turn has ended.

        A task that is woken for every token costs more than what it does with one.
        """
        ended: asyncio.Future[None] = self._loop.create_future()

        def look() -> None:
            try:
                if self._come and not ended.done():
                    say(self._take())
            except Exception as error:
                ended.set_exception(error)
            if self.has_ended and not ended.done():
                ended.set_result(None)

        self._look = look
        look()
        try:
            await ended
        finally:
            self._look = self._news.set

    async def read_all(self) -> None:
        self._is_read_whole = True
        while not self.has_ended:
            await self.read()

    def failure(self) -> ApiError | None:
        """Return why there is no answer, once one of them has ended without."""
        for answer in self.answers:
            own = {**own_fields(self.exchange), "outcome": answer.outcome, "text": answer.raw}
            if self._is_stopping and answer.outcome == "cancelled" and not answer.uses_fallback:
                what = "the server is stopping; ask again when it is back"
                return ApiError(503, what, code="stopping", retry_after_s=RETRY_AFTER_S, own=own)
            if not answer.uses_fallback and (error := failure_of(answer.outcome, answer.error, own)):
                return error
        return None

    def _sum_up(self) -> None:
        exchange, first = self.exchange, self.answers[0]
        exchange.answer = first.raw
        outcomes: list[Outcome] = [answer.outcome for answer in self.answers if answer.outcome is not None]
        exchange.outcome = min(outcomes, key=("stop", "length").__contains__)
        exchange.timings = _summed([answer.generation.timings for answer in self.answers], self._prompts)
        exchange.reasoning_tokens = sum(answer.reasoning_tokens for answer in self.answers)
        exchange.duration_s = time.monotonic() - self._asked_s
        exchange.used_fallback = any(answer.uses_fallback for answer in self.answers)

    def cancel(self) -> None:
        for answer in self.answers:
            answer.generation.cancel()

    def _stop(self) -> None:
        self._is_stopping = True
        self.cancel()

    @asynccontextmanager
    async def cancelled_on_leave(self, scope: Scope, receive: Receive) -> AsyncGenerator[None]:
        """Cancel the answers when the client leaves, the server stops, or this block ends before they do."""
        stopping: set[Callable[[], None]] = scope["state"][STOPPING]

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.cancel()

        watcher = asyncio.create_task(watch(), name=f"watch[{self.exchange.id}]")
        stopping.add(self._stop)
        try:
            yield
        finally:
            stopping.discard(self._stop)
            self.cancel()
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher


class AnswerFormat(Protocol):
    """How one endpoint spells a response: whole, or as events. One per request."""

    @property
    def prefix(self) -> str:
        """What the answer's id begins with."""
        ...

    @property
    def media_type(self) -> str:
        """What a stream of its events is."""
        ...

    def whole(self, turn: ResponseStream) -> dict[str, Any]:
        """Return the body for a turn that has ended well."""
        ...

    def opening(self, turn: ResponseStream) -> Iterator[bytes]:
        """Yield the events before the first word."""
        ...

    def said(self, turn: ResponseStream, pieces: Sequence[tuple[StreamedChoice, Said]]) -> Iterator[bytes]:
        """Yield the events for what has just come; not called for a turn with a canned answer."""
        ...

    def ending(self, turn: ResponseStream) -> Iterator[bytes]:
        """Yield the last events of a turn that has ended well."""
        ...

    def failed(self, turn: ResponseStream, error: ApiError) -> Iterator[bytes]:
        """Yield the last events of one that has not."""
        ...

    def refusal(self, error: ApiError) -> dict[str, Any]:
        """Return the body that says why there is no answer."""
        ...


EVENTS = "text/event-stream; charset=utf-8"


class EventStream:
    """A response as server-sent events (SSE), or lines. Holds what it needs until the last event is out.

    The status is sent with the first words: who is rejected while waiting, or fails before them, gets a real one. Where
    those take long, it is sent with a comment line before, which says that somebody is there.
    """

    def __init__(self, turn: ResponseStream, voice: AnswerFormat, *, finish: Callable[[], None]) -> None:
        self._turn = turn
        self._voice = voice
        self._finish = finish
        self._needs = ExitStack()
        self._is_begun = False

    def keep(self, needs: ExitStack) -> "EventStream":
        self._needs = needs.pop_all()
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self._voice.media_type.encode()), (b"cache-control", b"no-store")]
        if self._voice.media_type == EVENTS:
            scope["state"][SIGN_OF_LIFE](PING)
        headers.append((b"x-accel-buffering", b"no"))  # nginx would hold the words back until there are some kilobytes
        with self._needs:
            async with self._turn.cancelled_on_leave(scope, receive):
                first = await self._first_words(send, headers, scope["state"][WRITE])
                if (
                    not self._is_begun
                    and self._turn.has_ended
                    and (error := self._turn.failure())
                    and not any(s.text for _, s in first)
                ):
                    self._finish()
                    await refused(error, self._voice)(scope, receive, send)
                    return
                await self._begin(send, headers)
                await self._say(first, scope["state"][WRITE])
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        if not self._is_begun:
            self._is_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _first_words(
        self, send: Send, headers: list[tuple[bytes, bytes]], write: Callable[[bytes], None]
    ) -> list[tuple[StreamedChoice, Said]]:
        """Return what comes first; the client hears a sign of life every `PING_S` until then, where lines have one."""
        while True:
            try:
                return await asyncio.wait_for(self._turn.read(), PING_S if self._voice.media_type == EVENTS else None)
            except TimeoutError:
                await self._begin(send, headers)
                write(PING)

    async def _say(self, first: list[tuple[StreamedChoice, Said]], write: Callable[[bytes], None]) -> None:
        turn, voice = self._turn, self._voice

        def say(said: list[tuple[StreamedChoice, Said]], before: bytes = b"") -> None:
            events = before if turn.promise.fallback is not None else before + b"".join(voice.said(turn, said))
            if events:
                write(events)

        say(first, b"".join(voice.opening(turn)))
        await turn.follow(say)
        self._finish()
        error = turn.failure()
        write(b"".join(voice.failed(turn, error) if error else voice.ending(turn)))


def whole(turn: ResponseStream, voice: AnswerFormat) -> Response:
    """Return the answers of a turn that has ended, or why there are none."""
    if error := turn.failure():
        return refused(error, voice)
    return as_json(voice.whole(turn))


def refused(error: ApiError, voice: AnswerFormat) -> Response:
    response = as_json(voice.refusal(error), status=error.status)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    if error.status == 504 or error.code == "preempted":
        # OpenAI's clients would ask again by themselves, for an answer that is late already, while others are urgent.
        response.headers["x-should-retry"] = "false"
    return response


def failure_of(outcome: Outcome | None, error: str | None, own: dict[str, Any] | None = None) -> ApiError | None:
    """Return why an answer with this outcome is none; `own` is what the error's `fieldlm` says."""
    match outcome:
        case "error":
            return ApiError(500, error or "the engine failed", code="engine_error", own=own)
        case "cancelled":
            return ApiError(503, "the answer was cancelled", code="cancelled", own=own)
        case "deadline_exceeded":
            return ApiError(504, "the answer was not whole by its deadline", code="deadline_exceeded", own=own)
        case "preempted":
            what = "the answer gave way to more urgent ones and its time ran out; ask again when it is quieter"
            return ApiError(503, what, code="preempted", own=own)
        case "rejected":
            what = "no sequence was free within max_queue_ms"
            return ApiError(429, what, code="rejected", retry_after_s=RETRY_AFTER_S, own=own)
        case _:
            return None


def _summed(timings: Sequence[Timings], prompts: int) -> Timings:
    """Return the first answer's figures, with the tokens of all; the answers to one prompt share its tokens."""
    each = timings[:: len(timings) // prompts]
    return replace(
        timings[0],
        prompt_tokens=sum(one.prompt_tokens for one in each),
        cached_tokens=sum(one.cached_tokens for one in each),
        completion_tokens=sum(one.completion_tokens for one in timings),
        drafted_tokens=sum(one.drafted_tokens for one in timings),
        accepted_tokens=sum(one.accepted_tokens for one in timings),
    )
