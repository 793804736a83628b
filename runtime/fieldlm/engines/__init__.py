"""Inference engines behind one Protocol: everything in which they differ is an EngineKind, one module for each.

`engine_kind` finds it by the name in a bundle's manifest: a module in `kinds`, or what another package offers under
that name in the entry point group `fieldlm.engines`. The module's `KIND` is light: it imports the engine's library
where that computes, so that who does not compute can ask without it.

An engine knows tokens and nothing of chat templates, HTTP or telemetry. `start` may be called from any thread at any
time; answers run side by side and never disturb each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

import msgspec

from fieldlm.core.errors import InputError, MissingDependencyError
from fieldlm.core.extras import install_advice
from fieldlm.core.options import BATCH, CONTEXT, PARALLEL, THREADS
from fieldlm.engines.stop_text import Preamble
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = "fieldlm.engines"  # the entry points under which other packages offer engines

Outcome = Literal["stop", "length", "cancelled", "deadline_exceeded", "preempted", "rejected", "error"]
"""How an answer ended. `preempted`: it had given its sequence up to a more urgent class, and its deadline or the
engine's end came before it got one again; it was not slow, and at a quieter time it would have been whole."""
SEAM = "\ufdd0"  # Unicode keeps it free of meaning for ever
"""Parts a text for `Engine.tokenize`, so that no token, and no special one, reaches over it."""
Priority = Literal["safety", "interactive", "batch"]


class Guide(Protocol):
    """What one answer may say next. Used by the engine's thread alone; one guide per answer."""

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come now, in order; empty when there is a choice."""
        ...

    def allow(self, logits: "NDArray[np.float32]") -> "NDArray[np.float32]":
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

    What is remembered of a prompt serves those of the same `cache_salt` alone, or everybody where that is None.
    """

    priority: Priority = "interactive"
    deadline_s: float | None = None
    max_queue_s: float | None = None
    alone: bool = False
    cache_salt: str | None = None


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
    none): an engine may compute what follows there ahead of its turn. It is kept only where the answer chooses it. With
    `ignore_eos` a token that ends answers is one like any other. `said` are control tokens that are part of the text,
    and what they are there: such a token has no text of its own. No `stop` counts in a `preamble`, such as a thought.
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
    ignore_eos: bool = False
    said: tuple[tuple[int, str], ...] = ()
    preamble: Preamble | None = None


RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 2**31 - 1),
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "seed": (-(2**63), 2**64 - 1),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repeat_penalty": (1e-6, 10.0),
    "logprobs": (0, 2**31 - 1),
}
"""The least and the most of each number of `Sampling`; whole numbers have whole bounds. OpenAI's where it has any."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer: whole UTF-8 characters, and the tokens it took. The last chunk has an outcome.

    `margins` has an entry a token: the gap of the two largest logits. `choices`, if asked: those whose text has come.
    """

    text: str
    tokens: tuple[int, ...]
    margins: tuple[float, ...] = ()
    choices: tuple[TokenChoice, ...] = ()
    outcome: Outcome | None = None
    error: str | None = None


@dataclass(kw_only=True)
class Timings:
    """Where the time of one answer went, in seconds and counts of tokens, and how sure the model was.

    The latter is told by `free_tokens` alone, chosen out of several behind any `preamble`, the one that ends an answer
    too. `margin` is their mean gap between the two largest logits there, `min_margin` the least; `min_logprob` and
    `mean_logprob` are of their natural log probabilities by the model itself. Low means unsure; without a token, none.
    Of `drafted_tokens` the accepted ones are in the answer. `forced_tokens` of it had no rival in its form: they are
    read like a prompt, and say nothing of speed. `batch_size` is the mean number of answers that had a sequence
    meanwhile, itself too: what its speed can be compared by. `classified` is how likely a classifier's is right.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    margin: float = 0.0
    min_margin: float | None = None
    min_logprob: float | None = None
    mean_logprob: float | None = None
    free_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forced_tokens: int = 0
    batch_size: float = 1.0
    classified: float | None = None

    def chose(self, margin: float, logprob: float) -> None:
        """Count one free token."""
        self.free_tokens += 1
        self.margin += (margin - self.margin) / self.free_tokens
        mean, least = self.mean_logprob or 0.0, self.min_logprob
        self.mean_logprob = mean + (logprob - mean) / self.free_tokens
        self.min_logprob = logprob if least is None else min(least, logprob)
        self.min_margin = margin if self.min_margin is None else min(self.min_margin, margin)


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
        """Return token ids; special tokens written in `text` (<|im_start|> …) become their ids. Adds no BOS.

        No token reaches over a `SEAM`, and none stands for it.
        """
        ...

    def least_tokens(self, text: str) -> int:
        """Return a number of tokens that `text` has at least, in no time; 0 where a tokenizer may leave text out."""
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
    ) -> "NDArray[np.float32]":
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
        """Return `tokens` and what is remembered of them, and nothing beyond; None when no idle sequence has them."""
        ...

    def remember(self, tokens: Sequence[int], state: bytes, *, adapter: str | None = None) -> bool:
        """Begin as if `tokens` had been computed; False when the engine refuses.

        `state`, which is not checked, must be `remembered` by one of the same `build` with these weights and adapter.
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


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine runs: `parallel` answers at a time share `context` tokens each; None is the engine's choice.

    `threads` are used whatever happens, for prompts `prefill_threads`, if said; without it, as many as there are cores
    for now, `most_threads` at most, and for prompts `most_prefill_threads`, else `most_threads`. A step takes `batch`
    tokens of prompts, computed `ubatch` at a time. `profile` says how weights and caches are held and what computes; a
    promise that is not kept is an error. `repeatable` answers hang on nothing that was or is computed beside them.
    """

    threads: int | None = None
    prefill_threads: int | None = None
    most_threads: int | None = None
    most_prefill_threads: int | None = None
    context: int | None = None
    parallel: int = 4
    batch: int | None = None
    ubatch: int | None = None
    profile: Profile | None = None
    repeatable: bool = False


DEFAULT_OPTIONS = EngineOptions()


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one decode step. `is_exact` is False where only the file's size is known (ONNX)."""

    weights: int
    kv_of_token: int
    is_exact: bool

    def at_depth(self, tokens: float) -> float:
        """Return the bytes read for one token after `tokens` others."""
        return self.weights + self.kv_of_token * tokens


class SpecialTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a model puts around a text, spelled out; `adds_bos` when texts without a template begin with the BOS."""

    bos: str = ""
    eos: str = ""
    adds_bos: bool = False
    control: tuple[str, ...] = ()
    """Every text that a tokenizer takes for a token of control, wherever it stands."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The library that computed: version, build flags, prompt tokens a step, layers on a GPU, weights laid out anew."""

    version: str
    system: str = ""
    batch: int = 1
    repacks: bool = False
    gpu: str = ""
    gpu_layers: int = 0


class EngineKind(Protocol):
    """One kind of engine. `cache_type` is what keys and values are kept in, by llama-bench's names."""

    cache_type: str

    def open(self, bundle: Bundle, options: EngineOptions) -> Engine:
        """Load `bundle`; see `open_engine`. Raises ModuleNotFoundError when the library is not installed."""
        ...

    def preload(self) -> None:
        """Import the library and have it look at the machine, while files are read. Raises ImportError, EngineError."""
        ...

    def facts(self) -> EngineFacts:
        """Say what the engine that was loaded last computes with."""
        ...

    def foreseen_mb(
        self, bundle: Bundle, *, context: int, parallel: int, isa: Sequence[str] = (), profile: Profile | None = None
    ) -> float | None:
        """Return the megabytes (1e6 bytes) of weights, adapter, cache and buffers, or None when nothing says it."""
        ...

    def reading(self, bundle: Bundle, profile: Profile | None = None) -> Reading:
        """Return how many bytes decoding one token has to read, an adapter's included, as `profile` has them held."""
        ...

    def weight_bytes(self, bundle: Bundle) -> int:
        """Return the size of all base weights: llama-bench's `model_size`."""
        ...

    def special_tokens(self, bundle: Bundle) -> SpecialTokens:
        """Return the special tokens where the manifest does not say them."""
        ...


def engine_kind(name: str) -> EngineKind:
    """Return what is called `name`; raises MissingDependencyError when there is no such engine here."""
    module = f"{__name__}.kinds.{name}"
    if name.isidentifier() and find_spec(module) is not None:
        return cast(EngineKind, import_module(module).KIND)
    from importlib.metadata import entry_points  # reads e-mail headers, which takes 20 ms

    for found in entry_points(group=GROUP, name=name):
        return cast(EngineKind, found.load().KIND)
    what = f"there is no engine {name[:40]!r} here; update fieldlm or install the package that has it"
    raise MissingDependencyError(what)


def open_engine(bundle: Bundle, options: EngineOptions = DEFAULT_OPTIONS) -> Engine:
    """Load `bundle` with the engine it was made for.

    Raises InputError for options that no engine can run with, EngineError when the weights cannot be loaded,
    MissingDependencyError when the engine is not installed, or not for the accelerator of the profile.
    """
    ranges = {"threads": THREADS, "context": (1, CONTEXT[1]), "parallel": PARALLEL, "batch": BATCH, "ubatch": BATCH}
    for option, (least, most) in ranges.items():
        if (given := getattr(options, option)) is not None and not (type(given) is int and least <= given <= most):
            raise InputError(f"{option} is {given!r}, want a whole number, {least}–{most}")
    kind = engine_kind(name := bundle.manifest.engine)
    try:
        return kind.open(bundle, options)
    except ModuleNotFoundError as error:
        what = f"this bundle needs {error.name}, which is not installed; {install_advice('fieldlm', name)}"
        raise MissingDependencyError(what) from error
