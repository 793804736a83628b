"""`fieldlm bench`: how fast is this bundle on this machine, and how near to what the memory allows.

The fields are llama-bench's where it has them: one row for the prompt test, one for the generation test. Ours stand
under "fieldlm": medians with 95 % bootstrap intervals, time to first token, memory, the share of the measured memory
bandwidth, the environment, and remarks that say why a figure should not be believed.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fieldlm.bench.environment import EnvironmentSample, environment, moment, steal_percent
from fieldlm.bench.measure import BenchResult, MeasureLine, Spec
from fieldlm.bench.roofline import Reading, reading, tensor_bytes
from fieldlm.core import terminal
from fieldlm.core.errors import EngineError
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.hardware.bandwidth import Bandwidth, read_bandwidth
from fieldlm.hardware.detect import Detection, detect, usable_cores

RESAMPLES = 10_000
STEAL_LIMIT = 2.0  # per cent; above it the hypervisor decides, not the machine


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """The median of some samples and its 95 % interval (bootstrap, percentiles, a fixed seed)."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    def words(self, digits: int = 1) -> str:
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found out about one bundle."""

    spec: Spec
    measured: BenchResult
    bandwidth: Bandwidth
    reading: Reading
    before: EnvironmentSample
    after: EnvironmentSample

    @property
    def prefill(self) -> Interval:
        """Tokens of the prompt a second."""
        return interval([sample.prefill_tokens / sample.prefill_s for sample in self.measured.samples])

    @property
    def decode(self) -> Interval:
        """Tokens of the answer a second, the first one left out."""
        return interval([sample.decode_tokens / sample.decode_s for sample in self.measured.samples])

    @property
    def ttft_ms(self) -> Interval:
        """From the request to the first chunk."""
        return interval([sample.ttft_s * 1000 for sample in self.measured.samples])

    @property
    def bandwidth_percent(self) -> float:
        """How much of the measured bandwidth decoding uses, by the bytes it has to read."""
        bytes_of_token = self.reading.at_depth(self.spec.gen_tokens / 2)
        return 100 * self.decode.median * bytes_of_token / 1e9 / self.bandwidth.read_gb_s


def interval(samples: Sequence[float]) -> Interval:
    """Return the median with its 95 % interval; the same samples give the same interval."""
    values = np.asarray(samples, np.float64)
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return Interval(median=float(np.median(values)), low=float(low), high=float(high), samples=tuple(samples))


def main(argv: Sequence[str]) -> int:
    """Measure bundles one after the other and print what came out."""
    parser = terminal.parser("bench", "Measure how fast a bundle is on this machine.")
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N")
    parser.add_argument("--gen-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="0: the profile's, at most the usable cores"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random prompts")
    args = parser.parse_args(argv)
    for name in ("prompt_tokens", "gen_tokens", "repetitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, want at least 1")
    bundles = [open_bundle(folder) for folder in args.bundles]
    found = detect()
    threads = args.threads if args.threads > 0 else min(found.best.cpu.decode_threads, usable_cores())
    with terminal.progress("memory bandwidth"):
        bandwidth = read_bandwidth(threads)
    rows: list[dict[str, Any]] = []
    texts: list[str] = []
    for bundle in bundles:
        spec = Spec(
            bundle=str(bundle.folder),
            prompt_tokens=args.prompt_tokens,
            gen_tokens=args.gen_tokens,
            repetitions=args.repetitions,
            threads=threads,
            seed=args.seed,
        )
        result = bench(bundle, spec, bandwidth)
        rows += document(bundle, result, found)
        texts.append(describe(bundle, result, found))
    terminal.show(rows, "\n\n".join(texts), as_json=args.json)
    return 0


def bench(bundle: Bundle, spec: Spec, bandwidth: Bandwidth) -> Result:
    """Measure `bundle` in a child process, and look at the machine before and after."""
    before = moment()
    measured = _measure(spec, bundle.manifest.model.name)
    return Result(
        spec=spec,
        measured=measured,
        bandwidth=bandwidth,
        reading=reading(bundle),
        before=before,
        after=moment(),
    )


def _measure(spec: Spec, name: str) -> BenchResult:
    """Run `measure` in a process of its own; raises EngineError with the child's reason, or with how it ended."""
    command = [sys.executable, "-m", "fieldlm.bench.measure", msgspec.json.encode(spec).decode()]
    last = MeasureLine()
    with (
        terminal.progress(f"bench {name}", spec.repetitions) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout, "a pipe was asked for"
        for text in child.stdout:
            last = msgspec.json.decode(text, type=MeasureLine)
            if last.step:
                progress.update(last.step)
            elif last.error:
                raise EngineError(last.error)
    if last.measured is None:
        raise EngineError(f"measuring {spec.bundle} ended with {child.returncode}; -9 means that memory ran out")
    return last.measured


def document(bundle: Bundle, result: Result, found: Detection) -> list[dict[str, Any]]:
    """Return two rows with llama-bench's fields: the prompt test and the generation test."""
    prefill_s = [sample.prefill_s for sample in result.measured.samples]
    decode_s = [sample.decode_s for sample in result.measured.samples]
    ours = _ours(bundle, result, found)
    head = _llama_bench_head(bundle, result, found)
    return [
        {
            **head,
            "n_prompt": result.spec.prompt_tokens,
            "n_gen": 0,
            **_series(prefill_s, result.prefill),
            "fieldlm": ours,
        },
        {**head, "n_prompt": 0, "n_gen": result.spec.gen_tokens, **_series(decode_s, result.decode), "fieldlm": ours},
    ]


def _llama_bench_head(bundle: Bundle, result: Result, found: Detection) -> dict[str, Any]:
    manifest, is_llama = bundle.manifest, bundle.manifest.engine == "llama"
    return {
        "build_commit": result.measured.engine_version,
        "build_number": 0,
        "cpu_info": found.facts["cpu_name"],
        "gpu_info": result.measured.gpu,
        "backends": result.measured.gpu.partition(" ")[0].rstrip("0123456789") or "CPU",
        "model_filename": str(bundle.need("base")),
        "model_type": f"{manifest.model.architecture} {manifest.model.parameters / 1e6:.0f}M {manifest.recipe.quant}",
        "model_size": tensor_bytes(bundle),
        "model_n_params": manifest.model.parameters,
        "n_batch": result.measured.batch,
        "n_ubatch": result.measured.batch,
        "n_threads": result.spec.threads,
        "type_k": "f16" if is_llama else "f32",
        "type_v": "f16" if is_llama else "f32",
        "n_gpu_layers": result.measured.gpu_layers,
        "n_depth": 0,
        "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _series(seconds: Sequence[float], speed: Interval) -> dict[str, Any]:
    nanoseconds = [round(value * 1e9) for value in seconds]
    return {
        "avg_ns": round(float(np.mean(nanoseconds))),
        "stddev_ns": round(_deviation(nanoseconds)),
        "avg_ts": float(np.mean(speed.samples)),
        "stddev_ts": _deviation(speed.samples),
        "samples_ns": nanoseconds,
        "samples_ts": speed.samples,
    }


def _deviation(samples: Sequence[float]) -> float:
    return float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0


def _ours(bundle: Bundle, result: Result, found: Detection) -> dict[str, Any]:
    return {
        "generation": bundle.generation,
        "engine": bundle.manifest.engine,
        "sha256": {file.path: file.sha256 for file in bundle.manifest.files},
        "prefill_tokens_s": result.prefill,
        "decode_tokens_s": result.decode,
        "ttft_ms": result.ttft_ms,
        "load_s": result.measured.load_s,
        "memory_mb": {
            "peak": result.measured.peak_mb,
            "loaded": result.measured.after_load_mb,
            "python": result.measured.before_load_mb,
            **result.measured.engine_mb,
        },
        "bandwidth": result.bandwidth,
        "bandwidth_percent": result.bandwidth_percent,
        "reading": result.reading,
        "samples": result.measured.samples,
        "spec": result.spec,
        "system_info": result.measured.system_info,
        "environment": environment(found),
        "before": result.before,
        "after": result.after,
        "remarks": remarks(result, found),
    }


def remarks(result: Result, found: Detection) -> list[str]:
    """Return why these figures should be taken with care; empty on a quiet machine."""
    said: list[str] = []
    expect, percent = found.best.expect, result.bandwidth_percent
    steal = steal_percent(result.before, result.after)
    if steal > STEAL_LIMIT:
        said.append(f"the hypervisor took {steal:.0f} % of the CPU: compare only with what ran beside it")
    if result.before.load_average > 0.5:
        said.append(f"load {result.before.load_average:.1f} before the start: others were computing")
    if found.facts["governor"] not in ("", "performance"):
        said.append(f"CPU governor {found.facts['governor']}: clocks may follow the load late")
    if result.after.throttled != result.before.throttled:
        said.append("the CPU was throttled by heat")
    if short := [s for s in result.measured.samples if s.decode_tokens < result.spec.gen_tokens]:
        said.append(
            f"{len(short)} answers ended early, the shortest after {min(s.decode_tokens for s in short)} tokens"
        )
    if any(sample.cached_tokens for sample in result.measured.samples):
        said.append("a part of a prompt came from the prefix cache; it is not counted")
    if not result.bandwidth.is_beyond_cache:
        said.append("the bandwidth was measured on less than four caches; its share may read too low")
    if expect.bandwidth_percent_high and percent > expect.bandwidth_percent_high:
        said.append(
            f"{percent:.0f} % of the bandwidth is more than there is: a neighbour slowed its test, or a cache helped"
        )
    if expect.bandwidth_percent_low and percent < expect.bandwidth_percent_low:
        said.append(
            f"{percent:.0f} % of the bandwidth; {found.best.id} expects {expect.bandwidth_percent_low:.0f} % at least"
        )
    return said


def describe(bundle: Bundle, result: Result, found: Detection) -> str:
    """Lay the figures out for people."""
    spec, measured = result.spec, result.measured
    rows = [
        (f"prefill, {spec.prompt_tokens} tokens", result.prefill.words(), "tokens/s"),
        (f"decode, {spec.gen_tokens} tokens", result.decode.words(), "tokens/s"),
        ("time to first token", result.ttft_ms.words(), "ms"),
        ("load", f"{measured.load_s:.2f}", "s"),
        ("peak memory", f"{measured.peak_mb:.0f}", "MB"),
        ("memory bandwidth, read", f"{result.bandwidth.read_gb_s:.1f}", "GB/s"),
        ("used by decode", f"{result.bandwidth_percent:.0f}", "%"),
    ]
    title = (
        f"{bundle.manifest.model.name} {bundle.manifest.recipe.quant}, {bundle.manifest.engine}, "
        f"{spec.threads} threads, {spec.repetitions} repetitions, on {found.facts['cpu_name']}"
    )
    lines = [title, terminal.table(rows, ["", "median [95 %]", ""]), *(f"! {line}" for line in remarks(result, found))]
    return "\n".join(lines)
