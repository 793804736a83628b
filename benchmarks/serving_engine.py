"""Rows that look at memory and at single moments: adapters, resident memory, cancel and deadline, start."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_rows import Figure, Job, alternate, ratio, story
from benchmarks.serving_sides import Setting, fieldlm_server, llama_server
from fieldlm.bench.result import interval
from fieldlm.core.errors import EngineError
from fieldlm.engines import Engine, EngineOptions, RunningAnswer, Sampling, Schedule, open_engine
from fieldlm.formats.bundle import open_bundle
from fieldlm.hardware.sensors import rss_mb
from tests.support.adapter_steps import write_adapter

ADAPTERS = 8
RANK = 16
LONG_PROMPT = 2000  # tokens
STOPS = 100  # of each kind; a 99th percentile needs as many
SWITCHES = 60
SHORT = Sampling(max_tokens=2, ignore_eos=True)


def memory(job: Job) -> list[Figure]:
    """Resident memory after one answer, against llama-server with the same context."""
    ours: list[float] = []
    theirs: list[float] = []
    for turn in job.each_round():
        with fieldlm_server(job.setting) as mine, llama_server(job.setting) as other:
            for server, found in ((mine, ours), (other, theirs)):
                server.chat(story(turn, 16))
                found.append(server.rss_mb())
        job.progress.update(turn + 1)
    more = [a - b for a, b in zip(ours, theirs, strict=True)]
    return [
        Figure(
            what="resident memory above llama-server's", value=interval(more), bound=60.0, at_least=False, unit="MB",
            ours=tuple(ours), theirs=tuple(theirs),
        )
    ]  # fmt: skip


def start(job: Job) -> list[Figure]:
    """From the start of the process until the server says that it can answer; the files are in the page cache."""

    def ours(_: int) -> float:
        with fieldlm_server(job.setting) as server:
            return server.ready_s

    def theirs(_: int) -> float:
        with llama_server(job.setting) as server:
            return server.ready_s

    mine, other = alternate(job, [ours, theirs])
    return [ratio("process start to ready / llama-server", mine, other, 1.5, at_least=False)]


def stop(job: Job) -> list[Figure]:
    """From cancel, or from the deadline, to the end of an answer whose prompt is being computed."""
    setting = job.setting
    engine = open_engine(
        setting.bundle, EngineOptions(threads=setting.threads or None, context=LONG_PROMPT + 64, parallel=1)
    )
    try:
        pool = _pool(engine)
        figures = [
            _longest("cancel", [_stopped(engine, pool, job, by_deadline=False) for _ in range(STOPS)]),
            _longest("deadline", [_stopped(engine, pool, job, by_deadline=True) for _ in range(STOPS)]),
        ]
    finally:
        engine.close()
    return figures


def _longest(what: str, waits_ms: Sequence[float]) -> Figure:
    """Return the 99th percentile, with the interval a bootstrap over all waits gives it."""
    values = np.asarray(waits_ms)
    drawn = np.percentile(np.random.default_rng(0).choice(values, (2000, len(values))), 99, axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    value = interval([float(np.percentile(values, 99))])
    return Figure(
        what=f"{what} to a free engine, prefill of {LONG_PROMPT} tokens, p99",
        value=type(value)(median=value.median, low=float(low), high=float(high), samples=value.samples),
        bound=30.0,
        at_least=False,
        unit="ms",
        ours=tuple(waits_ms),
    )


def _stopped(engine: Engine, pool: Sequence[int], job: Job, *, by_deadline: bool) -> float:
    """Stop an answer at a moment of its prefill; return the milliseconds until its last chunk."""
    after_s = random.uniform(0.02, 0.4)
    terms = Schedule(deadline_s=after_s) if by_deadline else Schedule()
    started_s = time.monotonic()
    generation = engine.start(random.choices(pool, k=LONG_PROMPT), SHORT, terms=terms)
    if not by_deadline:
        time.sleep(after_s)
        generation.cancel()
        after_s = time.monotonic() - started_s
    outcome = _finish(generation)
    if outcome not in ("cancelled", "deadline_exceeded"):
        raise EngineError(
            f"the prompt was computed before it could be stopped ({outcome}); this row needs a slower one"
        )
    job.progress.advance()
    return 1000 * max(0.0, time.monotonic() - started_s - after_s)


def adapters(job: Job) -> list[Figure]:
    """Eight adapters on one base, against eight merged models: each side in a process of its own."""
    path = job.setting.folder / f"adapter-r{RANK}.gguf"
    if not path.exists():
        # A merged model has the base's own shape and speed.
        write_adapter(job.setting.gguf, path, rank=RANK, spread=0.002)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for turn in job.each_round():
        ours.append(_child("adapters", job.setting, path, job.tokens))
        theirs.append(_child("merged", job.setting, path, job.tokens))
        job.progress.update(turn + 1)

    def series(found: Sequence[dict[str, float]], name: str) -> list[float]:
        return [values[name] for values in found]

    switch = interval(series(ours, "switch_ms"))
    return [
        ratio("memory of 8 adapters / 8 merged models", series(ours, "mb"), series(theirs, "mb"), 0.25, at_least=False),
        Figure(what="adapter switch, p50", value=switch, bound=5.0, at_least=False, unit="ms", ours=switch.samples),
        ratio("decode with an adapter / merged", series(ours, "tokens_s"), series(theirs, "tokens_s"), 0.9),
        ratio("4 answers, 4 adapters / 4 of a merged model", series(ours, "four_s"), series(theirs, "four_s"), 0.8),
    ]


def _child(kind: str, setting: Setting, adapter: Path, tokens: int) -> dict[str, float]:
    arguments = [kind, str(setting.bundle.folder), str(adapter), str(setting.threads), str(tokens)]
    command = [sys.executable, "-m", "benchmarks.serving_engine", *arguments]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode != 0:
        raise EngineError(f"{kind}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return json.loads(done.stdout)


def _pool(engine: Engine) -> list[int]:
    text = "".join(map(chr, range(33, 127))) + " the of and to in is that it was for on are with as his they be at one"
    return sorted(set(engine.tokenize(text)) - engine.stop_tokens)


def _finish(generation: RunningAnswer) -> str | None:
    return [chunk.outcome for chunk in generation][-1]


def _speed(engine: Engine, pool: Sequence[int], tokens: int, adapter: str | None) -> float:
    generation = engine.start(random.choices(pool, k=4), Sampling(max_tokens=tokens, ignore_eos=True), adapter=adapter)
    _finish(generation)
    return (generation.timings.completion_tokens - 1) / generation.timings.decode_s


def _speed_of_four(folder: Path, adapter: Path | None, threads: int, tokens: int) -> float:
    """Return the tokens a second of four answers at a time, each with an adapter of its own, or all with none."""
    bundle, options = (
        open_bundle(folder, digests=False),
        EngineOptions(threads=threads or None, context=512, parallel=4),
    )
    engine = open_engine(bundle, options)
    names = [f"adapter-{i}" for i in range(4)] if adapter else [None] * 4
    for name in filter(None, names):
        engine.load_adapter(name, adapter or folder)
    pool, speeds = _pool(engine), list[float]()
    for _ in range(3):
        started_s = time.monotonic()
        answers = [
            engine.start(random.choices(pool, k=4), Sampling(max_tokens=tokens, ignore_eos=True), adapter=name)
            for name in names
        ]
        for answer in answers:
            _finish(answer)
        speeds.append(sum(answer.timings.completion_tokens for answer in answers) / (time.monotonic() - started_s))
    engine.close()
    return float(np.median(speeds))


def _answer_ms(engine: Engine, pool: Sequence[int], adapter: str) -> float:
    started_s = time.monotonic()
    _finish(engine.start(random.choices(pool, k=2), Sampling(max_tokens=1, ignore_eos=True), adapter=adapter))
    return 1000 * (time.monotonic() - started_s)


def measure_adapters(folder: Path, adapter: Path, threads: int, tokens: int) -> dict[str, Any]:
    """Serve one base with all adapters; a switch costs what an answer takes longer after another adapter's."""
    engine = open_engine(
        open_bundle(folder, digests=False), EngineOptions(threads=threads or None, context=512, parallel=1)
    )
    names = [f"adapter-{i}" for i in range(ADAPTERS)]
    for name in names:
        engine.load_adapter(name, adapter)
    pool = _pool(engine)
    speeds = [_speed(engine, pool, tokens, names[0]) for _ in range(3)]
    stay, change = ([] for _ in range(2))
    for i in range(SWITCHES):
        change.append(_answer_ms(engine, pool, names[i % ADAPTERS]))
        stay.append(_answer_ms(engine, pool, names[i % ADAPTERS]))
    found = {"mb": rss_mb(), "tokens_s": float(np.median(speeds))}
    engine.close()
    four_s = _speed_of_four(folder, adapter, threads, tokens)
    return {**found, "switch_ms": float(np.median(change) - np.median(stay)), "four_s": four_s}


def measure_merged(folder: Path, threads: int, tokens: int) -> dict[str, Any]:
    bundle = open_bundle(folder, digests=False)
    engines = [
        open_engine(bundle, EngineOptions(threads=threads or None, context=512, parallel=1)) for _ in range(ADAPTERS)
    ]
    speeds = [_speed(engines[0], _pool(engines[0]), tokens, None) for _ in range(3)]
    found = {"mb": rss_mb(), "tokens_s": float(np.median(speeds))}
    for engine in engines:
        engine.close()
    return {**found, "four_s": _speed_of_four(folder, None, threads, tokens)}


def main(argv: Sequence[str]) -> int:
    """Measure one side of the adapters' row, in a process of its own."""
    kind, folder, adapter, threads, tokens = argv
    if kind == "adapters":
        found = measure_adapters(Path(folder), Path(adapter), int(threads), int(tokens))
    else:
        found = measure_merged(Path(folder), int(threads), int(tokens))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
