"""The onnxruntime engine for ONNX graphs, which lets other threads run while it computes.

One worker thread owns the session. Every running answer has a key-value cache of its own and takes one step in turn:
a piece of its prompt, or one token. A batch answer that makes room for another class lets go of its cache, so that
there are never more of them than places, and reads its prompt and itself again later. The graph contract is
docs/onnx-graph.md.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fieldlm.core.errors import EngineError, InputError, MissingDependencyError
from fieldlm.core.tasks import PROCESS
from fieldlm.engines import DEFAULT_OPTIONS, DEFAULT_TERMS, EngineOptions, Outcome, Sampling, Schedule
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.engines.hf_tokenizer import HfTokenizer, first_line
from fieldlm.engines.memory_plan import ensure_caches_fit
from fieldlm.engines.request import Request, Words, check_terms
from fieldlm.engines.request_queue import DeadlineTimer, RequestQueue
from fieldlm.engines.sampling import Floats, check_sampling
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile
from fieldlm.hardware.cores import fast_cores
from fieldlm.hardware.huge_pages import huge_pages, stop_moving

CLOSE_S = 30.0  # what computes is interrupted between two operators
METADATA = "fieldlm.graph"
FORMAT = "fieldlm.onnx/1"
# A long prompt holds up the other answers for one piece at a time; smaller pieces cost more per token.
PROMPT_PIECE = 128
SPIN_US = "50"
ON_CPU = ("CPUExecutionProvider",)
PAST, PRESENT = "past_key_values.", "present."

Ids = NDArray[np.int64]
RunOptions = Any  # onnxruntime's own, which carries no types


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """What the exporter wrote into the model's metadata: the part of the contract that shapes do not say."""

    format: str
    kv: Literal["shared", "grown"]
    context: int
    stop_tokens: tuple[int, ...]


class KvCache:
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
        self._token_bytes = _token_bytes(session)
        for name, shape in self._inputs.items():
            if name.startswith(PAST):
                self._bind(name, np.zeros((1, shape[1], capacity if self._is_shared else 0, shape[3]), np.float32))

    @property
    def size_mb(self) -> float:
        return self._token_bytes * (self._mask.size if self._is_shared else self.length) / 1e6

    def run(self, tokens: Sequence[int], options: RunOptions) -> Floats:
        """Append `tokens` and return the logits behind the last one; the next call overwrites them.

        Raises when `options` say terminate meanwhile; then nothing was appended.
        """
        start, end = self.length, self.length + len(tokens)
        feeds: dict[str, Ids] = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": self._mask[:, :end],
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
        }
        for name, value in feeds.items():
            if name in self._inputs:
                self._binding.bind_cpu_input(name, value)
        self._session.run_with_iobinding(self._binding, options)
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


class _OnnxRequest(Request):
    """A request, and its cache while it has a place."""

    cache: KvCache | None = None

    def end(self, outcome: Outcome, error: str | None = None) -> None:
        """Let go of the cache first: who has read the last chunk finds its memory free."""
        self.cache = None
        super().end(outcome, error)


class OnnxEngine:
    """An `Engine` over one ONNX graph. `parallel` answers run at a time, the others wait for a place."""

    def __init__(self, model: Path, tokenizer: Path, options: EngineOptions) -> None:
        self._vocabulary = HfTokenizer(tokenizer)
        threads = options.threads or options.most_threads or fast_cores()
        providers = options.profile.onnx.providers if options.profile else ON_CPU
        self._session = session_of(model, threads, providers)
        self._graph = _read_graph(self._session, model)
        self.context = min(options.context or self._graph.context, self._graph.context)
        self.stop_tokens = frozenset(self._graph.stop_tokens)
        self._tokens: int = self._session.get_outputs()[0].shape[2]
        self._weights_mb = sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*")) / 1e6
        self._parallel = max(1, options.parallel)
        self._is_repeatable = options.repeatable
        token_bytes = _token_bytes(self._session)
        ensure_caches_fit(model.name, token_bytes=token_bytes, context=self.context, parallel=self._parallel)
        self._changed = threading.Condition()
        self._waiting: RequestQueue[_OnnxRequest] = RequestQueue()
        self._running: tuple[_OnnxRequest, ...] = ()
        self._computing: tuple[_OnnxRequest, RunOptions] | None = None
        self._is_closed = False
        self._alarm = DeadlineTimer(self._look)
        self._worker = PROCESS.start("onnx", self._work, restarts=True)

    @property
    def running(self) -> int:
        """Answers that have a place now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that wait for a place."""
        return len(self._waiting)

    def tokenize(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def least_tokens(self, text: str) -> int:
        """See `Engine.least_tokens`."""
        return self._vocabulary.length.least_tokens(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._vocabulary.decode(tokens)

    def vocabulary(self) -> list[bytes]:
        """See `Engine.vocabulary`."""
        return self._vocabulary.pieces()

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
    ) -> AnswerStream:
        """See `Engine.start`."""
        if adapter is not None:
            raise InputError(f"adapter {adapter!r} is not loaded: an ONNX bundle has none; merge it when compiling")
        if not prompt or len(prompt) >= self.context:
            what = f"{len(prompt)} tokens leave no room in the context of {self.context}" if prompt else "it is empty"
            raise InputError(f"the prompt cannot be answered: {what}")
        check_sampling(sampling, self._tokens)
        check_terms(terms)
        answer = AnswerStream(prompt_tokens=len(prompt), wake=self._look)
        words = Words(self._vocabulary.piece, self.stop_tokens)
        request = _OnnxRequest(answer, prompt, sampling, terms, words=words, context=self.context)
        with self._changed:
            if self._is_closed:
                raise EngineError("the engine is closed; open the bundle again")
            self._waiting.add(request)
            self._changed.notify_all()
        self._alarm.set(request)
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
        caches = [cache for request in self._running if (cache := request.cache) is not None]
        return {"weights": self._weights_mb, "kv": sum(cache.size_mb for cache in caches)}

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._look()
        self._worker.join(CLOSE_S)
        self._alarm.close()
        stop_moving()

    def _look(self) -> None:
        """End who waits in vain, and interrupt what is computed in vain. From any thread."""
        self._waiting.sweep()
        computing = self._computing
        if computing is not None and (self._is_closed or computing[0].terminal_outcome()):
            computing[1].terminate = True
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while self._has_work():
            self._waiting.sweep()
            self._admit()
            for request in self._running:
                self._step(request)
        for request in self._running:
            self._end(request, "cancelled")
        self._waiting.close_all()

    def _has_work(self) -> bool:
        """Wait for something to do; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_closed)
            return not self._is_closed

    def _admit(self) -> None:
        """Give places to who waits, the most urgent first."""
        for request in self._waiting if self._waiting else ():
            has_place = len(self._running) < self._parallel or self._make_room(request)
            if has_place and self._waiting.take(request) and request.prepare():
                request.begin(0)
                self._running = (*self._running, request)

    def _make_room(self, request: _OnnxRequest) -> bool:
        """Have the least urgent batch answer give its place up for one of another class."""
        batch = [running for running in self._running if running.is_batch]
        # What gave its place up is read again as a prompt, whose rounding is another.
        if request.is_batch or not batch or self._is_repeatable:
            return False
        parked = max(batch, key=lambda running: running.urgency)
        self._leave(parked)
        parked.park()
        self._waiting.add(parked)
        return True

    def _leave(self, request: _OnnxRequest) -> None:
        request.cache = None
        self._running = tuple(running for running in self._running if running is not request)

    def _end(self, request: _OnnxRequest, outcome: Outcome, error: str | None = None) -> None:
        self._leave(request)
        request.end(outcome, error)

    def _step(self, request: _OnnxRequest) -> None:
        """Compute one piece of what `request` knows already, and say what follows from the last one."""
        options = ort.RunOptions()
        # Its default. Unless it is said, onnxruntime asks by an exception at each run: 2 % of a small model's step.
        options.add_run_config_entry("gpu_graph_id", "0")
        self._computing = (request, options)
        try:
            if fate := request.terminal_outcome():
                self._end(request, fate)
                return
            logits = self._compute(request, options)
        # Whatever goes wrong inside one answer is that answer's end and nobody else's. Interrupted: its fate is next.
        except Exception as error:
            if not options.terminate:
                PROCESS.crashed("onnx", error)
                self._end(request, "error", f"the engine failed: {first_line(error)}")
            return
        finally:
            self._computing = None
        if logits is not None and not (request.advance(logits, len(self._running)) and request.hand_over()):
            self._leave(request)

    def _compute(self, request: _OnnxRequest, options: RunOptions) -> Floats | None:
        """Return the logits behind the last token of `request`, None while there is more to compute."""
        cache = request.cache
        if cache is None:
            cache = request.cache = KvCache(self._session, self._graph, request.capacity)
        if request.terms.alone:
            request.resume()
        logits = cache.run(request.tokens[cache.length : cache.length + PROMPT_PIECE], options)
        if request.terms.alone:
            request.rest()
        return None if cache.length < len(request.tokens) else logits


def session_of(
    model: Path, threads: int, providers: Sequence[str] = ON_CPU, *, graph: bytes | None = None
) -> ort.InferenceSession:
    """Open the graph at `model`, or `graph` over the weights beside it; raises EngineError when that fails."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that sleep between two products wake up late; those that spin for long burn the core that the rest of the
    # device needs. They spin as long as a small product takes, and not between two tokens.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if graph is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
    options.log_severity_level = 4
    if not model.is_file():
        raise EngineError(f"{model} is missing; fetch or compile the bundle again")
    # onnxruntime's errors share no base below Exception.
    try:
        with huge_pages():
            return ort.InferenceSession(graph or str(model), options, providers=list(providers))
    except Exception as error:
        raise EngineError(f"{model} cannot be loaded: {first_line(error)}; fetch or compile it again") from error


def _token_bytes(session: ort.InferenceSession) -> int:
    """Return the bytes of one token's keys and values over all layers."""
    shapes = [value.shape for value in session.get_inputs() if value.name.startswith(PAST)]
    return sum(4 * shape[1] * shape[3] for shape in shapes)


def _read_graph(session: ort.InferenceSession, model: Path) -> Graph:
    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        graph = msgspec.json.decode(metadata[METADATA], type=Graph)
    except (KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise EngineError(f"{model} does not say {METADATA} ({error}); make it with fieldlm compile") from error
    if graph.format != FORMAT:
        raise EngineError(f"{model} follows {graph.format!r}, this version runs {FORMAT!r}; update fieldlm")
    names = {value.name for value in session.get_inputs()}
    if not {"input_ids", "attention_mask"} <= names or not any(name.startswith(PAST) for name in names):
        raise EngineError(f"{model} has not the inputs of {FORMAT} (docs/onnx-graph.md); make it with fieldlm compile")
    return graph


def _check_promise(profile: Profile | None) -> None:
    """Raise MissingDependencyError for what `profile` promises and would stand idle: all is computed on the CPU."""
    if profile is None:
        return
    for accelerator in profile.accelerators:
        if accelerator.used:
            raise MissingDependencyError(
                f"the profile promises {accelerator.name} ({accelerator.kind}), and ONNX bundles are computed on the "
                "CPU; compile for the llama engine, or for a profile without it"
            )
    # onnxruntime only warns of a provider that is not there, and computes on another.
    if missing := [name for name in profile.onnx.providers if name not in ort.get_available_providers()]:
        raise MissingDependencyError(
            f"the profile promises {', '.join(missing)}, and this onnxruntime has "
            f"{', '.join(ort.get_available_providers())}; install one with it, or take it out of onnx.providers"
        )


def open_graph(model: Path, tokenizer: Path, options: EngineOptions = DEFAULT_OPTIONS) -> OnnxEngine:
    """Load a graph that is in no bundle yet; raises EngineError when it cannot be loaded."""
    return OnnxEngine(model, tokenizer, options)


def open(bundle: Bundle, options: EngineOptions) -> OnnxEngine:
    """Load the graph and the tokenizer of `bundle`; see `open_engine`. A session's threads never change."""
    _check_promise(options.profile)
    # Past the manifest's context nobody has proved anything, whoever asks for more.
    proved = bundle.manifest.model.context
    options = replace(options, context=min(options.context or proved, proved))
    return OnnxEngine(bundle.need("base"), bundle.need("tokenizer"), options)
