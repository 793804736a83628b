"""The model as an object in your own process: for robots, for checks of a new bundle, for measuring."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.errors import EngineError
from fieldlm.runtime.engines import Chunk, Engine, Generation, Outcome, Sampling, Timings, open_engine
from fieldlm.runtime.template import Message, render

ADAPTER = "bundle"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer: its text, its tokens, why it ended, where its time went, which generation gave it."""

    text: str
    tokens: tuple[int, ...]
    outcome: Outcome
    timings: Timings
    generation: str


class Model:
    """A bundle that answers. Safe from any thread; close it, or use `with`.

    >>> with Model.open("bundle") as model:
    ...     print(model.chat("Where is the charging station?").text)
    """

    def __init__(self, bundle: Bundle, engine: Engine, adapter: str | None) -> None:
        self.bundle = bundle
        self.engine = engine
        self.adapter = adapter

    @classmethod
    def open(
        cls,
        source: Path | str | Bundle,
        *,
        threads: int | None = None,
        context: int | None = None,
        parallel: int = 4,
        trusted: frozenset[str] = frozenset(),
    ) -> "Model":
        """Check and load the bundle in the folder `source`, with its adapter.

        Raises InputError, BundleError or TrustError for what is not a whole bundle by a `trusted` key (an empty set
        trusts any), EngineError when it cannot be loaded.
        """
        bundle = source if isinstance(source, Bundle) else open_bundle(Path(source), trusted=trusted)
        engine = open_engine(bundle, threads=threads, context=context, parallel=parallel)
        path = bundle.path("adapter")
        try:
            if path is not None:
                engine.load_adapter(ADAPTER, path)
        except EngineError:
            engine.close()
            raise
        return cls(bundle, engine, ADAPTER if path is not None else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and free the weights."""
        self.engine.close()

    def chat(self, messages: Sequence[Message] | str, sampling: Sampling | None = None) -> Answer:
        """Return the answer to `messages`, or to one message of the user. Raises EngineError when there is none."""
        generation = self._start(messages, sampling)
        chunks = list(generation)
        last = chunks[-1]
        if last.outcome is None or last.outcome == "error":
            raise EngineError(last.error or "the engine gave no answer")
        return Answer(
            text="".join(chunk.text for chunk in chunks),
            tokens=tuple(token for chunk in chunks for token in chunk.tokens),
            outcome=last.outcome,
            timings=generation.timings,
            generation=self.bundle.generation,
        )

    def stream(self, messages: Sequence[Message] | str, sampling: Sampling | None = None) -> Generator[Chunk]:
        """Yield the answer as it comes. Leaving the loop early cancels it."""
        generation = self._start(messages, sampling)
        try:
            yield from generation
        finally:
            generation.cancel()

    def _start(self, messages: Sequence[Message] | str, sampling: Sampling | None) -> Generation:
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        prompt = self.engine.tokenize(render(self.bundle, asked))
        return self.engine.start(prompt, sampling or Sampling(), adapter=self.adapter)
