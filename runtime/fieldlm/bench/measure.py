"""One benchmark run: time a bundle in a process of its own, so that the peak of memory is that bundle's.

`python -m fieldlm.bench.measure SPEC` reads a Spec as JSON and prints one JSON line after each repetition and a
last one with everything. Prompts are random tokens, drawn anew for each repetition so that no prefix is cached; at a
depth, so many tokens stand before each of them, are computed once and kept. Answers go on after a token that ends them,
and what came is counted, never what was asked for.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec

from fieldlm.core.errors import EngineError, FieldlmError
from fieldlm.engines import Engine, EngineOptions, RunningAnswer, Sampling, Timings, engine_kind, open_engine
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import Profile
from fieldlm.hardware.energy import EnergyFacts, EnergySource, find_energy
from fieldlm.hardware.sensors import clock_mhz, peak_rss_mb, rss_mb, temperature_c

ADAPTER = "bench"
IDLE_S = 3.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, held as `profile` has a server hold it; one that `waits` begins a repetition when told to.

    0 tokens of a prompt or an answer are not measured. Both begin behind `depth` tokens. A step takes `batch` tokens of
    the prompt, computed `ubatch` at a time; None is what a server takes. Seconds of `delay_s` pass before each test.
    In one that `is_combined` the answer is the prompt's own, behind all of it.
    """

    bundle: str
    prompt_tokens: int
    gen_tokens: int
    repetitions: int
    threads: int
    seed: int
    depth: int = 0
    prefill_threads: int | None = None
    batch: int | None = None
    ubatch: int | None = None
    delay_s: float = 0.0
    is_combined: bool = False
    profile: Profile | None = None
    waits: bool = False


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One repetition; seconds, and the tokens they were spent on; 0 of what is not measured.

    `ttft_s` is from the request to the first chunk. `cached_tokens` were there before, as those of the depth should be.

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
    ubatch: int = 0
    repacks: bool = False
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
    parts = (spec.prompt_tokens, spec.gen_tokens + 1)
    context = spec.depth + (sum(parts) if spec.is_combined else max(parts)) + 8
    engine = open_engine(bundle, options_of(spec, context))
    adapter = bundle.path("adapter")
    if adapter:
        engine.load_adapter(ADAPTER, adapter)
    load_s = time.perf_counter() - started_s
    after_mb = rss_mb()
    try:
        if engine.context < context:
            asked = ((spec.depth, "-d"), (spec.prompt_tokens, "-p"), (spec.gen_tokens, "-n"))
            flags = ", ".join(f"{flag} {count}" for count, flag in asked if count)
            raise EngineError(
                f"the model holds {engine.context} tokens, {context} are needed for {flags}; ask for fewer"
            )
        timing = _Timing(engine, spec, ADAPTER if adapter else None, energy)
        time.sleep(spec.delay_s)
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
    batch = spec.batch or facts.batch
    return BenchResult(
        load_s=load_s,
        samples=tuple(samples),
        before_load_mb=before_mb,
        after_load_mb=after_mb,
        peak_mb=peak_rss_mb(),
        engine_mb=engine_mb,
        engine_version=facts.version,
        system_info=facts.system,
        batch=batch,
        ubatch=min(spec.ubatch or batch, batch),
        repacks=facts.repacks,
        gpu=facts.gpu,
        gpu_layers=facts.gpu_layers,
        energy=energy.facts if energy else None,
        idle_w=idle_w,
        no_energy=no_energy,
    )


def options_of(spec: Spec, context: int) -> EngineOptions:
    """Return how an engine is opened for `spec`: as `serve` does it, but with threads that give way to nobody."""
    return EngineOptions(
        threads=spec.threads,
        prefill_threads=spec.prefill_threads,
        context=context,
        parallel=1,
        batch=spec.batch,
        ubatch=spec.ubatch,
        profile=spec.profile,
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
        self._before = self._random.choices(self._pool, k=spec.depth)

    def sample(self) -> Sample:
        prompt, gen = self._spec.prompt_tokens, self._spec.gen_tokens
        # One token more than is timed: the first comes with the prompt.
        if self._spec.is_combined:
            prefill = decode = self._answer(prompt, gen + 1)
        else:
            prefill = self._answer(prompt, 1) if prompt else None
            decode = self._answer(1, gen + 1) if gen else None
        steps = decode.answer.timings.completion_tokens - 1 if decode else 0
        if decode and steps < 1:
            raise EngineError("an answer of this model ended before its second token; nothing to time")
        read = prefill.answer.timings if prefill else Timings()
        return Sample(
            ttft_s=prefill.ttft_s if prefill else 0.0,
            prefill_s=read.prefill_s,
            prefill_tokens=read.prompt_tokens - read.cached_tokens,
            decode_s=decode.answer.timings.decode_s if decode else 0.0,
            decode_tokens=steps,
            cached_tokens=read.cached_tokens,
            clock_mhz=clock_mhz(),
            temperature_c=temperature_c(zones=self._spec.profile.thermal.zones if self._spec.profile else ()),
            # What both used together is the energy of neither.
            prefill_j=prefill.joules if prefill and prefill is not decode else None,
            decode_j=decode.joules if decode and prefill is not decode else None,
        )

    def _answer(self, prompt_tokens: int, max_tokens: int) -> _Timed:
        prompt = [*self._before, *self._random.choices(self._pool, k=prompt_tokens)]
        with self._energy.sampling() if self._energy else nullcontext():
            before_j = self._energy.joules() if self._energy else None
            started_s = time.perf_counter()
            answer = self._engine.start(prompt, Sampling(max_tokens=max_tokens, ignore_eos=True), adapter=self._adapter)
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
    if spec.waits and done < spec.repetitions and not sys.stdin.readline():
        raise BrokenPipeError("who would say go has gone")


def main(argv: Sequence[str]) -> int:
    """Measure what the one argument says; the parent has checked the bundle's digests."""
    spec = msgspec.json.decode(argv[0], type=Spec)
    try:
        bundle = open_bundle(Path(spec.bundle), digests=False)
        say(MeasureLine(measured=measure(bundle, spec, on_step=lambda done: _step(spec, done))))
    except FieldlmError as error:
        say(MeasureLine(error=str(error)))
        return error.exit_code
    except BrokenPipeError:
        # Who reads has been ended: nobody is left to tell, nor by the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
