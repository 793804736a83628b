"""The llama.cpp engine for GGUF: one thread owns the context, any thread may ask.

`llama_worker` decides what is computed next, `llama_api` calls llama.cpp, `gguf_header` looks into files first.
"""

import atexit
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fieldlm.core.errors import EngineError, InputError
from fieldlm.core.tasks import PROCESS, BackgroundTask
from fieldlm.engines import DEFAULT_TERMS, EngineOptions, Sampling, Schedule
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.engines.binding.c_api import binding_version
from fieldlm.engines.llama_api import Context, LlamaWeights, LoraAdapter, api
from fieldlm.engines.llama_devices import check_offload, devices, promised
from fieldlm.engines.llama_embed import PIECE, Embedding
from fieldlm.engines.llama_layout import DEFAULT_LAYOUT, Layout, layout_of
from fieldlm.engines.llama_scheduler import LlamaRequest, LlamaScheduler
from fieldlm.engines.memory_plan import PREFILL_ALONE, ensure_fits, plan, servable
from fieldlm.engines.request import Words, check_terms
from fieldlm.engines.request_queue import DeadlineTimer
from fieldlm.engines.sampling import Floats, check_sampling
from fieldlm.engines.sequences.batch_invariance import BatchInvariance, is_plain
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.gguf import Header, check_adapter, read_header
from fieldlm.hardware.cores import CoreWatch, fast_cores, home, stay
from fieldlm.hardware.governor import Pace
from fieldlm.hardware.huge_pages import stop_moving
from fieldlm.hardware.sensors import memory_available_mb

DEFAULT_CONTEXT = 4096  # tokens; a model's own limit can need more memory than the weights
MAX_PARALLEL = 64
MAX_THREADS = 512  # llama.cpp's own limit

WEDGED = "the engine hung and was replaced; ask again"
CLOSE_S = 30.0  # a thread that computes is interrupted in milliseconds; one that hangs is left behind
# How long one step may take: many times the longest so far, for a first prompt is longer than what warmed the engine up
# and a neighbour may take the cores; and bounds for what a board can need.
STEPS, LEAST_S, MOST_S = 100, 30.0, 600.0

T = TypeVar("T")


class StallClock:
    """How long the engine's thread has been at one thing, and whether that is too long."""

    def __init__(self, *, least_s: float = LEAST_S) -> None:
        self.least_s = least_s
        self._began_s: float | None = None
        self._longest_s = 0.0

    def begin(self) -> None:
        self._began_s = time.monotonic()

    def end(self) -> None:
        if self._began_s is not None:
            self._longest_s = max(self._longest_s, time.monotonic() - self._began_s)
            self._began_s = None

    def forget(self) -> None:
        """Begin anew: another thread works now."""
        self._began_s, self._longest_s = None, 0.0

    @property
    def has_seen_work(self) -> bool:
        return self._longest_s > 0

    @property
    def is_over(self) -> bool:
        began_s = self._began_s
        limit_s = min(MOST_S, max(self.least_s, STEPS * self._longest_s)) if self._longest_s else MOST_S
        return began_s is not None and time.monotonic() - began_s > limit_s


def open(bundle: Bundle, options: EngineOptions, header: Header | None = None) -> "LlamaEngine":
    """Load the base weights of `bundle`, whose header may be known; its adapter is loaded by who serves it."""
    # Past the manifest's context nobody has proved anything, whoever asks for more.
    context = min(options.context or DEFAULT_CONTEXT, bundle.manifest.model.context)
    layout = layout_of(options.profile, bundle.manifest.cache)
    return LlamaEngine(bundle.need("base"), replace(options, context=context), layout=layout, header=header)


class LlamaEngine:
    """An `Engine` on one GGUF file."""

    def __init__(
        self, path: Path, options: EngineOptions, *, layout: Layout = DEFAULT_LAYOUT, header: Header | None = None
    ) -> None:
        context, parallel = DEFAULT_CONTEXT if options.context is None else options.context, options.parallel
        if not 1 <= parallel <= MAX_PARALLEL or context < 1:
            raise InputError(f"{parallel=} and {context=}: want 1 to {MAX_PARALLEL} answers of at least 1 token")
        self._header = (header or read_header(path)).without_vocabulary()
        context, parallel = servable(self._header, context=context, parallel=parallel)
        self._is_repeatable = options.repeatable
        layout = self._layout = layout.repeatable() if options.repeatable else layout
        self._batch = options.batch or PREFILL_ALONE
        self._ubatch = min(options.ubatch or self._batch, self._batch)
        ensure_fits(
            self._header,
            path,
            context=context,
            parallel=parallel,
            batch=self._ubatch + parallel,
            layout=layout,
            gpu_free_mb=promised(layout.gpu, devices()).free_mb if layout.gpu else None,
        )
        weights = LlamaWeights(path, layout)
        if layout.gpu:
            check_offload(layout.gpu, weights.offloaded)
        self.context = min(context, weights.trained_context)
        self._parallel = parallel
        self._threads = options.threads or min(fast_cores(), options.most_threads or MAX_THREADS)
        most_prefill = options.most_prefill_threads or self._threads
        self._prefill_threads = options.prefill_threads or options.threads or min(fast_cores(), most_prefill)
        self._home = home(max(self._threads, self._prefill_threads))
        # Who names a number of threads gets it; without one, neighbours are given way to.
        self.gives_way = not options.threads
        self._loaded: _Loaded | None = self._begin(weights)
        self.stop_tokens = weights.ends()
        self._words = Words(weights.piece, self.stop_tokens)
        self._vocabulary = weights.vocabulary
        self._adapters: dict[str, LoraAdapter] = {}
        self._holding: list[LoraAdapter] = []
        self._leaving: list[LoraAdapter] = []
        self._alarm = DeadlineTimer(self._look)
        self._jobs: list[Callable[[], None]] = []
        self._wakeup = threading.Condition()
        self._closing = False
        self._name = path.name
        self._patience = StallClock()
        self._begun: Future[Any] | None = None
        self._wedged = 0
        self._thread = self._start_thread(self._loaded)
        # A thread inside llama.cpp while the interpreter takes the library down would crash the exit.
        atexit.register(self.close)

    @property
    def running(self) -> int:
        """Answers that hold a sequence now."""
        return self._loaded.worker.running if self._loaded else 0

    @property
    def waiting(self) -> int:
        """Answers that wait for a sequence."""
        return len(self._loaded.worker.waiting) if self._loaded else 0

    def tokenize(self, text: str) -> list[int]:
        return self._need().weights.tokenize(text)

    def least_tokens(self, text: str) -> int:
        """See `Engine.least_tokens`."""
        return self._need().weights.length.least_tokens(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._need().weights.piece, tokens)).decode(errors="replace")

    def vocabulary(self) -> list[bytes]:
        """See `Engine.vocabulary`."""
        weights = self._need().weights
        return [weights.piece(token) for token in range(weights.vocabulary)]

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
    ) -> AnswerStream:
        """See `Engine.start`."""
        if not prompt:
            raise InputError("the prompt is empty")
        if len(prompt) >= self.context:
            raise InputError(f"the prompt has {len(prompt)} tokens, the context holds {self.context} with the answer")
        check_sampling(sampling, self._vocabulary)
        check_terms(terms)
        answer = AnswerStream(prompt_tokens=len(prompt), wake=self._look)
        with self._wakeup:
            self._check_open()
            loaded = self._adapter(adapter) if adapter is not None else None
            request = LlamaRequest(
                answer, prompt, sampling, terms, words=self._words, context=self.context, adapter=loaded
            )
            self._need().worker.waiting.add(request)
            self._wakeup.notify()
        self._alarm.set(request)
        return answer

    def embed(self, tokens: Sequence[int], *, adapter: str | None = None, is_wanted: Callable[[], bool]) -> Floats:
        """See `Embeds.embed`. Runs between the steps of answers."""
        if not tokens or len(tokens) > self.context:
            raise InputError(f"the text has {len(tokens)} tokens, want 1 to {self.context}")
        need = plan(self._header, context=len(tokens), parallel=1, batch=PIECE)
        if need.kv + need.compute > (free_mb := memory_available_mb()):
            raise EngineError(f"{need.kv + need.compute:.0f} MB for {len(tokens)} tokens and {free_mb} MB are free")
        loaded = self._need()
        with self._held(adapter) as lora:
            embedding = self._call(
                lambda: Embedding(loaded.weights, tokens, adapter=lora, threads=self._prefill_threads)
            )
            try:
                while is_wanted() and self._call(embedding.step):
                    pass
                return embedding.vector()
            finally:
                embedding.close()

    @contextmanager
    def _held(self, name: str | None) -> Generator[LoraAdapter | None]:
        """Yield the adapter of that name; when it is dropped meanwhile, it is freed after the block."""
        with self._wakeup:
            adapter = self._adapter(name) if name is not None else None
            if adapter is not None:
                self._holding.append(adapter)
        try:
            yield adapter
        finally:
            with self._wakeup:
                if adapter is not None:
                    self._holding.remove(adapter)
                if adapter in self._leaving and not self._closing:
                    self._leaving.remove(adapter)
                    self._retire(adapter)

    def _retire(self, adapter: LoraAdapter) -> None:
        """Free `adapter` once nothing uses it. The caller holds the lock."""
        worker = self._need().worker
        if adapter in self._holding:
            self._leaving.append(adapter)
        # A thread that hangs may hold it: then it is never freed.
        elif not self._wedged:
            self._send(lambda: worker.retire(adapter))

    @property
    def build(self) -> str:
        """See `Remembers.build`."""
        info: bytes = api.llama_print_system_info()
        library = f"llama-cpp-python {binding_version()} {info.decode(errors='replace')}"
        return f"{library} {self.context} {self._layout.name}"

    def remembered(self, tokens: Sequence[int], *, adapter: str | None = None) -> tuple[list[int], bytes] | None:
        """See `Remembers.remembered`."""
        with self._wakeup:
            lora = self._adapter(adapter) if adapter is not None else None
        return self._call(lambda: self._need().worker.remembered(tokens, lora))

    def remember(self, tokens: Sequence[int], state: bytes, *, adapter: str | None = None) -> bool:
        """See `Remembers.remember`."""
        if not 0 < len(tokens) < self.context:
            return False
        with self._wakeup:
            lora = self._adapter(adapter) if adapter is not None else None
        return self._call(lambda: self._need().worker.remember(tokens, lora, state))

    @property
    def is_wedged(self) -> bool:
        """See `Revives.is_wedged`."""
        return self._patience.is_over

    def revive(self) -> None:
        """See `Revives.revive`: a fresh context on the same weights. A thread that returns after all frees its own."""
        with self._wakeup:
            self._check_open()
            if self._wedged and not self._patience.has_seen_work:
                raise EngineError("the engine hangs again and has computed nothing since it was replaced")
        fresh = self._begin(self._need().weights)
        with self._wakeup:
            self._check_open()
            hangs, self._loaded = self._need(), fresh
            self._wedged += 1
            self._patience.forget()
            begun, self._begun = self._begun, None
            for request in hangs.worker.abandon(WEDGED):
                fresh.worker.waiting.add(request)
            self._thread = self._start_thread(fresh)
        if begun is not None:
            begun.set_exception(EngineError(WEDGED))

    def load_adapter(self, name: str, path: Path) -> None:
        """See `Engine.load_adapter`."""
        check_adapter(read_header(path), self._header, path)
        loaded = self._need()
        # Between two steps: llama.cpp keeps a list of adapters in the model that a decode reads.
        adapter = self._call(lambda: LoraAdapter(loaded.weights, path))
        with self._wakeup:
            if name not in self._adapters:
                self._adapters[name] = adapter
                return
            self._send(lambda: loaded.worker.retire(adapter))
        raise EngineError(f"an adapter named {name!r} is already loaded; drop it first")

    def drop_adapter(self, name: str) -> None:
        """See `Engine.drop_adapter`."""
        with self._wakeup:
            self._check_open()
            self._retire(self._adapter(name))
            del self._adapters[name]

    def memory_mb(self) -> dict[str, float]:
        """See `Engine.memory_mb`; the figures are llama.cpp's own."""
        loaded = self._need()
        adapters = sum(adapter.sizes.get("LoRA", 0.0) for adapter in list(self._adapters.values()))
        sizes = {**loaded.weights.sizes, **loaded.context.sizes}
        return {
            "weights": sizes.get("model", 0.0) + adapters,
            "kv": sizes.get("KV", 0.0),
            "compute": sizes.get("compute", 0.0),
        }

    def close(self) -> None:
        """See `Engine.close`."""
        with self._wakeup:
            if self._closing or not self._loaded:
                return
            self._closing = True
            self._loaded.context.abort()
            self._wakeup.notify()
        has_ended = self._thread.join(CLOSE_S)
        self._alarm.close()
        stop_moving()
        atexit.unregister(self.close)
        loaded, self._loaded = self._loaded, None
        if not has_ended:
            loaded.worker.abandon(WEDGED)
            return
        loaded.context.close()
        for adapter in self._adapters.values():
            adapter.close()
        loaded.weights.release()

    def _need(self) -> "_Loaded":
        if self._loaded is None:
            raise EngineError("the engine is closed")
        return self._loaded

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError("the engine is closed")

    def _adapter(self, name: str) -> LoraAdapter:
        if name not in self._adapters:
            raise InputError(f"adapter {name!r} is not loaded; loaded: {', '.join(self._adapters) or 'none'}")
        return self._adapters[name]

    def _send(self, job: Callable[[], None]) -> None:
        """Have the engine's thread run `job` before its next step. The caller holds the lock."""
        self._check_open()
        self._jobs.append(job)
        self._wakeup.notify()

    def _call(self, job: Callable[[], T]) -> T:
        result: Future[T] = Future()

        def run() -> None:
            self._begun = result
            try:
                found = job()
            except Exception as error:
                self._settle(result, error=error)
            else:
                self._settle(result, found)

        with self._wakeup:
            self._send(run)
        return result.result()

    def _settle(self, result: "Future[T]", found: Any = None, error: Exception | None = None) -> None:
        with self._wakeup:
            if self._begun is not result:
                return  # it was given up while it hung
            self._begun = None
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(found)

    def _begin(self, weights: LlamaWeights) -> "_Loaded":
        """Make a context and who fills it."""
        memory = Context(
            weights,
            cells=self.context * self._parallel,
            sequences=self._parallel,
            batch=self._batch + self._parallel,
            ubatch=self._ubatch + self._parallel,
            threads=self._threads,
            prefill_threads=self._prefill_threads,
            layout=self._layout,
        )
        most = max(self._threads, self._prefill_threads)
        pace = Pace(most, CoreWatch(most) if self.gives_way else None)
        can_hold = self._layout.is_row_by_row and weights.keeps_positions and is_plain(self._header)
        invariance = BatchInvariance(memory, weights.vocabulary, can_hold=can_hold) if self._is_repeatable else None
        worker = LlamaScheduler(weights, memory, self._parallel, prefill=self._batch, pace=pace, invariance=invariance)
        return _Loaded(weights, memory, worker)

    def _start_thread(self, loaded: "_Loaded") -> BackgroundTask:
        return PROCESS.start(f"llama[{self._name}]", lambda: self._run(loaded))

    def _look(self) -> None:
        if self._loaded:
            self._loaded.worker.look()
        with self._wakeup:
            self._wakeup.notify()

    def _run(self, loaded: "_Loaded") -> None:
        worker = loaded.worker
        stay(self._home)
        while self._take_jobs(loaded):
            self._patience.begin()
            try:
                worker.step()
            except Exception as error:
                # Our own mistake must not end the service: those it hit are told, the next request starts afresh.
                PROCESS.crashed("llama", error)
                worker.fail_all(f"the engine failed: {error!r}")
            if self._loaded is loaded:
                self._patience.end()
        worker.close()
        if self._loaded is not loaded:
            loaded.context.close()

    def _take_jobs(self, loaded: "_Loaded") -> bool:
        """Run what other threads sent, waiting for it while there is nothing to compute; False once closing."""
        worker = loaded.worker
        if worker.busy and not (self._jobs or self._closing or self._loaded is not loaded):
            return True
        with self._wakeup:
            while not (self._jobs or worker.busy or self._closing or self._loaded is not loaded):
                self._wakeup.wait()
            if self._loaded is not loaded:
                return False
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            self._patience.begin()
            job()
            if self._loaded is not loaded:
                return False
            self._patience.end()
        return not self._closing


@dataclass(frozen=True)
class _Loaded:
    """What an open engine holds."""

    weights: LlamaWeights
    context: Context
    worker: LlamaScheduler
