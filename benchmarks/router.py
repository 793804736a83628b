"""How well a router knows tasks and what is none of them, and how long it takes: on labelled requests, on this machine.

    python -m benchmarks.router TRAIN.jsonl TEST.jsonl [--requests 4000]

Each line of the files is {"text": …, "name": task, …}. A quarter of the tasks is left out to see what is told apart.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fieldlm_compiler.learn.router import fit_router

LEFT_OUT = 4  # one task in so many
WARM = 50


def read(path: Path, most: int) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    random.Random(0).shuffle(rows)
    return [(row["text"], row["name"]) for row in rows[:most]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--requests", type=int, default=4000, help="to fit, and half as many to ask")
    args = parser.parse_args(argv)
    from sklearn.metrics import roc_auc_score

    train, test = read(args.train, args.requests), read(args.test, args.requests // 2)
    began_s = time.perf_counter()
    router = fit_router([text for text, _ in train], [task for _, task in train], {})
    fit_s = time.perf_counter() - began_s
    for text, _ in test[:WARM]:
        router.task(text)
    began_s = time.perf_counter()
    found = [router.task(text) for text, _ in test]
    each_ms = 1000 * (time.perf_counter() - began_s) / len(test)
    best = [router.tasks[int(router.chances(text).argmax())] for text, _ in test]
    right = np.mean([guess == task for guess, (_, task) in zip(best, test, strict=True)])
    tasks = sorted({task for _, task in train})
    absent = set(random.Random(1).sample(tasks, len(tasks) // LEFT_OUT))
    known = [(text, task) for text, task in train if task not in absent]
    other = fit_router([text for text, _ in known], [task for _, task in known], {})
    is_absent = [task in absent for _, task in test]
    chances = [float(other.chances(text).max()) for text, _ in test]
    refused = np.array(chances) < other.least
    print(
        f"{args.train.name}: {len(tasks)} tasks, fitted to {len(train)} in {fit_s:.1f} s, "
        f"{len(router.packed()) // 1000} kB\n"
        f"  {right:.1%} of {len(test)} test requests get their task, {np.mean([t is None for t in found]):.1%} none; "
        f"{each_ms:.2f} ms each\n"
        f"  a quarter of the tasks left out: AUROC {roc_auc_score(is_absent, [-c for c in chances]):.3f}, told apart "
        f"{refused[is_absent].mean():.1%}, known ones refused {refused[~np.array(is_absent)].mean():.1%}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
