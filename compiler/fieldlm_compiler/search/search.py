"""The search from one end to the other: text, statistics, prices, frontier, a few mixtures made and measured.

Under a size the best mixture is wanted, and one below it is measured too, to say what the last megabytes bought.
Without one the smallest is wanted that keeps the quality. Predictions are too hopeful by a factor that hardly changes
along the frontier, so each measurement corrects the next step.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.bench.calibration import BESIDE_MB
from fieldlm.core.errors import GateError
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm.formats.bundle import CacheTypes, Gate, Manifest
from fieldlm.formats.profile import Profile
from fieldlm.inference.chat_template import render
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.llama_toolchain import installed
from fieldlm_compiler.pipeline.pack import draft
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search import calibrate as calibrating
from fieldlm_compiler.search import kv_cache as caching
from fieldlm_compiler.search import price as pricing
from fieldlm_compiler.search.frontier import Frontier, FrontierPoint, Option
from fieldlm_compiler.search.kv_cache import HOPE, Choice, PricedCache
from fieldlm_compiler.search.mixture import mix
from fieldlm_compiler.search.ray_pool import Flight
from fieldlm_compiler.search.searchable import mixtures_of
from fieldlm_compiler.verify import divergence as measuring
from fieldlm_compiler.verify.against_source import PROMPTS, Answers
from fieldlm_compiler.verify.corpus import SUMS, Corpus, TaskExample, apart_for_the_end, read_corpus, read_task
from fieldlm_compiler.verify.divergence import Divergences
from fieldlm_compiler.verify.exam import exam_prompt
from fieldlm_compiler.verify.limits import SearchRequest
from fieldlm_compiler.verify.task import task_gate

log = logger(__name__)

MB = 1e6
# Where no limit says how good: as near to full weights as llama.cpp's Q4_K_M keeps a model of eight billion weights
# (0.031, its tools/perplexity).
GOOD_KL = 0.03
STEP_DOWN = 0.92
# How far apart two predictions are tried while nothing lies between them.
STRIDE = 3.0
# A divergence this near to the one asked for is not worth another trial.
NEAR = 0.93
MOST_TRIALS = 5
# Another cache whose best mixture is foreseen to cost at most so much more is tried, too.
RIVAL = 1.5
TASK_EXAMPLES = 100
JUDGES = ("fieldlm", "llama-cpp-python", "numpy", "onnxruntime", "scipy", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class MixtureTrial:
    """One point of the frontier, made and measured with a cache."""

    point: FrontierPoint
    cache: CacheTypes | None
    types: dict[str, str]
    artefact: Artefact
    measured: Divergences


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search ends with; `facts` is its part of the report."""

    trials: tuple[MixtureTrial, ...]
    chosen: MixtureTrial
    gates: tuple[Gate, ...]
    examples: tuple[TaskExample, ...]
    recipe: dict[str, str]
    facts: dict[str, Any]


class Search:
    """One search: everything that does not change from trial to trial."""

    def __init__(
        self,
        manifest: Manifest,
        full: Artefact,
        checkpoint: Checkpoint,
        *,
        request: SearchRequest,
        profile: Profile,
        stages: Stages,
    ) -> None:
        self.full, self.checkpoint, self.request = full, checkpoint, request
        self.profile, self.stages = profile, stages
        self.fmt = mixtures_of(full)
        self._bundle = draft(manifest, full.parts)
        self._render = partial(render, self._bundle)
        self._trials: list[MixtureTrial] = []

    def run(self, reference: Answers) -> Found:
        """Return the mixture that keeps every limit; raises GateError, with what would keep them, when none does."""
        self.prepare(reference)
        chosen = self._best_under() if self.request.limits.bound_size else self._smallest_good()
        return Found(
            trials=tuple(self._trials),
            chosen=chosen,
            gates=tuple(self._gates(chosen)),
            examples=tuple(self.final),
            recipe={
                "calibration_sha256": self.calibration_sha256,
                "types_sha256": sha256_bytes(canonical_json(chosen.types)),
            },
            facts=self._facts(chosen),
        )

    def prepare(self, reference: Answers) -> None:
        """Read text and task, calibrate, price and walk the frontier; nothing is made yet."""
        self._read(reference.stops)
        self._statistics()
        self._frontier()
        self.foresight = self.fmt.forecast(self.full, self.profile, reference.tokens_per_s, self.stages)
        self.caches = self._price_caches()

    def make(self, point: FrontierPoint, writing: Callable[[Path], Ran] | None = None) -> Artefact:
        """Write the mixture at `point`."""
        return mix(
            self.full,
            self.types(point),
            self.statistics,
            self.calibration_sha256,
            profile=self.profile,
            stages=self.stages,
            writing=writing,
        )

    def _read(self, stops: Sequence[int]) -> None:
        request = self.request
        ask = partial(exam_prompt, self._bundle)
        task = read_task(request.task, self.checkpoint, self._render, stops, ask=ask) if request.task else []
        texts = [path for path in request.calibration if path.suffix != SUMS]
        judged_by = [example.messages for example in task]
        self.corpus = (
            read_corpus(request.calibration, self.checkpoint, self._render, without=judged_by)
            if request.calibration
            else None
        )
        if self.corpus is None or not texts:
            prompts = [self._render(example.messages) for example in task[::2][:32]] if task else []
            asked = prompts or [self._render([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
            own = calibrating.own_samples(self.checkpoint, asked, self.stages)
            self.corpus = Corpus(learn=own.learn, hold=own.hold, sums=self.corpus.sums if self.corpus else ())
        # What prompts were taken from is not what the task is judged by.
        judged = task if texts else task[1::2]
        searched, self.final = apart_for_the_end(judged)
        self.examples = searched[:: max(1, len(searched) // TASK_EXAMPLES)][:TASK_EXAMPLES]

    def _statistics(self) -> None:
        assert self.corpus is not None, "read before"
        corpus, checkpoint = self.corpus, self.checkpoint
        asked = {
            "checkpoint": checkpoint.sha256,
            "learn": sha256_bytes(canonical_json(corpus.learn)),
            "sums": [sha256_file(path) for path in corpus.sums],
            "toolchain": installed(JUDGES),
            # Each format calls some matrices by other names.
            "engine": self.full.engine,
        }

        def make(folder: Path) -> Any:
            return calibrating.calibrate(checkpoint.folder, self.full.base, corpus.learn, corpus.sums, folder)

        self.statistics, made = self.stages.run("calibrated", asked, make)
        self.calibration_sha256 = sha256_bytes(canonical_json({n: digest for n, (_, _, digest) in made.files.items()}))

    def _frontier(self) -> None:
        asked = {
            "full": self.full.sha256,
            "statistics": self.calibration_sha256,
            "isa": sorted(self.profile.cpu.isa),
            "toolchain": installed(JUDGES),
        }
        isa = self.profile.cpu.isa
        _, made = self.stages.run("priced", asked, lambda _: pricing.price(self.full.base, self.statistics, isa))
        self.unpriced = sorted(name for name, options in made.value.items() if options[0][2] is None)
        if self.unpriced:
            log.info(
                f"  note: calibration knows nothing of {counted(len(self.unpriced), 'tensor')}, "
                f"{self.unpriced[0]} among them; "
                f"they keep {pricing.SAFE_BITS} bits a weight or more"
            )
        options = {
            name: [Option(type, size, loss or 0.0) for type, size, loss in options if type not in self.request.without]
            for name, options in made.value.items()
        }
        self.frontier = Frontier(options)

    def _price_caches(self) -> list[PricedCache]:
        """Return the caches to choose among, the finest first: they matter where memory is bounded."""
        assert self.corpus is not None, "read before"
        own = PricedCache(cache=caching.own_cache(self.profile))
        if self.request.limits.max_ram_mb is None:
            return [own]
        legal = self.fmt.caches(self.full.base, self.profile)
        if len(legal) < 2:
            return [own]
        windows = self.corpus.learn[: caching.WINDOWS]
        asked = {
            "full": self.full.sha256,
            "caches": legal,
            "windows": sha256_bytes(canonical_json(windows)),
            "engine": installed(JUDGES),
        }
        _, made = self.stages.run(
            "priced-caches", asked, lambda _: self.fmt.price_caches(self.full.base, legal, windows)
        )
        return caching.priced(legal, made.value, self.foresight)

    def _best_under(self) -> MixtureTrial:
        """Return the best mixture under the limits; one a step smaller and the next best cache's are measured too."""
        best, *others = self._allowed()
        below = self.frontier.within(best.point.bytes * STEP_DOWN)
        rivals = [each for each in others[:1] if each.divergence <= RIVAL * best.divergence]
        smaller = [Choice(point=below, priced=best.priced)] if below else []
        trials = self._try(list(dict.fromkeys([best, *smaller, *rivals])))
        passing = [trial for trial in trials if self._keeps_quality(trial)]
        if not passing:
            raise GateError(self._nearest(min(trials, key=lambda trial: trial.measured.kl.value)))
        return min(passing, key=lambda trial: trial.measured.kl.value)

    def _allowed(self) -> list[Choice]:
        """Return the largest mixture that is foreseen to keep the limits beside each cache, the best of them first.

        Raises GateError when even the smallest does not beside the coarsest.
        """
        points, limits = self.frontier.points, self.request.limits

        def missed(at: int, priced: PricedCache) -> str | None:
            return self.foresight.foresee(self.types(points[at]), priced.cache).missed(limits)

        def largest(priced: PricedCache) -> FrontierPoint:
            # A larger mixture never takes less.
            return points[bisect_left(range(1, len(points)), 1, key=lambda at: missed(at, priced) is not None)]

        fitting = [priced for priced in self.caches if missed(0, priced) is None]
        if not fitting:
            raise GateError(
                f"no mixture keeps the limits: the smallest of {self.checkpoint.name} has "
                f"{missed(0, self.caches[-1])}; allow more or take a smaller model"
            )
        found = [Choice(point=largest(priced), priced=priced) for priced in fitting]
        return sorted(found, key=lambda choice: choice.divergence)

    def _smallest_good(self) -> MixtureTrial:
        """Return the smallest mixture that keeps the quality asked for: predict, measure, correct, predict again."""
        good: MixtureTrial | None = None
        lost: MixtureTrial | None = None
        divergence = self._wanted_kl / HOPE
        for _ in range(MOST_TRIALS):
            between = [point for point in self.frontier.points if _lies_between(point, good, lost)]
            if not between or (good and not self._judges_task and good.measured.kl.value > NEAR * self._wanted_kl):
                break
            nearest = min(between, key=lambda point: _apart(point.divergence, divergence))
            (trial,) = self._try([Choice(point=nearest, priced=self.caches[0])])
            if self._is_good(trial):
                good = trial
            else:
                lost = trial
            divergence = self._next(good, lost)
        if good is None:
            (good,) = self._try([Choice(point=self.frontier.points[-1], priced=self.caches[0])])
            if not self._is_good(good):
                raise GateError(self._nearest(good))
        return good

    def _next(self, good: MixtureTrial | None, lost: MixtureTrial | None) -> float:
        """Return the predicted divergence to try next, between the worst that is good and the best that is not."""
        last = self._trials[-1]
        if not self._judges_task:
            # What was measured over what was predicted hardly changes along the frontier.
            return self._wanted_kl * NEAR * last.point.divergence / max(last.measured.kl.value, 1e-9)
        bounds = [trial.point.divergence for trial in (good, lost) if trial]
        return math.sqrt(bounds[0] * bounds[1]) if len(bounds) == 2 else bounds[0] * STRIDE ** (1 if good else -1)

    @property
    def _wanted_kl(self) -> float:
        return self.request.limits.max_kl or GOOD_KL

    @property
    def _judges_task(self) -> bool:
        """Whether the task alone says how good is good enough."""
        limits = self.request.limits
        return self.request.task is not None and limits.min_task is not None and limits.max_kl is None

    def _is_good(self, trial: MixtureTrial) -> bool:
        near = self._judges_task or trial.measured.kl.value <= self._wanted_kl
        return near and self._keeps_quality(trial)

    def _smallest(self, divergence: float) -> FrontierPoint:
        return next(
            (point for point in self.frontier.points if point.divergence <= divergence), self.frontier.points[-1]
        )

    def _try(self, choices: Sequence[Choice]) -> list[MixtureTrial]:
        """Make and measure the mixtures of `choices`, all beside full weights in one reading."""
        assert self.corpus is not None, "read before"
        points, caches = [each.point for each in choices], [each.priced.cache for each in choices]
        mixtures = [self.types(point) for point in points]
        pairs = [(example.prompt_tokens, example.answer_tokens) for example in self.examples]
        flight = self._flight(mixtures, caches, pairs) if self.request.ray else None
        made = [self.make(p, flight and partial(flight.write, at)) for at, p in enumerate(points)]
        for types, artefact in zip(mixtures, made, strict=True):
            assert artefact.size.bytes == self.fmt.size_bytes(self.full, types, self.profile), (
                "sizes are known before anything is written"
            )
        hold, limit = self.corpus.hold, self.request.limits.max_kl
        asked = {
            "full": self.full.sha256,
            "artefacts": [artefact.sha256 for artefact in made],
            "caches": caches,
            "hold": sha256_bytes(canonical_json(hold)),
            "examples": sha256_bytes(canonical_json(pairs)),
            "has": "pairs",
            "max_kl": limit,
            "engine": installed(JUDGES),
        }
        what = f"measure {', '.join(artefact.quant for artefact in made)}"

        def read(_: Path) -> Any:
            if flight:
                return flight.measure(limit)
            files = [artefact.base for artefact in made]
            return measuring.measure(self.full.base, files, hold, pairs, what=what, caches=caches, max_kl=limit)

        _, ran = self.stages.run("measured", asked, read)
        results = msgspec.convert(ran.value, list[Divergences])
        rows = zip(points, caches, mixtures, made, results, strict=True)
        trials = [
            MixtureTrial(point=point, cache=cache, types=types, artefact=artefact, measured=found)
            for point, cache, types, artefact, found in rows
        ]
        self._trials += trials
        return trials

    def _flight(
        self,
        mixtures: Sequence[Mapping[str, str]],
        caches: Sequence[CacheTypes | None],
        pairs: Sequence[tuple[list[int], list[int]]],
    ) -> Flight:
        assert self.corpus is not None, "read before"
        hold, needs = self.corpus.hold, installed(JUDGES)
        return Flight(self.full.base, self.statistics, mixtures, hold, pairs, caches=caches, needs=needs)

    def _keeps_quality(self, trial: MixtureTrial) -> bool:
        return all(gate.passed for gate in self._gates(trial))

    def _gates(self, trial: MixtureTrial) -> list[Gate]:
        limits, found = self.request.limits, trial.measured
        gates: list[Gate] = []
        if limits.max_kl is not None:
            passed = found.kl.value <= limits.max_kl
            gates.append(Gate(name="kl", value=found.kl.value, limit=limits.max_kl, passed=passed, unit="nats/token"))
        if limits.max_bundle_mb is not None:
            size_mb = round(trial.artefact.size.bytes / MB + BESIDE_MB, 3)
            passed = size_mb <= limits.max_bundle_mb
            gates.append(Gate(name="bundle", value=size_mb, limit=limits.max_bundle_mb, passed=passed, unit="MB"))
        if found.task is not None:
            gates.append(task_gate("task", found.task_kept, limits))
        return gates

    def _nearest(self, trial: MixtureTrial) -> str:
        """Say which gates were missed, and where on the frontier they would be passed."""
        missed = [gate for gate in self._gates(trial) if not gate.passed]
        said = ", ".join(
            f"{gate.name} is {gate.value:.4g}, the limit {gate.limit:g} {gate.unit}"
            + (f" ({gate.doubt})" if gate.doubt else "")
            for gate in missed
        )
        size = f"the best mixture that the limits allow has {trial.artefact.size.bytes / MB:.1f} MB"
        wish = self.request.limits.max_kl
        if wish is None or trial.measured.kl.value <= wish:
            return f"{said}: {size}; allow more or ask for less"
        hope = trial.measured.kl.value / max(trial.point.divergence, 1e-9)
        nearest = self._size(self._smallest(wish / hope)) / MB + BESIDE_MB
        return f"{said}: {size}; about {nearest:.1f} MB would pass, or --max-kl {trial.measured.kl.high:.3g} here"

    def types(self, point: FrontierPoint) -> dict[str, str]:
        """Return the type of every tensor at `point`."""
        return {name: option.type for name, option in self.frontier.mixture(point).items()}

    def _size(self, point: FrontierPoint) -> int:
        return self.fmt.size_bytes(self.full, self.types(point), self.profile)

    def _facts(self, chosen: MixtureTrial) -> dict[str, Any]:
        """Return the search's part of the report: nothing in it changes from run to run."""
        points = self.frontier.points
        shown = points[:: max(1, len(points) // 60)]
        overhead = self._size(points[0]) - points[0].bytes
        return {
            "calibration_sha256": self.calibration_sha256,
            "frontier": [{"bytes": p.bytes + overhead, "predicted_kl": round(p.divergence, 7)} for p in shown],
            "caches": [caching.cache_facts(each) for each in self.caches] if len(self.caches) > 1 else [],
            "cache": msgspec.to_builtins(chosen.cache),
            "trials": [_trial_facts(trial) for trial in self._trials],
            "types": chosen.types,
            "unpriced": self.unpriced,
            "tensor_bytes": _tensor_bytes(self.frontier.mixture(chosen.point)),
        }


def _lies_between(point: FrontierPoint, good: MixtureTrial | None, lost: MixtureTrial | None) -> bool:
    """Say whether `point` is smaller than what is good and larger than what is not."""
    return (good is None or point.bytes < good.point.bytes) and (lost is None or point.bytes > lost.point.bytes)


def _apart(one: float, other: float) -> float:
    return abs(math.log(max(one, 1e-12)) - math.log(max(other, 1e-12)))


def _trial_facts(trial: MixtureTrial) -> dict[str, Any]:
    return {
        "quant": trial.artefact.quant,
        "bytes": trial.artefact.size.bytes,
        "cache": msgspec.to_builtins(trial.cache),
        "predicted_kl": round(trial.point.divergence, 7),
        "measured": msgspec.to_builtins(trial.measured),
    }


def _tensor_bytes(mixture: Mapping[str, Option]) -> dict[str, int]:
    return {name: option.bytes for name, option in mixture.items()}
