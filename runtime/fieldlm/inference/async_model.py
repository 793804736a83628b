"""`AsyncModel`, the model as an object for asyncio: what `Model` does, with a running answer that costs no thread."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from fieldlm.engines import DEFAULT_TERMS, Chunk, RunningAnswer, Sampling, Schedule
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.call_options import OpenOptions, SamplingOptions, sampling_of
from fieldlm.inference.chat_template import Message
from fieldlm.inference.model import Answer, Model, answer_of
from fieldlm.inference.structured import IncompleteError, form

T = TypeVar("T")


class AsyncModel:
    """A `Model` for one event loop or several. A task that is cancelled cancels its answer.

    >>> async with await AsyncModel.open("model.gguf") as model:
    ...     print((await model.chat("Where is the charging station?", max_tokens=64)).text)
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @classmethod
    async def open(cls, source: Path | str | Bundle, **options: Unpack[OpenOptions]) -> "AsyncModel":
        """Load a model in a thread; options and errors are those of `Model.open`."""
        return cls(await asyncio.to_thread(Model.open, source, **options))

    def __repr__(self) -> str:
        return repr(self.model).replace("Model", type(self).__name__, 1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what runs and free the weights."""
        await asyncio.to_thread(self.model.close)

    async def chat(
        self,
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        **options: Unpack[SamplingOptions],
    ) -> Answer:
        """See `Model.chat`."""
        generation = self.model.start(messages, sampling, terms, **options)
        return answer_of(self.model.bundle, generation, [chunk async for chunk in _chunks(generation)])

    async def stream(
        self,
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        **options: Unpack[SamplingOptions],
    ) -> AsyncGenerator[Chunk]:
        """See `Model.stream`. Who leaves the loop early closes the generator (`contextlib.aclosing`)."""
        async for chunk in _chunks(self.model.start(messages, sampling, terms, **options)):
            yield chunk

    @overload
    async def call(
        self,
        kind: type[T],
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        *,
        fallback: T | None = None,
        **options: Unpack[SamplingOptions],
    ) -> T: ...
    @overload
    async def call(
        self,
        kind: Mapping[str, Any],
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        *,
        fallback: Any = None,
        **options: Unpack[SamplingOptions],
    ) -> Any: ...
    async def call(
        self,
        kind: Any,
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        *,
        fallback: Any = None,
        **options: Unpack[SamplingOptions],
    ) -> Any:
        """See `Model.call`."""
        asked = await asyncio.to_thread(form, self.model.engine, kind, fallback)
        generation = self.model.start(
            messages, replace(sampling_of(sampling, options), constraint=asked.constraint), terms
        )
        try:
            return asked.read([chunk async for chunk in _chunks(generation)])
        except IncompleteError:
            if fallback is None:
                raise
            return fallback

    async def prepare(self, *kinds: Any) -> None:
        """See `Model.prepare`."""
        await asyncio.to_thread(self.model.prepare, *kinds)


async def _chunks(generation: RunningAnswer) -> AsyncGenerator[Chunk]:
    """Yield the chunks of `generation`; cancel it when nobody wants them any more."""
    loop = asyncio.get_running_loop()
    come: asyncio.Queue[Chunk] = asyncio.Queue()

    def receive(chunk: Chunk) -> None:
        try:
            loop.call_soon_threadsafe(come.put_nowait, chunk)
        except RuntimeError:  # the loop is closed
            generation.cancel()

    generation.subscribe(receive)
    try:
        while True:
            chunk = await come.get()
            yield chunk
            if chunk.outcome is not None:
                return
    finally:
        generation.cancel()
