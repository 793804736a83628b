"""Answers from an ONNX graph on plain onnxruntime, which lets other threads run while it computes.

One worker thread owns the session. Every running answer has a key-value cache of its own and takes one step in turn:
a piece of its prompt, or one token. The graph contract is docs/onnx-graph.md.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.errors import EngineError, InputError
from fieldlm.runtime.engines import Chunk, Outcome, Sampling
from fieldlm.runtime.engines.answer import RunningAnswer
from fieldlm.runtime.engines.sampling import Floats, choose, make_rng
from fieldlm.runtime.engines.text import TextStream
from fieldlm.runtime.engines.vocabulary import Vocabulary, first_line

METADATA = "fieldlm.graph"
FORMAT = "fieldlm.onnx/1"
# A long prompt holds up the other answers for one piece at a time; smaller pieces cost more per token.
PROMPT_PIECE = 128
PAST, PRESENT = "past_key_values.", "present."

Ids = NDArray[np.int64]


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """What the exporter wrote into the model's metadata: the part of the contract that shapes do not say."""

    format: str
    kv: Literal["shared", "grown"]
    context: int
    stop_tokens: tuple[int, ...]


class Cache:
    """The keys and values of one answer, bound to the session so that a step copies no more than it must."""

    def __init__(self, session: ort.InferenceSession, graph: Graph, capacity: int) -> None:
        self.length = 0
        self._session = session
        self._is_shared = graph.kv == "shared"
        self._binding = session.io_binding()
        self._inputs = {value.name: value.shape for value in session.get_inputs()}
        self._mask: Ids = np.ones((1, capacity), np.int64)
        vocabulary: int = session.get_outputs()[0].shape[2]
        self._logits: Floats = np.zeros((1, 1, vocabulary), np.float32)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))
        # Zeroed pages come from the system when they are first touched: a short answer holds little of its capacity.
        self._arrays: list[Floats] = []
        self._token_bytes = 0
        for name, shape in self._inputs.items():
            if name.startswith(PAST):
                self._bind(name, np.zeros((1, shape[1], capacity if self._is_shared else 0, shape[3]), np.float32))
                self._token_bytes += 4 * shape[1] * shape[3]

    @property
    def size_mb(self) -> float:
        return self._token_bytes * (self._mask.size if self._is_shared else self.length) / 1e6

    def run(self, tokens: Sequence[int]) -> Floats:
        """Append `tokens` and return the logits behind the last one; the next call overwrites them."""
        start, end = self.length, self.length + len(tokens)
        feeds: dict[str, Ids] = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": self._mask[:, :end],
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
        }
        for name, value in feeds.items():
            if name in self._inputs:
                self._binding.bind_cpu_input(name, value)
        self._session.run_with_iobinding(self._binding)
        self.length = end
        if not self._is_shared:
            self._grow()
        return self._logits[0, 0]

    def _bind(self, name: str, array: Floats) -> None:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._binding.bind_ortvalue_input(name, value)
        self._arrays.append(array)
        if self._is_shared:
            self._binding.bind_ortvalue_output(_present(name), value)
        else:
            self._binding.bind_output(_present(name), "cpu")

    def _grow(self) -> None:
        """Make what came out the past of the next step; onnxruntime allocates the next present itself."""
        past = [name for name in self._inputs if name.startswith(PAST)]
        # Outputs come back in the order in which they were bound: the logits, then as the inputs are.
        for name, value in zip(past, self._binding.get_outputs()[1:], strict=True):
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_output(_present(name), "cpu")


def _present(past: str) -> str:
    return PRESENT + past.removeprefix(PAST)


class _Sequence:
    """One running answer on the worker's side: how far it is, and what it still holds back."""

    def __init__(self, prompt: Sequence[int], sampling: Sampling, limit: int, answer: RunningAnswer) -> None:
        self.prompt = list(prompt)
        self.sampling = sampling
        self.limit = limit
        self.answer = answer
        self.cache: Cache | None = None
        self.rng = make_rng(sampling)
        self.text = TextStream(sampling.stop)
        self.last = -1
        self.pending: list[int] = []
        self.margins: list[float] = []
        self.queued_s = self.turned_s = time.perf_counter()

    @property
    def capacity(self) -> int:
        return len(self.prompt) + self.limit

    def begin(self, cache: Cache) -> None:
        self.cache = cache
        self.turned_s = time.perf_counter()
        self.answer.timings.queue_s = self.turned_s - self.queued_s

    def step(self, pieces: Vocabulary, stop_tokens: frozenset[int]) -> bool:
        """Compute one piece of the prompt or one token and hand out what is certain; False when the answer ended."""
        assert self.cache is not None, "a sequence begins before it steps"
        if self.answer.cancelled:
            return self.end("cancelled")
        read = self.cache.length
        tokens = self.prompt[read : read + PROMPT_PIECE] or [self.last]
        logits = self.cache.run(tokens)
        if self.cache.length < len(self.prompt):
            return True
        token, margin = choose(logits, self.sampling, self.rng)
        self._clock(margin)
        if token in stop_tokens:
            return self.end("stop")
        return self._take(token, margin, pieces.piece(token))

    def _clock(self, margin: float) -> None:
        timings, now = self.answer.timings, time.perf_counter()
        spent_s, self.turned_s = now - self.turned_s, now
        if self.last < 0:
            timings.prefill_s = spent_s
        else:
            timings.decode_s += spent_s
        chosen = timings.completion_tokens + 1
        timings.margin += (margin - timings.margin) / chosen

    def _take(self, token: int, margin: float, piece: bytes) -> bool:
        self.last = token
        self.pending.append(token)
        self.margins.append(margin)
        self.answer.timings.completion_tokens += 1
        text, stopped = self.text.push(piece)
        if stopped:
            return self.end("stop", text=text)
        if self.answer.timings.completion_tokens >= self.limit:
            return self.end("length", text=text)
        if text:
            self._put(text)
        return True

    def end(self, outcome: Outcome, *, text: str = "", error: str | None = None) -> bool:
        """Hand out the rest with `outcome` and let go of the cache."""
        self.cache = None
        self._put(text + self.text.finish(), outcome, error)
        return False

    def _put(self, text: str, outcome: Outcome | None = None, error: str | None = None) -> None:
        tokens, self.pending = tuple(self.pending), []
        margins, self.margins = tuple(self.margins), []
        self.answer.put(Chunk(text=text, tokens=tokens, margins=margins, outcome=outcome, error=error))


class OnnxEngine:
    """An `Engine` over one ONNX graph. `parallel` answers run at a time, the others wait in the order they came."""

    def __init__(self, model: Path, tokenizer: Path, *, threads: int, context: int | None, parallel: int) -> None:
        self._vocabulary = Vocabulary(tokenizer)
        self._session = _session(model, threads)
        self._graph = _read_graph(self._session, model)
        self.context = min(context or self._graph.context, self._graph.context)
        self.stop_tokens = frozenset(self._graph.stop_tokens)
        self._weights_mb = sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*")) / 1e6
        self._parallel = max(1, parallel)
        self._changed = threading.Condition()
        self._waiting: deque[_Sequence] = deque()
        self._running: tuple[_Sequence, ...] = ()
        self._is_closed = False
        self._worker = threading.Thread(target=self._work, name="onnx-engine", daemon=True)
        self._worker.start()

    def tokenize(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._vocabulary.decode(tokens)

    def start(self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None) -> RunningAnswer:
        """See `Engine.start`."""
        if adapter is not None:
            raise InputError(f"adapter {adapter!r} is not loaded: an ONNX bundle has none; merge it when compiling")
        room = self.context - len(prompt)
        if not prompt or room < 1:
            what = f"{len(prompt)} tokens leave no room in the context of {self.context}" if prompt else "it is empty"
            raise InputError(f"the prompt cannot be answered: {what}")
        answer = RunningAnswer(prompt_tokens=len(prompt), wake=self._wake)
        sequence = _Sequence(prompt, sampling, max(1, min(sampling.max_tokens, room)), answer)
        with self._changed:
            if self._is_closed:
                raise EngineError("the engine is closed; open the bundle again")
            self._waiting.append(sequence)
            self._changed.notify_all()
        return answer

    def load_adapter(self, name: str, path: Path) -> None:
        """Refuse: the graph has no inputs for an adapter."""
        raise EngineError(
            f"adapter {name!r} ({path.name}) cannot be loaded: ONNX bundles take none; "
            "merge it with fieldlm compile --merge, or compile for the llama engine"
        )

    def drop_adapter(self, name: str) -> None:
        """Do nothing: there never is an adapter."""

    def memory_mb(self) -> dict[str, float]:
        """Return the size of the weights' files and of the caches in use; what onnxruntime works in is not known."""
        caches = [cache for sequence in self._running if (cache := sequence.cache) is not None]
        return {"weights": self._weights_mb, "kv": sum(cache.size_mb for cache in caches)}

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._worker.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._is_closed)
                if self._is_closed:
                    left = (*self._running, *self._waiting)
                    self._running = ()
                    break
                ended = self._admit()
            for sequence in ended:
                sequence.end("cancelled")
            self._running = tuple(sequence for sequence in self._running if self._step(sequence))
        for sequence in left:
            sequence.end("cancelled")

    def _admit(self) -> list[_Sequence]:
        """Move waiting answers into free places; return those that were cancelled while they waited."""
        ended = [sequence for sequence in self._waiting if sequence.answer.cancelled]
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.answer.cancelled)
        while self._waiting and len(self._running) < self._parallel:
            self._running = (*self._running, self._waiting.popleft())
        return ended

    def _step(self, sequence: _Sequence) -> bool:
        # Whatever goes wrong inside one answer, its reader included, is that answer's end and nobody else's.
        try:
            if sequence.cache is None:
                sequence.begin(Cache(self._session, self._graph, sequence.capacity))
            return sequence.step(self._vocabulary, self.stop_tokens)
        except Exception as error:
            with contextlib.suppress(Exception):
                sequence.end("error", error=f"the engine failed: {first_line(error)}")
            return False


def _session(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning thread burns the core that the rest of the device needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    if not model.is_file():
        raise EngineError(f"{model} is missing; fetch or compile the bundle again")
    # onnxruntime's errors share no base below Exception.
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{model} cannot be loaded: {first_line(error)}; fetch or compile it again") from error


def _read_graph(session: ort.InferenceSession, model: Path) -> Graph:
    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        graph = msgspec.json.decode(metadata[METADATA], type=Graph)
    except (KeyError, msgspec.MsgspecError) as error:
        raise EngineError(f"{model} does not say {METADATA} ({error}); make it with fieldlm compile") from error
    if graph.format != FORMAT:
        raise EngineError(f"{model} follows {graph.format!r}, this version runs {FORMAT!r}; update fieldlm")
    names = {value.name for value in session.get_inputs()}
    if not {"input_ids", "attention_mask"} <= names or not any(name.startswith(PAST) for name in names):
        raise EngineError(f"{model} has not the inputs of {FORMAT} (docs/onnx-graph.md); make it with fieldlm compile")
    return graph


def open_graph(
    model: Path, tokenizer: Path, *, threads: int | None = None, context: int | None = None, parallel: int = 4
) -> OnnxEngine:
    """Load a graph that is in no bundle yet; raises EngineError when it cannot be loaded."""
    available = len(os.sched_getaffinity(0))
    return OnnxEngine(model, tokenizer, threads=threads or available, context=context, parallel=parallel)


def open(bundle: Bundle, *, threads: int | None = None, context: int | None = None, parallel: int = 4) -> OnnxEngine:
    """Load the graph and the tokenizer of `bundle`; see `open_engine`."""
    model, tokenizer = bundle.need("base"), bundle.need("tokenizer")
    return open_graph(model, tokenizer, threads=threads, context=context, parallel=parallel)
