"""`fieldlm bench`: how fast is this bundle on this machine, and how near to what the memory allows.

The fields are llama-bench's where it has them: one row for the prompt test, one for the generation test. Ours stand
under "fieldlm": medians with 95 % intervals (Student's t), time to first token, memory, the share of the measured
memory bandwidth, the environment, and remarks that say why a figure should not be believed.
"""

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from fieldlm.bench.environment import environment, moment
from fieldlm.bench.llama_bench import rows
from fieldlm.bench.measure import BenchResult, MeasureLine, Spec
from fieldlm.bench.parameters import name_of
from fieldlm.bench.remarks import findings, remarks
from fieldlm.bench.result import Result
from fieldlm.core import terminal
from fieldlm.core.errors import EngineError
from fieldlm.core.wording import counted
from fieldlm.engines import engine_kind
from fieldlm.formats.bundle import Bundle
from fieldlm.hardware.bandwidth import Bandwidth, read_bandwidth
from fieldlm.hardware.detect import Detection

BANDWIDTH_ROUNDS = 3  # before each repetition


def bench(bundle: Bundle, spec: Spec, *, array_mb: int | None = None, which: str = "") -> Result:
    """Measure `bundle` in a child process, the memory's bandwidth before each repetition, the machine before and after.

    `array_mb` is what the bandwidth is measured on; None takes what the caches ask for. `which` is said beside the
    test's name: "test 2 of 5".
    """
    before, zones = moment(), spec.profile.thermal.zones if spec.profile else ()
    measured, bandwidth = _measure(spec, f"{bundle.manifest.model.name}, {name_of(spec)}{which}", array_mb)
    return Result(
        spec=spec,
        measured=measured,
        bandwidth=bandwidth,
        reading=engine_kind(bundle.manifest.engine).reading(bundle, spec.profile),
        before=before,
        after=moment(zones=zones),
    )


def _measure(spec: Spec, name: str, array_mb: int | None) -> tuple[BenchResult, Bandwidth]:
    """Run `measure` in a process of its own; raises EngineError with the child's reason, or with how it ended."""
    given = msgspec.json.encode(msgspec.structs.replace(spec, waits=True)).decode()
    command = [sys.executable, "-m", "fieldlm.bench.measure", given]
    last, found = MeasureLine(), list[Bandwidth]()
    with (
        terminal.progress(f"bench {name}", spec.repetitions) as progress,
        # Ctrl-C goes to all of a terminal's group; the child is ended here, and says nothing about it.
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as child,
        _ended(child),
    ):
        assert child.stdin, "a pipe was asked for"
        assert child.stdout, "a pipe was asked for"
        for text in child.stdout:
            last = msgspec.json.decode(text, type=MeasureLine)
            if last.error:
                raise EngineError(last.error)
            if last.step is not None and last.step < spec.repetitions:
                # It waits: what it computes and what is measured here would be in each other's way.
                found.append(read_bandwidth(spec.threads, array_mb=array_mb, rounds=BANDWIDTH_ROUNDS))
                progress.update(last.step)
                # Unbuffered, and whoever is gone says below how it ended.
                with suppress(BrokenPipeError):
                    os.write(child.stdin.fileno(), b"\n")
    if last.measured is None:
        raise EngineError(f"measuring {spec.bundle} ended with {child.returncode}; -9 means that memory ran out")
    samples = tuple(each.read_gb_s for each in found)
    return last.measured, msgspec.structs.replace(found[0], read_gb_s=max(samples), samples_gb_s=samples)


@contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Generator[None]:
    try:
        yield
    except BaseException:
        child.kill()
        raise


def document(bundle: Bundle, result: Result, found: Detection) -> list[dict[str, Any]]:
    """Return two rows with llama-bench's fields, ours below "fieldlm": the prompt test and the generation test."""
    ours = _ours(bundle, result, found)
    return [{**row, "fieldlm": ours} for row in rows(bundle, result, found)]


def _ours(bundle: Bundle, result: Result, found: Detection) -> dict[str, Any]:
    return {
        "generation": bundle.generation,
        "engine": bundle.manifest.engine,
        "sha256": {file.path: file.sha256 for file in bundle.manifest.files},
        "prefill_tokens_s": result.prefill if result.has_prefill else None,
        "decode_tokens_s": result.decode if result.has_decode else None,
        "ttft_ms": result.ttft_ms if result.has_prefill else None,
        "load_s": result.measured.load_s,
        "memory_mb": {
            "peak": result.measured.peak_mb,
            "loaded": result.measured.after_load_mb,
            "python": result.measured.before_load_mb,
            **result.measured.engine_mb,
        },
        "energy": {
            "source": result.measured.energy,
            "why_not": result.measured.no_energy,
            "idle_w": result.measured.idle_w,
            "joules_per_token": result.joules_per_token,
            "joules_per_token_above_idle": result.joules_per_token_above_idle,
        },
        "bandwidth": result.bandwidth,
        "bandwidth_percent": result.bandwidth_percent if result.has_decode else None,
        "reading": result.reading,
        "samples": result.measured.samples,
        "spec": msgspec.structs.replace(result.spec, profile=None),
        "system_info": result.measured.system_info,
        "environment": environment(found),
        "before": result.before,
        "after": result.after,
        "remarks": remarks(result, found),
        "is_void": any(each.voids for each in findings(result, found)),
    }


def _energy_cells(result: Result) -> Iterator[tuple[str, str, str]]:
    facts = result.measured.energy
    if not result.has_decode:
        return
    rows = (("energy of decode", result.joules_per_token), ("  above idle", result.joules_per_token_above_idle))
    for name, joules in rows:
        if facts and joules:
            yield name, joules.words(3), f"J/token, {facts.covers} ({facts.source})"


def _apart(spec: Spec) -> str:
    """Return how many threads read prompts, where those are others."""
    return f" ({spec.prefill_threads} for prompts)" if spec.prefill_threads not in (None, spec.threads) else ""


def describe(bundle: Bundle, result: Result, found: Detection) -> str:
    """Lay the figures out for people."""
    spec, measured = result.spec, result.measured
    deep = f" at depth {spec.depth:,}" if spec.depth else ""
    cells: list[tuple[str, str, str]] = []
    if result.has_prefill:
        name = f"prefill, {counted(spec.prompt_tokens, 'token')}{deep}"
        cells += [(name, result.prefill.words(), "tokens/s"), ("time to first token", result.ttft_ms.words(), "ms")]
    if spec.is_combined:
        name = f"both, {spec.prompt_tokens} + {spec.gen_tokens} tokens{deep}"
        cells.append((name, result.combined.words(), "tokens/s"))
    if result.has_decode:
        cells.append((f"decode, {counted(spec.gen_tokens, 'token')}{deep}", result.decode.words(), "tokens/s"))
    cells += [
        ("load", f"{measured.load_s:.2f}", "s"),
        ("peak memory", f"{measured.peak_mb:.0f}", "MB"),
        ("memory bandwidth, read", f"{result.bandwidth.read_gb_s:.1f}", "GB/s"),
    ]
    if result.has_decode:
        cells += [("used by decode", result.bandwidth_percent.words(0), "%"), *_energy_cells(result)]
    threads, runs = counted(spec.threads, "thread"), counted(spec.repetitions, "repetition")
    title = (
        f"{bundle.manifest.model.name} {bundle.manifest.recipe.quant}, {bundle.manifest.engine}, "
        f"{threads}{_apart(spec)}, {runs}, on {found.facts['cpu_name']}"
    )
    lines = [
        title,
        terminal.table(cells, ["", "median [95 %]", ""]),
        *(f"! {line}" for line in remarks(result, found)),
    ]
    return "\n".join(lines)
