"""How often a classifier answers in the language model's place, how often it is right then, and how long it takes.

    python -m benchmarks.classifier TRAIN.jsonl TEST.jsonl [--requests 3000]

Each line of the files is {"text": …, "name": answer, …}: the answers of a closed set, each a task of its own. The
router of the same tasks is asked first, as on a device. A quarter of the answers is left out of a second fit of both:
whatever is answered to a request for one of those is wrong.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.router import LEFT_OUT, WARM, read
from fieldlm.formats.classifier import Classifier
from fieldlm.formats.router import Router
from fieldlm.inference.classifiers.closed_answers import classify_by
from fieldlm_compiler.learn.classifier import ClosedTask, closed_tasks, fit_classifier
from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.evaluate import Score
from fieldlm_compiler.learn.router import fit_router
from fieldlm_compiler.rounds.classifiers import SURE, calibrated


def fitted(rows: Sequence[tuple[str, str]]) -> Classifier:
    """Return the classifier of all answers in `rows` that have enough examples."""
    examples = [
        CuratedExample(
            messages=[{"role": "user", "content": text}], answer=json.dumps({"name": name}), label_source="large",
            session=f"s{at}", response=f"r{at}", split="train", task=name,
        )
        for at, (text, name) in enumerate(rows)
    ]  # fmt: skip
    found = closed_tasks(examples, sorted({name for _, name in rows}))
    made, why = calibrated(fit_classifier(examples, [each for each in found if isinstance(each, ClosedTask)]))
    if made is None:
        raise SystemExit(f"no classifier: {why}")
    return made


def told(rows: Sequence[tuple[str, str]]) -> Router:
    """Return the router of the tasks in `rows`, which a round puts beside a classifier."""
    return fit_router([text for text, _ in rows], [name for _, name in rows], {})


def asked(made: Classifier, router: Router, rows: Sequence[tuple[str, str]]) -> tuple[Score, Score]:
    """Return how many of `rows` are answered at all, and how many of those rightly."""
    found = [(classify_by(made, router, [{"role": "user", "content": text}]), name) for text, name in rows]
    given = [(each.answer.task, name) for each, name in found if each]
    return Score(right=len(given), total=len(rows)), Score(right=sum(a == b for a, b in given), total=len(given))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--requests", type=int, default=3000, help="to fit; all of the test file are asked")
    args = parser.parse_args(argv)
    train, test = read(args.train, args.requests), read(args.test, 1_000_000)
    began_s = time.perf_counter()
    made, router = fitted(train), told(train)
    fit_s = time.perf_counter() - began_s
    for text, _ in test[:WARM]:
        made.classify(text)
    began_s = time.perf_counter()
    given, right = asked(made, router, test)
    each_ms = 1000 * (time.perf_counter() - began_s) / len(test)
    always = [made.guess(text)[0] for text, _ in test]
    whole = Score(
        right=sum(a is not None and a.task == name for a, (_, name) in zip(always, test, strict=True)), total=len(test)
    )
    names = sorted({name for _, name in train})
    absent = set(random.Random(1).sample(names, len(names) // LEFT_OUT))
    known = [row for row in train if row[1] not in absent]
    strange, _ = asked(fitted(known), told(known), [row for row in test if row[1] in absent])
    print(
        f"{args.train.name}: {len(made.facts.answers)} answers, fitted to {len(train)} in {fit_s:.1f} s, "
        f"{len(made.packed()) // 1000} kB, {each_ms:.2f} ms a request\n"
        f"  answered where sure (wanted {SURE:.0%} right, p ≥ {made.facts.least:.3f}): {given}\n"
        f"  right of those: {right}; asked to answer everything: {whole}\n"
        f"  of requests for answers that were left out of the fit, answered all the same: {strange}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
