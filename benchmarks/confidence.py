"""Confidence: which signal tells right answers from wrong ones, and whether a bundle's own p(right) can be believed.

    python benchmarks/confidence.py --bundle BUNDLE --data task.jsonl --out results/confidence

The file has a conversation a line, {"messages": [...]}, the right answer last; the bundle must not have been tuned or
calibrated on it. --snips takes snips-test.jsonl (text, name, arguments a line) instead. Each is answered greedily, one
at a time, in the runtime's own engine; with --schema FILE in that JSON schema. What was answered is kept and reused.

For every signal: AUROC with its bootstrap interval; the expected calibration error of steps, cross-fitted; the
share of answers that may be taken for 95 and 98 % of those right, and the share that goes to a teacher who is always
right for 95 and 98 % of all. What may be taken for 95 % right are the calls that are saved, at no loss, beside a large
model that is right in 95 of 100. All thresholds are chosen on these answers. The last row is several signals together,
learned (`fieldlm compile --deferral learned`), each answer judged by a model that did not see it.

The last lines are the bundle's own calibration, made on other answers: its error here, and what its thresholds, chosen
there, come to here. With --fit N the first N answers are what one signal and several are calibrated to, as the compiler
does it, and the rest is what both are held against.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.snips import conversation
from fieldlm.core import terminal
from fieldlm.core.files import canonical_json, sha256_bytes, write_whole
from fieldlm.core.logs import to_terminal
from fieldlm.engines import Constraint, EngineOptions, Sampling, open_engine
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.confidence import Confidence, read_confidence
from fieldlm.inference.chat_template import render
from fieldlm.inference.confidence import BESIDE, SIGNALS, signals
from fieldlm.inference.structured import form
from fieldlm_compiler.verify.confidence import ACCURACIES, TaskAnswer, auroc, cross_fitted, ece, signals_of
from fieldlm_compiler.verify.deferral import fit_deferral, formed_table, left_out_chances, left_out_scores
from fieldlm_compiler.verify.task import is_same

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
SHOWN = ("mean_margin", *SIGNALS)
DRAWS = 1000


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, whether it is right, and what the engine said of how sure it was."""

    text: str
    right: bool
    signals: dict[str, float]


def answers(
    bundle: Bundle, rows: Sequence[dict[str, Any]], path: Path, *, threads: int, max_tokens: int, schema: Any
) -> list[Answered]:
    """Return the answers to `rows`: those that `path` holds, and the rest, which are added to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = (
        [msgspec.json.decode(line, type=Answered) for line in path.read_bytes().splitlines()] if path.exists() else []
    )
    if len(found) >= len(rows):
        return found[: len(rows)]
    engine = open_engine(bundle, EngineOptions(threads=threads, context=1024, parallel=1))
    adapter = bundle.path("adapter")
    if adapter is not None:
        engine.load_adapter("adapter", adapter)
    constraint: Constraint | None = form(engine, schema).constraint if schema else None
    sampling = Sampling(max_tokens=max_tokens, constraint=constraint)
    with path.open("ab") as file, terminal.progress(f"answer {len(rows) - len(found)} questions"):
        for row in rows[len(found) :]:
            prompt = engine.tokenize(render(bundle, row["messages"][:-1]))
            running = engine.start(prompt, sampling, adapter="adapter" if adapter else None)
            text = "".join(chunk.text for chunk in running)
            right = is_same(text, row["messages"][-1]["content"])
            found.append(Answered(text=text, right=right, signals=signals_of(signals(running.timings))))
            file.write(msgspec.json.encode(found[-1]) + b"\n")
            file.flush()
    engine.close()
    return found


def taken(values: Numbers, right: Flags, accuracy: float) -> float:
    """Return the largest share of answers, the surest first, of which `accuracy` are right."""
    hits = np.cumsum(right[np.argsort(-values, kind="stable")])
    counts = np.arange(1, right.size + 1)
    return float(max(counts[hits >= accuracy * counts - 1e-9], default=0) / right.size)


def escalated(values: Numbers, right: Flags, accuracy: float) -> float:
    """Return the least share that a perfect teacher has to answer, the least sure first, for `accuracy` of all."""
    wrong = right.size - right.sum()
    fixed = np.concatenate([[0], np.cumsum(~right[np.argsort(values, kind="stable")])])
    enough = np.flatnonzero(right.size - wrong + fixed >= accuracy * right.size - 1e-9)
    return float(enough[0] / right.size)


def measure(name: str, values: Numbers, right: Flags, held: Numbers) -> dict[str, Any]:
    """Return what the signal `values` is worth; `held` is p of each answer by steps that did not see it."""
    dice = np.random.default_rng(0)
    draws = [dice.integers(0, right.size, right.size) for _ in range(DRAWS)]
    low, high = np.quantile([auroc(values[draw], right[draw]) for draw in draws], [0.025, 0.975])
    return {
        "signal": name,
        "auroc": auroc(values, right),
        "low": float(low),
        "high": float(high),
        "ece": ece(held, right),
        "taken": [taken(values, right, each) for each in ACCURACIES],
        "escalated": [escalated(values, right, each) for each in ACCURACIES],
    }


def measured(said: Sequence[Answered]) -> list[dict[str, Any]]:
    """Return what each signal is worth, and several that are weighed together."""
    right = np.array([each.right for each in said])
    table = {name: np.array([each.signals[name] for each in said]) for name in SHOWN}
    found = [measure(name, values, right, cross_fitted({name: values}, right)) for name, values in table.items()]
    several = formed_table(task_answers(said))
    scores = left_out_scores(several, right)
    return [*found, measure("learned", scores, right, left_out_chances(several, right))]


def task_answers(said: Sequence[Answered]) -> list[TaskAnswer]:
    return [TaskAnswer(right=each.right, signals=each.signals) for each in said]


def held_against(found: Confidence, said: Sequence[Answered], name: str) -> Iterator[str]:
    """Yield what a calibration that was made on other answers comes to on those that were `said`."""
    p = np.array([found.chance(dict[str, float | None](each.signals)) for each in said], np.float64)
    yield from own_figures(name, found, p, np.array([each.right for each in said]))


def own_figures(name: str, found: Confidence, p: Numbers, right: Flags) -> Iterator[str]:
    """Yield what the calibration `name`, made on other answers, comes to on these."""
    dice = np.random.default_rng(0)
    chance = float(np.mean([ece(p, dice.random(p.size) < p) for _ in range(DRAWS)]))
    found_here = f"AUROC {auroc(p, right):.3f}, ECE {ece(p, right):.3f} ({chance:.3f} by chance alone)"
    yield f"{name}: {found_here}"
    for accuracy in (0.9, *ACCURACIES):
        alone, helped = found.threshold(accuracy), found.threshold(accuracy, teacher=1.0)
        sure, kept = p >= alone.p, p >= helped.p
        yield (
            f"  threshold for {100 * accuracy:.0f} % alone, p ≥ {alone.p:.3f}: {100 * sure.mean():.1f} % taken "
            f"(foreseen {100 * alone.share:.1f}), {100 * right[sure].mean() if sure.any() else 0:.1f} % of them right"
        )
        yield (
            f"  threshold for {100 * accuracy:.0f} % with a perfect teacher, p ≥ {helped.p:.3f}: "
            f"{100 - 100 * kept.mean():.1f} % escalated (foreseen {100 - 100 * helped.share:.1f}), "
            f"{100 * (right | ~kept).mean():.1f} % of all right"
        )


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (args.data or args.snips).read_text().splitlines() if line.strip()]
    return [row if args.data else conversation(row) for row in rows[args.skip :][: args.count or None]]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="conversations, the right answer last")
    source.add_argument("--snips", type=Path, help="snips-test.jsonl")
    parser.add_argument("--schema", type=Path, help="a JSON schema that every answer keeps to")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="how many; 0: all")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fit", type=int, default=0, metavar="N", help="calibrate to the first N, judge by the rest")
    parser.add_argument("--out", type=Path, default=Path("build/confidence"))
    return parser.parse_args()


def main() -> None:
    to_terminal()
    args = parsed()
    bundle, rows = open_bundle(args.bundle), rows_of(args)
    schema = json.loads(args.schema.read_bytes()) if args.schema else None
    asked = sha256_bytes(canonical_json([bundle.id, rows, schema, args.max_tokens, [*SIGNALS, *BESIDE]]))[:12]
    path = args.out / f"answers-{asked}.jsonl"
    said = answers(bundle, rows, path, threads=args.threads, max_tokens=args.max_tokens, schema=schema)
    judged = said[args.fit :]
    found = measured(judged)
    header = ("signal", "AUROC", "95 % interval", "ECE", "taken for 95/98 % right", "escalated for 95/98 % of all")
    lines = [
        (r["signal"], f"{r['auroc']:.3f}", f"{r['low']:.3f}–{r['high']:.3f}", f"{r['ece']:.3f}",
         " / ".join(f"{100 * x:.0f} %" for x in r["taken"]), " / ".join(f"{100 * x:.0f} %" for x in r["escalated"]))
        for r in found
    ]  # fmt: skip
    share = sum(each.right for each in judged) / len(judged)
    print(f"{len(judged)} answers of {bundle.generation}, {100 * share:.1f} % right")
    print(terminal.table(lines, header))
    own = bundle.path("confidence")
    calibration = read_confidence(own.read_bytes(), what=str(own)) if own else None
    if calibration and calibration.steps:
        print("\n".join(held_against(calibration, judged, f"the bundle's own p by {calibration.signal}")))
    for deferral in ("threshold", "learned") if args.fit else ():
        fitted = msgspec.convert(fit_deferral(task_answers(said[: args.fit]), deferral), Confidence)
        print("\n".join(held_against(fitted, judged, f"{deferral}, fitted to the first {args.fit}")))
        if fitted.deferral:
            print(f"  {fitted.deferral}")
    write_whole(args.out / f"results-{asked}.json", canonical_json(found))


if __name__ == "__main__":
    main()
