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
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec

from fieldlm.core.errors import EngineError, FieldlmError
from fieldlm.engines import Engine, EngineOptions, RunningAnswer, Sampling, engine_kind, open_engine
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile
from fieldlm.hardware.energy import EnergyFacts, EnergySource, find_energy
from fieldlm.hardware.sensors import clock_mhz, peak_rss_mb, rss_mb, temperature_c

ADAPTER = "bench"
TRIES = 4  # for an answer of full length
IDLE_S = 3.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, held as `profile` has a server hold it; one that `waits` begins a repetition when told to."""

    bundle: str
    prompt_tokens: int
    gen_tokens: int
    repetitions: int
    threads: int
    seed: int
    profile: Profile | None = None
    waits: bool = False


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One repetition; seconds, and the tokens they were spent on. `ttft_s` is from the request to the first chunk.

    Clock and temperature are those of the machine while its last token is just over. Joules are the machine's, idle
    share included, None where nothing measures them.
    """

    ttft_s: float
    prefill_s: float
    prefill_tokens: int
    decode_s: float
    decode_tokens: int
    cached_tokens: int
    clock_mhz: float | None = None
    temperature_c: float | None = None
    prefill_j: float | None = None
    decode_j: float | None = None


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
    energy: EnergyFacts | None = None
    idle_w: float | None = None
    """What the machine took before the model was loaded."""
    no_energy: tuple[str, ...] = ()
    """Why other sources of energy were passed over."""


class MeasureLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the child's output."""

    step: int | None = None
    measured: BenchResult | None = None
    error: str = ""


def measure(bundle: Bundle, spec: Spec, *, on_step: Callable[[int], None]) -> BenchResult:
    """Load `bundle` and time `spec.repetitions` prompts and answers after one warm-up.

    `on_step` is called before each repetition and after the last, with how many are done.
    """
    energy, no_energy = find_energy()
    idle_w = _idle_w(energy) if energy else None
    before_mb = rss_mb()
    started_s = time.perf_counter()
    # One token more than is timed: the first comes with the prompt.
    context = max(spec.prompt_tokens, spec.gen_tokens + 1) + 8
    engine = open_engine(bundle, EngineOptions(threads=spec.threads, context=context, parallel=1, profile=spec.profile))
    adapter = bundle.path("adapter")
    if adapter:
        engine.load_adapter(ADAPTER, adapter)
    load_s = time.perf_counter() - started_s
    after_mb = rss_mb()
    try:
        if engine.context < context:
            raise EngineError(f"the model holds {engine.context} tokens, {context} are needed; ask for fewer")
        timing = _Timing(engine, spec, ADAPTER if adapter else None, energy)
        timing.sample()
        samples: list[Sample] = []
        for done in range(spec.repetitions):
            on_step(done)
            samples.append(timing.sample())
        on_step(spec.repetitions)
        engine_mb = engine.memory_mb()
    finally:
        engine.close()
    facts = engine_kind(bundle.manifest.engine).facts()
    return BenchResult(
        load_s=load_s,
        samples=tuple(samples),
        before_load_mb=before_mb,
        after_load_mb=after_mb,
        peak_mb=peak_rss_mb(),
        engine_mb=engine_mb,
        engine_version=facts.version,
        system_info=facts.system,
        batch=facts.batch,
        gpu=facts.gpu,
        gpu_layers=facts.gpu_layers,
        energy=energy.facts if energy else None,
        idle_w=idle_w,
        no_energy=no_energy,
    )


def _idle_w(energy: EnergySource) -> float | None:
    """Return what the machine takes while nothing is computed, in watts."""
    with energy.sampling():
        before_j, started_s = energy.joules(), time.monotonic()
        time.sleep(IDLE_S)
        after_j, took_s = energy.joules(), time.monotonic() - started_s
    return None if before_j is None or after_j is None else (after_j - before_j) / took_s


class _Timed(NamedTuple):
    """One answer, the seconds to its first chunk, and the machine's joules from the request to its end."""

    answer: RunningAnswer
    ttft_s: float
    joules: float | None


class _Timing:
    """An engine and the random tokens it is fed."""

    def __init__(self, engine: Engine, spec: Spec, adapter: str | None, energy: EnergySource | None) -> None:
        self._energy = energy
        self._engine = engine
        self._spec = spec
        self._adapter = adapter
        self._random = random.Random(spec.seed)
        words = ("".join(self._random.choices(LETTERS, k=self._random.randint(2, 9))) for _ in range(3000))
        self._pool = sorted(set(engine.tokenize(" ".join(words))) - engine.stop_tokens)

    def sample(self) -> Sample:
        prefill = self._answer(self._spec.prompt_tokens, 1)
        decode = self._long_answer()
        steps = decode.answer.timings.completion_tokens - 1
        if steps < 1:
            raise EngineError(f"{TRIES} answers of this model ended before their second token; nothing to time")
        read = prefill.answer.timings
        return Sample(
            ttft_s=prefill.ttft_s,
            prefill_s=read.prefill_s,
            prefill_tokens=read.prompt_tokens - read.cached_tokens,
            decode_s=decode.answer.timings.decode_s,
            decode_tokens=steps,
            cached_tokens=read.cached_tokens,
            clock_mhz=clock_mhz(),
            temperature_c=temperature_c(zones=self._spec.profile.thermal.zones if self._spec.profile else ()),
            prefill_j=prefill.joules,
            decode_j=decode.joules,
        )

    def _long_answer(self) -> _Timed:
        answers: list[_Timed] = []
        while len(answers) < TRIES:
            answers.append(self._answer(1, self._spec.gen_tokens + 1))
            if answers[-1].answer.timings.completion_tokens > self._spec.gen_tokens:
                break
        return max(answers, key=lambda timed: timed.answer.timings.completion_tokens)

    def _answer(self, prompt_tokens: int, max_tokens: int) -> _Timed:
        prompt = self._random.choices(self._pool, k=prompt_tokens)
        with self._energy.sampling() if self._energy else nullcontext():
            before_j = self._energy.joules() if self._energy else None
            started_s = time.perf_counter()
            answer = self._engine.start(prompt, Sampling(max_tokens=max_tokens), adapter=self._adapter)
            first_s = 0.0
            for chunk in answer:
                first_s = first_s or time.perf_counter()
                if chunk.outcome == "error":
                    raise EngineError(chunk.error or "the engine failed and did not say why")
            after_j = self._energy.joules() if self._energy else None
        used_j = None if before_j is None or after_j is None else after_j - before_j
        return _Timed(answer, first_s - started_s, used_j)


def say(line: MeasureLine) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def _step(spec: Spec, done: int) -> None:
    say(MeasureLine(step=done))
    if spec.waits and done < spec.repetitions:
        sys.stdin.readline()


def main(argv: Sequence[str]) -> int:
    """Measure what the one argument says; the parent has checked the bundle's digests."""
    spec = msgspec.json.decode(argv[0], type=Spec)
    try:
        bundle = open_bundle(Path(spec.bundle), digests=False)
        say(MeasureLine(measured=measure(bundle, spec, on_step=lambda done: _step(spec, done))))
    except FieldlmError as error:
        say(MeasureLine(error=str(error)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
