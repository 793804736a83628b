"""The engine Protocol, one file per engine: `open_engine` imports the module that the bundle's manifest names.

An engine knows tokens and nothing of chat templates, HTTP or telemetry. `start` may be called from any thread at any
time; answers run side by side and never disturb each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fieldlm.core.errors import MissingDependencyError
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile

Outcome = Literal["stop", "length", "cancelled", "deadline_exceeded", "preempted", "rejected", "error"]
"""How an answer ended. `preempted`: it had given its sequence up to a more urgent class, and its deadline or the
engine's end came before it got one again; it was not slow, and at a quieter time it would have been whole."""
Priority = Literal["safety", "interactive", "batch"]


class Guide(Protocol):
    """What one answer may say next. Used by the engine's thread alone; one guide per answer."""

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come now, in order; empty when there is a choice."""
        ...

    def allow(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy of `logits` [vocabulary] in which what may not come now is minus infinity."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen or forced; raises EngineError when it was not allowed."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing but its end can follow."""
        ...


class Constraint(Protocol):
    """What an answer has to look like: compiled once, followed by many answers."""

    def guide(self) -> Guide:
        """Begin one answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When an answer is wanted. Seconds count from `Engine.start`; None is no limit.

    Within a class the earliest deadline comes first. A `batch` answer gives its sequence up to the other classes while
    they want it and is resumed later; its reader sees only a pause, and `preempted` where its time ran out in it. One
    that is `alone` shares no step with others, and its timings count none but its own: it is asked to be measured.
    """

    priority: Priority = "interactive"
    deadline_s: float | None = None
    max_queue_s: float | None = None
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """How likely a token was: natural log probabilities before temperature and filters, of it and of the best."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy; `seed` None draws a fresh one.

    Penalties count the tokens of the answer so far, as OpenAI defines them; `repeat_penalty` divides (1 is none) and
    looks at the prompt too, as llama.cpp does. `logprobs` asks for the choices with so many of the best beside each.

    `prediction` says that much of the answer has been written before, in the prompt or in these tokens (there may be
    none): an engine may compute what follows there ahead of its turn. It is kept only where the answer chooses it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    constraint: Constraint | None = None
    prediction: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer: whole UTF-8 characters, and the tokens it took. The last chunk has an outcome.

    `margins` has one entry a token: the gap between the two largest logits where it was chosen. So has `choices`, when
    the sampling asked for them.
    """

    text: str
    tokens: tuple[int, ...]
    margins: tuple[float, ...] = ()
    choices: tuple[TokenChoice, ...] = ()
    outcome: Outcome | None = None
    error: str | None = None


@dataclass(kw_only=True)
class Timings:
    """Where the time of one answer went; seconds, and counts of tokens.

    `margin` is the mean gap between the two largest logits over the answer's tokens: low means unsure. Of the tokens
    that were drafted, those that were accepted are in the answer.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    margin: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


DEFAULT_TERMS = Schedule()


class RunningAnswer(Protocol):
    """One running answer. It is read once: by iterating over it, or by one subscriber."""

    timings: Timings

    def __iter__(self) -> Iterator[Chunk]:
        """Yield chunks as they come; the last one has an outcome. Blocks between chunks."""
        ...

    def subscribe(self, receive: Callable[[Chunk], None]) -> None:
        """Call `receive` with every chunk, those already made first and in order; the last one has an outcome.

        `receive` runs in the engine's thread and must return at once: a server hands the chunk to its event loop there.
        """
        ...

    def cancel(self) -> None:
        """Stop soon and free the sequence; the last chunk says `cancelled`. Safe from any thread, more than once."""
        ...


class Engine(Protocol):
    """Loaded weights that answer token sequences."""

    context: int
    """The longest prompt plus answer, in tokens."""
    stop_tokens: frozenset[int]
    """Tokens that end an answer; they are not part of its text."""

    def tokenize(self, text: str) -> list[int]:
        """Return token ids; special tokens written in `text` (<|im_start|> …) become their ids. Adds no BOS."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`; special tokens have none."""
        ...

    def vocabulary(self) -> Sequence[bytes]:
        """Return the bytes of every token, by its id; special tokens have none. Takes a while: ask once."""
        ...

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
    ) -> RunningAnswer:
        """Queue an answer to `prompt`, with the adapter of that name switched on.

        Raises InputError when the prompt is empty or leaves no room in the context, or the adapter is not loaded.
        """
        ...

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA beside what runs; raises EngineError when it does not fit this base."""
        ...

    def drop_adapter(self, name: str) -> None:
        """Unload the adapter once the answers that use it are finished."""
        ...

    def memory_mb(self) -> dict[str, float]:
        """Return what the engine holds: `weights`, `kv`, `compute` in megabytes (1e6 bytes), as far as it knows."""
        ...

    def close(self) -> None:
        """Cancel what runs, free everything."""
        ...


@runtime_checkable
class SupportsEmbeddings(Protocol):
    """An engine that also makes vectors of texts."""

    def embed(
        self, tokens: Sequence[int], *, adapter: str | None = None, is_wanted: Callable[[], bool]
    ) -> NDArray[np.float32]:
        """Return the mean of the model's hidden states over `tokens`, a vector [width] of length 1.

        Blocks; `is_wanted` is asked between pieces, and when it says no the vector is that of what was computed.
        Raises InputError when there are no tokens or too many, EngineError when it cannot be computed.
        """
        ...


@runtime_checkable
class SupportsStateSnapshot(Protocol):
    """An engine whose memory of a prompt can be kept and given to one like it: after a restart, from a disk."""

    @property
    def build(self) -> str:
        """What a memory depends on beside weights and tokens: the library's version, the processor, the context."""
        ...

    def remembered(self, tokens: Sequence[int], *, adapter: str | None = None) -> tuple[list[int], bytes] | None:
        """Return the tokens and the memory of a sequence that begins with `tokens`; None when there is none."""
        ...

    def remember(self, tokens: Sequence[int], state: bytes, *, adapter: str | None = None) -> bool:
        """Begin as if `tokens` had been computed; False when the engine refuses.

        `state` must come from `remembered` of an engine of the same `build` with the same weights and adapter: its
        bytes are not checked.
        """
        ...


@runtime_checkable
class SupportsRestart(Protocol):
    """An engine that can be replaced within the process when it hangs inside its library."""

    @property
    def is_wedged(self) -> bool:
        """Whether it has been at one step for far longer than any step can take."""
        ...

    def revive(self) -> None:
        """Leave the thread that hangs behind and go on with another; what ran ends with an error, what waits goes on.

        Raises EngineError when there is no memory for that, or when it hangs again without having computed anything.
        """
        ...


def open_engine(
    bundle: Bundle,
    *,
    threads: int | None = None,
    most_threads: int | None = None,
    context: int | None = None,
    parallel: int = 4,
    profile: Profile | None = None,
) -> Engine:
    """Load `bundle` with the engine it was made for: `parallel` answers at a time share `context` tokens each.

    `threads` are used whatever happens; without it, as many as there are cores for now, `most_threads` at most.
    `profile` says how weights and caches are held (types of keys and values, flash attention, mapping) and what
    computes; what it promises and this machine or build has not is an error.

    Raises EngineError when the weights cannot be loaded, MissingPartError when the engine is not installed, or not for
    the accelerator of the profile.
    """
    name = bundle.manifest.engine
    try:
        module = import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"this bundle needs {error.name}, which is not installed; run: pip install 'fieldlm[{name}]'"
        ) from error
    made = module.open(
        bundle, threads=threads, most_threads=most_threads, context=context, parallel=parallel, profile=profile
    )
    return cast(Engine, made)
