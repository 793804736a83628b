"""Serving, measured against what it has to beat: llama-server, llama-bench and onnxruntime-genai.

    make anchors
    python -m benchmarks.serving --json build/serving.json
    python -m benchmarks.serving --rows decode,ttft --rounds 5 --data FOLDER

Both sides run the same GGUF with the same threads, turn by turn in one run, so that what else the machine does hits
both; what counts is the median of the rounds' ratios with its 95 % interval. A row that is in the JSON file already,
with the same settings, is not measured again; remove the file to start afresh. FOLDER holds snips-train.jsonl and
snips-test.jsonl; without it the calls are orders at a kiosk.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import anchors, serving_engine, serving_lookup, serving_models, serving_onnx, serving_rows
from benchmarks.serving_calls import Calls, kiosk, snips
from benchmarks.serving_rows import Figure, Job
from benchmarks.serving_sides import Setting
from fieldlm.bench.environment import EnvironmentSample, environment, moment, steal_percent
from fieldlm.core import terminal
from fieldlm.core.errors import FieldlmError, InputError
from fieldlm.core.files import cache_root, canonical_json, write_whole
from fieldlm.core.logs import logger, to_terminal
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.hardware.cores import physical_cores
from fieldlm.hardware.detect import detect
from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL
from fieldlm_compiler.compile.build import compile_model

log = logger(__name__)

ROWS: dict[str, Callable[[Job], list[Figure]]] = {
    "decode": serving_rows.decode,
    "http": serving_rows.http_decode,
    "throughput": serving_rows.throughput,
    "ttft": serving_rows.ttft,
    "calls": serving_rows.calls,
    "prediction": serving_lookup.prediction,
    "neighbours": serving_rows.neighbours,
    "onnx": serving_onnx.decode,
    "adapters": serving_engine.adapters,
    "memory": serving_engine.memory,
    "stop": serving_engine.stop,
    "start": serving_engine.start,
    "several": serving_models.several,
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row as it was measured, or why it was not; `settings` are what makes it comparable."""

    settings: dict[str, Any]
    figures: tuple[Figure, ...] = ()
    skipped: str = ""
    seconds: float = 0.0
    before: EnvironmentSample | None = None
    after: EnvironmentSample | None = None


class Report(msgspec.Struct, kw_only=True):
    """What the JSON file holds."""

    environment: dict[str, Any]
    rows: dict[str, Row]


def default_bundle() -> Path:
    """Compile the embedded default model for this machine as Q8_0, or take what was compiled."""
    profile = detect().best
    folder = cache_root() / "bench" / f"default-q8_0-{profile.id}"
    if not (folder / "manifest.json").exists():
        key = load_or_create_key(cache_root() / "bench" / "signing.pem")
        compile_model(DEFAULT_MODEL, profile=profile, out=folder, key=key, quants=("Q8_0",))
    return folder


def measure(name: str, bundle: Bundle, args: argparse.Namespace, calls: Calls, settings: dict[str, Any]) -> Row:
    """Measure one row; what is missing, or refused by one side, is a row that says so."""
    folder = cache_root() / "bench" / "work"
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(bundle=bundle, folder=folder, threads=args.threads, context=args.context)
    before, started_s = moment(), time.monotonic()
    skipped, figures = "", list[Figure]()
    with terminal.progress(name) as line:
        try:
            figures = ROWS[name](Job(setting, args.rounds, args.tokens, calls, line))
        except FieldlmError as error:
            skipped = str(error)
            line.note = f"skipped: {skipped}"
    return Row(
        settings=settings,
        figures=tuple(figures),
        skipped=skipped,
        seconds=time.monotonic() - started_s,
        before=before,
        after=moment(),
    )


def verdict(figure: Figure) -> str:
    low, high = figure.value.low, figure.value.high
    if low is None or high is None:  # one run says nothing of its error
        return "yes, within the noise" if figure.holds else "no"
    sure = low >= figure.bound if figure.at_least else high <= figure.bound
    return "yes" if sure else "yes, within the noise" if figure.holds else "no"


def describe(report: Report) -> str:
    """Lay the rows out for people."""
    header = ("what", "median [95 %]", "wanted", "holds")
    lines: list[tuple[str, str, str, str]] = []
    notes: list[str] = []
    for name, row in report.rows.items():
        for figure in row.figures:
            sign = "≥" if figure.at_least else "≤"
            wanted = f"{sign} {figure.bound:g} {figure.unit}"
            lines.append((figure.what, f"{figure.value.words(2)} {figure.unit}", wanted, verdict(figure)))
            notes += [f"! {name}: {figure.note}"] * bool(figure.note)
        if row.skipped:
            notes.append(f"! {name} skipped: {row.skipped}")
        elif row.before and row.after and (stolen := steal_percent(row.before, row.after)) > 2:
            notes.append(f"! {name}: the hypervisor took {stolen:.0f} % of the CPU; both sides lost by it")
    return "\n".join([terminal.table(lines, header), *notes])


def load(path: Path) -> dict[str, Row]:
    """Return the rows of an earlier run; raises InputError when the file is something else."""
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report).rows
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is not a report of this program ({error}); remove it or name another") from error


def run(args: argparse.Namespace) -> Report:
    """Measure what is asked for and not there yet; the file is written after every row."""
    rows = load(args.json)
    bundle = open_bundle(args.bundle or default_bundle())
    calls = snips(args.data) if args.data else kiosk()
    facts: dict[str, Any] = {"bundle": bundle.generation, **environment(detect())}
    try:
        facts["anchors"] = anchors.facts()
    except FieldlmError as error:
        log.info(f"{error}")
    report = Report(environment=facts, rows=rows)
    settings = {name: getattr(args, name) for name in ("rounds", "threads", "tokens", "context")}
    settings |= {"bundle": bundle.generation, "calls": calls.name}
    for name in args.rows.split(","):
        known = rows.get(name)
        if known and known.figures and known.settings == settings:
            log.info(f"  ✓ {name}: taken from {args.json}")
            continue
        rows[name] = measure(name, bundle, args, calls, settings)
        write_whole(args.json, canonical_json(report))
    return report


def main(argv: Sequence[str]) -> int:
    to_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer where decoding is measured")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=0, help="of both sides; default: the profile's")
    parser.add_argument("--bundle", type=Path, help="a compiled GGUF bundle; default: the embedded model as Q8_0")
    parser.add_argument("--data", type=Path, help="folder with the SNIPS files")
    parser.add_argument("--json", type=Path, default=Path("build/serving.json"))
    args = parser.parse_args(argv)
    if unknown := set(args.rows.split(",")) - set(ROWS):
        parser.error(f"no row is called {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    for name in ("rounds", "tokens", "context"):
        if getattr(args, name) < (2 if name == "tokens" else 1):
            parser.error(f"--{name} is {getattr(args, name)}; it is too small")
    args.threads = args.threads or max(1, min(detect().best.cpu.decode_threads, physical_cores()))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = run(args)
    except FieldlmError as error:
        log.info(f"serving: {error}")
        return error.exit_code
    print(describe(report))
    return 0 if all(figure.holds for row in report.rows.values() for figure in row.figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
