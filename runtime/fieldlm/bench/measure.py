"""One benchmark run: time a bundle in a process of its own, so that the peak of memory is that bundle's.

`python -m fieldlm.bench.measure SPEC` reads a Spec as JSON and prints one JSON line after each repetition and a
last one with everything. Prompts are random tokens, drawn anew for each repetition so that no prefix is cached. The
engine has no way to go on after an end token; an answer that ends early is asked again with another prompt, and what
came is counted, never what was asked for.
"""

import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fieldlm.core.errors import EngineError, FieldlmError
from fieldlm.engines import Engine, RunningAnswer, Sampling, open_engine
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.hardware.detect import peak_rss_mb, rss_mb

ADAPTER = "bench"
TRIES = 4  # for an answer of full length
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    bundle: str
    prompt_tokens: int
    gen_tokens: int
    repetitions: int
    threads: int
    seed: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One repetition; seconds, and the tokens they were spent on. `ttft_s` is from the request to the first chunk."""

    ttft_s: float
    prefill_s: float
    prefill_tokens: int
    decode_s: float
    decode_tokens: int
    cached_tokens: int


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """All repetitions (the warm-up left out), what loading took, and megabytes of the process."""

    load_s: float
    samples: tuple[Sample, ...]
    before_load_mb: float
    after_load_mb: float
    peak_mb: float
    engine_mb: dict[str, float]
    engine_version: str
    system_info: str
    batch: int
    gpu: str = ""
    gpu_layers: int = 0


class MeasureLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the child's output."""

    step: int = 0
    measured: BenchResult | None = None
    error: str = ""


def measure(bundle: Bundle, spec: Spec, *, on_step: Callable[[int], None]) -> BenchResult:
    """Load `bundle` and time `spec.repetitions` prompts and answers after one warm-up."""
    before_mb = rss_mb()
    started_s = time.perf_counter()
    # One token more than is timed: the first comes with the prompt.
    context = max(spec.prompt_tokens, spec.gen_tokens + 1) + 8
    engine = open_engine(bundle, threads=spec.threads, context=context, parallel=1)
    adapter = bundle.path("adapter")
    if adapter:
        engine.load_adapter(ADAPTER, adapter)
    load_s = time.perf_counter() - started_s
    after_mb = rss_mb()
    try:
        if engine.context < context:
            raise EngineError(f"the model holds {engine.context} tokens, {context} are needed; ask for fewer")
        timing = _Timing(engine, spec, ADAPTER if adapter else None)
        timing.sample()
        samples: list[Sample] = []
        for done in range(spec.repetitions):
            samples.append(timing.sample())
            on_step(done + 1)
        engine_mb = engine.memory_mb()
    finally:
        engine.close()
    version, system, batch = _engine_facts(bundle.manifest.engine)
    gpu, gpu_layers = _gpu_facts() if bundle.manifest.engine == "llama" else ("", 0)
    return BenchResult(
        load_s=load_s,
        samples=tuple(samples),
        before_load_mb=before_mb,
        after_load_mb=after_mb,
        peak_mb=peak_rss_mb(),
        engine_mb=engine_mb,
        engine_version=version,
        system_info=system,
        batch=batch,
        gpu=gpu,
        gpu_layers=gpu_layers,
    )


class _Timing:
    """An engine and the random tokens it is fed."""

    def __init__(self, engine: Engine, spec: Spec, adapter: str | None) -> None:
        self._engine = engine
        self._spec = spec
        self._adapter = adapter
        self._random = random.Random(spec.seed)
        words = ("".join(self._random.choices(LETTERS, k=self._random.randint(2, 9))) for _ in range(3000))
        self._pool = sorted(set(engine.tokenize(" ".join(words))) - engine.stop_tokens)

    def sample(self) -> Sample:
        prefill, ttft_s = self._answer(self._spec.prompt_tokens, 1)
        decode = self._long_answer()
        steps = decode.timings.completion_tokens - 1
        if steps < 1:
            raise EngineError(f"{TRIES} answers of this model ended before their second token; nothing to time")
        return Sample(
            ttft_s=ttft_s,
            prefill_s=prefill.timings.prefill_s,
            prefill_tokens=prefill.timings.prompt_tokens - prefill.timings.cached_tokens,
            decode_s=decode.timings.decode_s,
            decode_tokens=steps,
            cached_tokens=prefill.timings.cached_tokens,
        )

    def _long_answer(self) -> RunningAnswer:
        answers: list[RunningAnswer] = []
        while len(answers) < TRIES:
            answers.append(self._answer(1, self._spec.gen_tokens + 1)[0])
            if answers[-1].timings.completion_tokens > self._spec.gen_tokens:
                break
        return max(answers, key=lambda answer: answer.timings.completion_tokens)

    def _answer(self, prompt_tokens: int, max_tokens: int) -> tuple[RunningAnswer, float]:
        prompt = self._random.choices(self._pool, k=prompt_tokens)
        started_s = time.perf_counter()
        answer = self._engine.start(prompt, Sampling(max_tokens=max_tokens), adapter=self._adapter)
        first_s = 0.0
        for chunk in answer:
            first_s = first_s or time.perf_counter()
            if chunk.outcome == "error":
                raise EngineError(chunk.error or "the engine failed and did not say why")
        return answer, first_s - started_s


def _engine_facts(engine: str) -> tuple[str, str, int]:
    """Return version, build flags and batch size of the engine that was just used."""
    if engine == "llama":
        import llama_cpp

        from fieldlm.engines.memory_plan import PREFILL_ALONE

        return (
            f"llama-cpp-python-{llama_cpp.__version__}",
            llama_cpp.llama_print_system_info().decode(),
            PREFILL_ALONE + 1,
        )
    import onnxruntime

    from fieldlm.engines.onnx import PROMPT_PIECE

    return f"onnxruntime-{onnxruntime.__version__}", " ".join(onnxruntime.get_available_providers()), PROMPT_PIECE


def _gpu_facts() -> tuple[str, int]:
    """Return what llama.cpp computed on beside the CPU, and how many layers of the weights it loaded last are there."""
    from fieldlm.engines.llama_api import log
    from fieldlm.engines.llama_devices import devices

    layers = log.offloaded[0] if log.offloaded else 0
    return ", ".join(f"{d.name} ({d.description})" for d in devices() if d.name != "CPU") if layers else "", layers


def say(line: MeasureLine) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str]) -> int:
    """Measure what the one argument says; the parent has checked the bundle's digests."""
    spec = msgspec.json.decode(argv[0], type=Spec)
    try:
        bundle = open_bundle(Path(spec.bundle), digests=False)
        say(MeasureLine(measured=measure(bundle, spec, on_step=lambda done: say(MeasureLine(step=done)))))
    except FieldlmError as error:
        say(MeasureLine(error=str(error)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
