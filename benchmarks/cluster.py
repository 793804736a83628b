"""Tasks found without being told, held against their true names: adjusted Rand index, mutual information, kept ids.

    python -m benchmarks.cluster FOLDER/home-robot-train.jsonl FOLDER/banking77-train.jsonl

A line of a file is one request: its `text`, the `name` of what is asked for, and its `arguments` where there are any.
Each file is clustered as an engineer's log may look: prompts alone, prompts with calls whose functions have one name
("shapes"), and with full calls. Then a round with a fifth more requests, at once and after a round in which the rarest
task was absent: how many requests of the first round are still in a task of the same id. The names are used to judge
by, except in full calls, where they are part of the answers.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm.hardware.sensors import peak_rss_mb
from fieldlm_compiler.learn.cluster import cluster
from fieldlm_compiler.learn.curate import EXAMPLES, CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.embed import Embedder

Row = dict[str, Any]
VIEWS = ("prompts", "shapes", "calls")


def example(row: Row, number: int, view: str) -> CuratedExample:
    call = {"name": row["name"] if view == "calls" else "call", "arguments": row.get("arguments", {})}
    return CuratedExample(
        messages=[{"role": "user", "content": row["text"]}],
        answer="Done." if view == "prompts" else json.dumps(call),
        label_source="correction",
        session=f"s{number}",
        response=f"r{number}",
        split="train",
        consent="yes",
        generation="benchmark",
    )


def labels_of(folder: Path, rows: Sequence[Row], view: str, embedder: Embedder) -> list[str]:
    """Return the id of the task of each row, in a folder that may hold the tasks of an earlier round."""
    write_examples(folder / EXAMPLES, [example(row, number, view) for number, row in enumerate(rows)])
    cluster(folder, embedder=embedder)
    return [found.task for found in read_examples(folder)]


def judge(rows: list[Row], view: str, embedder: Embedder) -> Row:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    names = [row["name"] for row in rows]
    first = 5 * len(rows) // 6
    absent = Counter(names).most_common()[-1][0]
    with tempfile.TemporaryDirectory() as temporary:
        began_s = time.monotonic()
        whole = labels_of(Path(temporary), rows, view, embedder)
        took_s = time.monotonic() - began_s
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        before = labels_of(folder, rows[:first], view, embedder)
        more = labels_of(folder, rows, view, embedder)[:first]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        labels_of(folder, rows[:first], view, embedder)
        labels_of(folder, [row for row in rows[:first] if row["name"] != absent], view, embedder)
        again = labels_of(folder, rows, view, embedder)[:first]
    return {
        "view": view,
        "requests": len(rows),
        "true": len(set(names)),
        "found": len(set(whole)),
        "ari": round(float(adjusted_rand_score(names, whole)), 3),
        "nmi": round(float(normalized_mutual_info_score(names, whole)), 3),
        "more_kept": round(sum(a == b for a, b in zip(before, more, strict=True)) / first, 3),
        "absent_kept": round(sum(a == b for a, b in zip(before, again, strict=True)) / first, 3),
        "seconds": round(took_s, 1),
        "peak_mb": round(peak_rss_mb()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON Lines with text, name and, perhaps, arguments")
    parser.add_argument("--requests", type=int, default=6000, help="drawn from each file")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=VIEWS)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args(argv)
    embedder, results = Embedder(), list[Row]()
    for path in args.files:
        rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]
        rows = random.Random(0).sample(rows, min(args.requests, len(rows)))
        views = args.views if any("arguments" in row for row in rows) else ["prompts"]
        results += [{"file": path.stem, **judge(rows, view, embedder)} for view in views]
    table = terminal.table([tuple(map(str, row.values())) for row in results], tuple(results[0]))
    terminal.show({"results": results}, table, as_json=args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
