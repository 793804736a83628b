"""GGUF weights through llama.cpp's low-level API: one thread owns the context, any thread may ask.

`llama_worker` decides what is computed next, `llama_api` calls llama.cpp, `gguf_header` looks into files first.
"""

import atexit
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.errors import EngineError, InputError
from fieldlm.runtime.engines import DEFAULT_TERMS, Sampling, Terms
from fieldlm.runtime.engines.answer import RunningAnswer
from fieldlm.runtime.engines.cores import CoreWatch, physical_cores
from fieldlm.runtime.engines.gguf_header import check_adapter, read_header
from fieldlm.runtime.engines.line import Alarm
from fieldlm.runtime.engines.llama_api import Adapter, Context, Weights
from fieldlm.runtime.engines.llama_worker import PREFILL_ALONE, LlamaRequest, Worker
from fieldlm.runtime.engines.plan import ensure_fits
from fieldlm.runtime.engines.request import Words, check_terms
from fieldlm.runtime.engines.sampling import check_sampling

DEFAULT_CONTEXT = 4096  # tokens; a model's own limit can need more memory than the weights
MAX_PARALLEL = 64
MAX_THREADS = 512  # llama.cpp's own limit

T = TypeVar("T")


def open(
    bundle: Bundle,
    *,
    threads: int | None = None,
    most_threads: int | None = None,
    context: int | None = None,
    parallel: int = 4,
) -> "LlamaEngine":
    """Load the base weights of `bundle`; its adapter is loaded by who serves it."""
    return LlamaEngine(
        bundle.need("base"),
        threads=threads,
        most_threads=most_threads,
        context=context or min(bundle.manifest.model.context, DEFAULT_CONTEXT),
        parallel=parallel,
    )


class LlamaEngine:
    """An `Engine` on one GGUF file."""

    def __init__(
        self, path: Path, *, threads: int | None, context: int, parallel: int, most_threads: int | None = None
    ) -> None:
        if not 1 <= parallel <= MAX_PARALLEL or context < 1:
            raise InputError(f"{parallel=} and {context=}: want 1 to {MAX_PARALLEL} answers of at least 1 token")
        self._header = read_header(path)
        ensure_fits(self._header, path, context=context, parallel=parallel, batch=PREFILL_ALONE + parallel)
        weights = Weights(path)
        self.context = min(context, weights.trained_context)
        most = min(physical_cores(), most_threads or MAX_THREADS)
        memory = Context(
            weights,
            cells=self.context * parallel,
            sequences=parallel,
            batch=PREFILL_ALONE + parallel,
            threads=threads or most,
        )
        # Who names a number of threads gets it; without one, neighbours are given way to.
        cores = None if threads else CoreWatch(most)
        self.gives_way = cores is not None
        worker = Worker(weights, memory, sequences=parallel, cores=cores)
        self._loaded: _Loaded | None = _Loaded(weights, memory, worker)
        self.stop_tokens = frozenset(filter(weights.is_end, range(weights.vocabulary)))
        self._words = Words(weights.piece, self.stop_tokens)
        self._vocabulary = weights.vocabulary
        self._adapters: dict[str, Adapter] = {}
        self._alarm = Alarm(self._look)
        self._jobs: list[Callable[[], None]] = []
        self._wakeup = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, args=(worker,), name=f"llama[{path.name}]", daemon=True)
        self._thread.start()
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

    def detokenize(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._need().weights.piece, tokens)).decode(errors="replace")

    def vocabulary(self) -> list[bytes]:
        """See `Engine.vocabulary`."""
        weights = self._need().weights
        return [weights.piece(token) for token in range(weights.vocabulary)]

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Terms = DEFAULT_TERMS
    ) -> RunningAnswer:
        """See `Engine.start`."""
        if not prompt:
            raise InputError("the prompt is empty")
        if len(prompt) >= self.context:
            raise InputError(f"the prompt has {len(prompt)} tokens, the context holds {self.context} with the answer")
        check_sampling(sampling, self._vocabulary)
        check_terms(terms)
        worker = self._need().worker
        answer = RunningAnswer(prompt_tokens=len(prompt), wake=self._look)
        with self._wakeup:
            self._check_open()
            loaded = self._adapter(adapter) if adapter is not None else None
            request = LlamaRequest(
                answer, prompt, sampling, terms, words=self._words, context=self.context, adapter=loaded
            )
            worker.waiting.add(request)
            self._wakeup.notify()
        self._alarm.set(request)
        return answer

    def load_adapter(self, name: str, path: Path) -> None:
        """See `Engine.load_adapter`."""
        check_adapter(read_header(path), self._header, path)
        loaded = self._need()
        # Between two steps: llama.cpp keeps a list of adapters in the model that a decode reads.
        adapter = self._call(lambda: Adapter(loaded.weights, path))
        with self._wakeup:
            if name not in self._adapters:
                self._adapters[name] = adapter
                return
            self._send(lambda: loaded.worker.retire(adapter))
        raise EngineError(f"an adapter named {name!r} is already loaded; drop it first")

    def drop_adapter(self, name: str) -> None:
        """See `Engine.drop_adapter`."""
        worker = self._need().worker
        with self._wakeup:
            adapter = self._adapter(name)
            self._send(lambda: worker.retire(adapter))
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
        self._thread.join()
        self._alarm.close()
        atexit.unregister(self.close)
        loaded, self._loaded = self._loaded, None
        loaded.context.close()
        for adapter in self._adapters.values():
            adapter.close()

    def _need(self) -> "_Loaded":
        if self._loaded is None:
            raise EngineError("the engine is closed")
        return self._loaded

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError("the engine is closed")

    def _adapter(self, name: str) -> Adapter:
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
            try:
                result.set_result(job())
            except Exception as error:
                result.set_exception(error)

        with self._wakeup:
            self._send(run)
        return result.result()

    def _look(self) -> None:
        if self._loaded:
            self._loaded.worker.look()
        with self._wakeup:
            self._wakeup.notify()

    def _run(self, worker: Worker) -> None:
        while self._take_jobs(worker):
            try:
                worker.step()
            except Exception as error:
                # Our own mistake must not end the service: those it hit are told, the next request starts afresh.
                worker.fail_all("error", f"the engine failed: {error!r}")
        worker.fail_all("cancelled")

    def _take_jobs(self, worker: Worker) -> bool:
        """Run what other threads sent, waiting for it while there is nothing to compute; False once closing."""
        if worker.busy and not (self._jobs or self._closing):
            return True
        with self._wakeup:
            while not (self._jobs or worker.busy or self._closing):
                self._wakeup.wait()
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            job()
        return not self._closing


@dataclass(frozen=True)
class _Loaded:
    """What an open engine holds."""

    weights: Weights
    context: Context
    worker: Worker
