"""One Protocol, one file per engine: `open_engine` imports the module that the bundle's manifest names.

An engine knows tokens and nothing of chat templates, HTTP or telemetry. `start` may be called from any thread at any
time; answers run side by side and never disturb each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, cast

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.errors import MissingPartError

Outcome = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy; `seed` None draws a fresh one."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer: whole UTF-8 characters, and the tokens it took. The last chunk has an outcome."""

    text: str
    tokens: tuple[int, ...]
    outcome: Outcome | None = None
    error: str | None = None


@dataclass(kw_only=True)
class Timings:
    """Where the time of one answer went; seconds, and counts of tokens.

    `margin` is the mean gap between the two largest logits over the answer's tokens: low means unsure.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    margin: float = 0.0


class Generation(Protocol):
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

    def start(self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None) -> Generation:
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


def open_engine(bundle: Bundle, *, threads: int | None = None, context: int | None = None, parallel: int = 4) -> Engine:
    """Load `bundle` with the engine it was made for: `parallel` answers at a time share `context` tokens each.

    Raises EngineError when the weights cannot be loaded, MissingPartError when the engine is not installed.
    """
    name = bundle.manifest.engine
    try:
        module = import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise MissingPartError(
            f"this bundle needs {error.name}, which is not installed; run: pip install 'fieldlm[{name}]'"
        ) from error
    return cast(Engine, module.open(bundle, threads=threads, context=context, parallel=parallel))
