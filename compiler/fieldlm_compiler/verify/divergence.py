"""KL divergence of an artefact, measured through the engine's own library, token by token beside full weights.

Both read the same text; the divergence is that of the next-token distributions, KL(full ‖ artefact) in nats. No logits
touch the disk: a window is judged and forgotten. A task is read with its right answers in place, and an answer counts
as right when every one of its tokens is the likeliest: exactly the answers that greedy decoding would give.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec
import numpy as np

from fieldlm.core.errors import InputError
from fieldlm.engines.llama_layout import layout_of
from fieldlm.formats.bundle import CacheTypes
from fieldlm_compiler.export.format import format_of
from fieldlm_compiler.export.ggml import Floats
from fieldlm_compiler.pipeline.child import Ran, call

if TYPE_CHECKING:
    from fieldlm.engines.llama_api import LlamaWeights

Z95 = 1.959964
# After how many windows reading may stop early, and how often it may be wrong to, over all of these looks together.
LOOKS, STOP_ERROR = (6, 8, 12, 16, 24), 0.01
CACHED_ROWS = 4


class Mean(msgspec.Struct, frozen=True, kw_only=True):
    """A mean with its 95 % interval and what it is over."""

    value: float
    low: float
    high: float
    count: int


class Divergences(msgspec.Struct, frozen=True, kw_only=True):
    """One artefact beside full weights: on text, and on a task when there is one.

    `kl` in nats a token; `kl_p99` its 99th percentile over tokens; `same_top` the share of tokens with the same
    likeliest next; `perplexity_ratio` its perplexity over that of full weights. `task` is the share of answers that are
    exactly right, `task_full` that of full weights, `task_kept` the share of full weights' right answers that stay
    right (None where full weights have none), `task_kl` the divergence within right answers.
    """

    kl: Mean
    kl_p99: float
    same_top: Mean
    perplexity_ratio: float
    task: Mean | None = None
    task_full: Mean | None = None
    task_kept: Mean | None = None
    task_kl: Mean | None = None


def measure(
    full: Path,
    artefacts: Sequence[Path],
    windows: Sequence[Sequence[int]],
    examples: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    *,
    what: str,
    caches: Sequence[CacheTypes | None] = (),
    threads: int = 0,
    max_kl: float | None = None,
) -> Ran:
    """Return one Measured for each of `artefacts`, over `windows` of text and `examples` (prompt, answer) of a task.

    Each reads with its own of `caches`; None is F16, as full weights have it. With `max_kl`, reading text stops as soon
    as every artefact is clearly on one side of it.
    """
    return call(measure_all, what=what)(
        full=full,
        artefacts=list(artefacts),
        windows=[list(window) for window in windows],
        examples=[[list(prompt), list(answer)] for prompt, answer in examples],
        caches=list(caches) or [None] * len(artefacts),
        threads=threads,
        max_kl=max_kl,
    )


def measure_all(
    full: Path,
    artefacts: list[Path],
    windows: list[list[int]],
    examples: list[list[list[int]]],
    *,
    caches: list[CacheTypes | None],
    threads: int,
    max_kl: float | None,
) -> list[dict[str, Any]]:
    """Read everything with full weights and with every artefact. Runs in a child process."""
    others = list(zip(artefacts, caches, strict=True))
    tallies = _read_all(full, others, windows, examples, threads=threads, max_kl=max_kl)
    return [msgspec.to_builtins(text.measured(task)) for text, task in tallies]


def measure_one(
    full: Path, artefact: Path, windows: Sequence[Any], examples: Sequence[Any], *, cache: CacheTypes | None = None
) -> Ran:
    """Read everything with one artefact and its cache; what it answers goes to `together`, with that of the others."""
    return call(read_one, what="measure a mixture")(
        full=full,
        artefact=artefact,
        cache=cache,
        windows=[*windows],
        examples=[*examples],
    )


def read_one(
    full: Path,
    artefact: Path,
    windows: list[list[int]],
    examples: list[list[list[int]]],
    *,
    cache: CacheTypes | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read everything to the end with full weights and with `artefact` and its cache. Runs in a child process."""
    ((text, task),) = _read_all(full, [(artefact, cache)], windows, examples, threads=0, max_kl=None)
    return text.told(), task.told()


def together(told: Sequence[tuple[dict[str, Any], dict[str, Any]]], max_kl: float | None) -> list[Divergences]:
    """Return what `measure` would have said of artefacts that were read one by one: the same, to the last bit."""
    texts, tasks = [_heard(text) for text, _ in told], [_heard(task) for _, task in told]
    count = len(texts[0].kl)
    if max_kl is not None:
        clear = (n for n in range(1, count) if all(text.first(n).is_clear(max_kl) for text in texts))
        count = next(clear, count)
    return [text.first(count).measured(task) for text, task in zip(texts, tasks, strict=True)]


def _read_all(
    full: Path,
    artefacts: list[tuple[Path, CacheTypes | None]],
    windows: list[list[int]],
    examples: list[list[list[int]]],
    *,
    threads: int,
    max_kl: float | None,
) -> list[tuple["_Tally", "_Tally"]]:
    """Return what was found on text and on the task, for each artefact."""
    longest = max(map(len, [*windows, *(prompt + answer for prompt, answer in examples)]))
    reference = _open(full, None, longest, threads)
    others = [_open(path, cache, longest, threads) for path, cache in artefacts]
    texts = [_Tally() for _ in others]
    for window in windows:
        truth = Truth(reference.read(window, 0)[:-1], window[1:])
        for reader, tally in zip(others, texts, strict=True):
            tally.add(truth, reader.read(window, 0)[:-1])
        if max_kl is not None and all(tally.is_clear(max_kl) for tally in texts):
            break
    tasks = [_Tally() for _ in others]
    for prompt, answer in examples:
        truth = Truth(reference.read(prompt + answer, len(prompt) - 1)[:-1], answer)
        for reader, tally in zip(others, tasks, strict=True):
            tally.add(truth, reader.read(prompt + answer, len(prompt) - 1)[:-1])
    return list(zip(texts, tasks, strict=True))


class LogitReader(Protocol):
    """Any artefact, as its engine computes it."""

    def read(self, tokens: Sequence[int], start: int) -> Floats:
        """Return the logits [tokens - start, vocabulary] after each token from `start` on, valid until the next."""
        ...


@runtime_checkable
class Readable(Protocol):
    """A Format whose artefacts say the logits behind every token of a text."""

    def reader(self, path: Path, cache: CacheTypes | None, room: int, threads: int) -> LogitReader:
        """Open the weights at `path` for texts of up to `room` tokens; 0 threads are as many as there are cores."""
        ...


def _open(path: Path, cache: CacheTypes | None, room: int, threads: int) -> LogitReader:
    fmt = format_of(path)
    if not isinstance(fmt, Readable):
        raise InputError(f"{fmt.name} says no logits of a whole text, by which mixtures are measured")
    return fmt.reader(path, cache, room, threads)


class GgufReader:
    """Loaded weights that read texts of up to `room` tokens with a cache of their own, and say the logits of each."""

    def __init__(self, weights: "LlamaWeights", cache: CacheTypes | None, room: int, threads: int = 0) -> None:
        from fieldlm.engines import llama_api as llama
        from fieldlm.hardware.cores import physical_cores

        self._api = llama.api
        self._weights = weights
        layout = layout_of(None, cache)
        params = self._api.llama_context_default_params()
        params.type_k, params.type_v = layout.key_type, layout.value_type
        params.n_ctx = params.n_batch = params.n_ubatch = room
        params.n_threads = params.n_threads_batch = threads or physical_cores()
        self._context = self._api.llama_init_from_model(self._weights.model, params)
        self._batch = llama.Batch(room)

    def close(self) -> None:
        """Free the cache and the logits; the weights stay."""
        self._api.llama_free(self._context)

    def read(self, tokens: Sequence[int], start: int) -> Floats:
        """Return the logits [tokens - start, vocabulary] after each token from `start` on, valid until the next."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        self._batch.clear()
        for at, token in enumerate(tokens):
            self._batch.add([token], sequence=0, position=at, want_last=at >= start)
        code = self._api.llama_decode(self._context, self._batch.struct)
        assert code == 0, f"llama.cpp could not read {len(tokens)} tokens (code {code})"
        rows = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, (len(tokens) - start, self._weights.vocabulary))


class Truth:
    """What full weights think of one text, and the tokens that really come: said once, compared with often."""

    def __init__(self, logits: Floats, wanted: Sequence[int]) -> None:
        self.logs = logits - logits.max(1, keepdims=True)
        for rows in _slices(self.logs):
            np.subtract(rows, np.log(np.exp(rows).sum(1, keepdims=True)), out=rows)
        self.best = self.logs.argmax(1)
        self.wanted = np.array(wanted)
        self.gain = self.logs[np.arange(len(wanted)), self.wanted]

    def divergence(self, logits: Floats) -> tuple[Floats, Floats]:
        """Return KL(full ‖ other) [tokens], and the other's log probability of the tokens that come [tokens]."""
        kl, gain = np.empty((2, len(logits)), np.float32)
        at = 0
        for mine, theirs in zip(_slices(self.logs), _slices(logits), strict=True):
            logs = theirs - theirs.max(1, keepdims=True)
            logs -= np.log(np.exp(logs).sum(1, keepdims=True))
            end = at + len(logs)
            gain[at:end] = logs[np.arange(len(logs)), self.wanted[at:end]]
            np.subtract(mine, logs, out=logs)
            kl[at:end] = np.einsum("tv,tv->t", np.exp(mine), logs)
            at = end
        return kl, gain


def _slices(rows: Floats) -> list[Floats]:
    """Cut `rows` into views that fit a processor's cache."""
    return [rows[at : at + CACHED_ROWS] for at in range(0, len(rows), CACHED_ROWS)]


@dataclass
class _Tally:
    """What was found so far: one row for each text, one number for each of its tokens."""

    kl: list[Floats] = field(default_factory=list[Floats])
    same: list[float] = field(default_factory=list[float])
    gap: list[float] = field(default_factory=list[float])
    right: list[tuple[bool, bool]] = field(default_factory=list[tuple[bool, bool]])

    def first(self, count: int) -> "_Tally":
        """Return what was known after `count` texts."""
        return _Tally(self.kl[:count], self.same[:count], self.gap[:count], self.right[:count])

    def told(self) -> dict[str, Any]:
        """Return all of it as JSON can say it; `_heard` has it back."""
        return {"kl": [each.tolist() for each in self.kl], "same": self.same, "gap": self.gap, "right": self.right}

    def add(self, truth: Truth, logits: Floats) -> None:
        kl, gain = truth.divergence(logits)
        self.kl.append(kl)
        chosen = logits.argmax(1)
        self.same.append(float((truth.best == chosen).mean()))
        self.gap.append(float((truth.gain - gain).mean()))
        self.right.append((bool((truth.best == truth.wanted).all()), bool((chosen == truth.wanted).all())))

    def is_clear(self, limit: float) -> bool:
        return is_clear([float(each.mean()) for each in self.kl], limit)

    def measured(self, task: "_Tally") -> Divergences:
        return Divergences(
            kl=_mean([float(each.mean()) for each in self.kl]),
            kl_p99=round(float(np.quantile(np.concatenate(self.kl), 0.99)), 6),
            same_top=_mean(self.same),
            perplexity_ratio=round(math.exp(float(np.mean(self.gap))), 6),
            task=share([right for _, right in task.right]) if task.right else None,
            task_full=share([right for right, _ in task.right]) if task.right else None,
            task_kept=kept(task.right),
            task_kl=_mean([float(each.mean()) for each in task.kl]) if task.kl else None,
        )


def is_clear(means: Sequence[float], limit: float) -> bool:
    """Say whether the mean of `means` so far is certainly above or certainly below `limit`.

    Asked after every window, but looked at only after LOOKS. Each look takes an equal part of STOP_ERROR, by Student's
    distribution (O. J. Dunn, Multiple comparisons among means, JASA 56, 1961): who looks often is wrong more often.
    """
    if len(means) not in LOOKS:
        return False
    wide = _student(1 - STOP_ERROR / (2 * len(LOOKS)), len(means) - 1)
    return abs(float(np.mean(means)) - limit) > wide * float(np.std(means, ddof=1)) / math.sqrt(len(means))


def _heard(told: dict[str, Any]) -> _Tally:
    right = [(full, other) for full, other in told["right"]]
    return _Tally([np.array(each, np.float32) for each in told["kl"]], told["same"], told["gap"], right)


def share(right: Sequence[bool]) -> Mean:
    """Return the share of True with Wilson's interval (E. B. Wilson, JASA 22, 1927)."""
    from scipy.stats import binomtest

    count, hits = len(right), sum(right)
    low, high = binomtest(hits, count).proportion_ci(method="wilson")
    return Mean(value=round(hits / count, 6), low=round(float(low), 6), high=round(float(high), 6), count=count)


def kept(pairs: Sequence[tuple[bool, bool]]) -> Mean | None:
    """Return the share of full weights' right answers that the other gives right, too; None where there are none.

    An answer that was wrong and became right makes up for none that broke.
    """
    stayed = [other for full, other in pairs if full]
    return share(stayed) if stayed else None


def _student(quantile: float, freedom: int) -> float:
    """Return a quantile of Student's distribution; scipy.stats has it too, and takes a second to import."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, quantile))


def _mean(values: Sequence[float]) -> Mean:
    mean = float(np.mean(values))
    # Few windows: Student's distribution, not the normal one.
    wide = _student(0.975, len(values) - 1) if len(values) > 1 else math.inf
    half = wide * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    # JSON has no infinity: of one text, nothing is known about the next.
    half = min(half, 1e3)
    return Mean(value=round(mean, 6), low=round(mean - half, 6), high=round(mean + half, 6), count=len(values))
