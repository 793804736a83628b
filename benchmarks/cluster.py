"""Tasks found without being told, held against their true names: adjusted Rand index, mutual information, kept ids.

    python -m benchmarks.cluster FOLDER/home-robot-train.jsonl FOLDER/banking77-train.jsonl

A line of a file is one request: its `text`, the `name` of what is asked for, and its `arguments` where there are any.
Each file is clustered as an engineer's log may look: prompts alone, prompts with calls whose functions have one name
("shapes"), and with full calls. Then three second rounds in the folder of a first one: with a fifth more requests, with
the same after a round in which the rarest task was absent, and with half of the largest task changed in its wording
("split"): how many requests of the first round are still in a task of the same id. The names are used to judge by,
except in full calls, where they are part of the answers. A name's part before "_" is its scenario, where files have
fewer of those than names; `scenarios` is their adjusted Rand index.

    python -m benchmarks.cluster --records 100000 FOLDER/home-robot-train.jsonl

embeds and clusters as many distinct requests, made of the file's by changing words, and prints seconds and memory.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm.hardware.sensors import peak_rss_mb
from fieldlm_compiler.learn.cluster import cluster
from fieldlm_compiler.learn.curated import EXAMPLES, CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.embed import Embedder
from fieldlm_compiler.learn.streamed.on_ray import check_cluster, on_cluster
from fieldlm_compiler.learn.tasks import TASKS, read_round
from fieldlm_compiler.pipeline.ray_cluster import connected

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


def kept(rounds: Sequence[Sequence[Row]], view: str, embedder: Embedder) -> float:
    """Return the share of the first round's requests that the last round has under the same id, by their text."""
    with tempfile.TemporaryDirectory() as temporary:
        found = [labels_of(Path(temporary), rows, view, embedder) for rows in rounds]
    last = {row["text"]: label for row, label in zip(rounds[-1], found[-1], strict=True)}
    same = [last[row["text"]] == label for row, label in zip(rounds[0], found[0], strict=True) if row["text"] in last]
    return round(sum(same) / len(same), 3)


def judge(rows: list[Row], view: str, embedder: Embedder) -> Row:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    names = [row["name"] for row in rows]
    above = [name.partition("_")[0] for name in names]
    with tempfile.TemporaryDirectory() as temporary:
        began_s = time.monotonic()
        whole = labels_of(Path(temporary), rows, view, embedder)
        took_s = time.monotonic() - began_s
        scenario = {task.id: task.scenario for task in read_round(Path(temporary) / TASKS).tasks}
    first = rows[: 5 * len(rows) // 6]
    (largest, _), *_, (absent, _) = Counter(names).most_common()
    without = [row for row in first if row["name"] != absent]
    # Half of the largest task goes on to be another one: what was asked before stays, and as much of a new kind comes.
    more = [row | {"text": f"{row['text']} in the garden shed at night"} for row in rows if row["name"] == largest]
    has_scenarios = 1 < len(set(above)) < len(set(names)) / 2
    return {
        "view": view,
        "requests": len(rows),
        "true": len(set(names)),
        "found": len(set(whole)),
        "ari": round(float(adjusted_rand_score(names, whole)), 3),
        "nmi": round(float(normalized_mutual_info_score(names, whole)), 3),
        "scenarios": round(float(adjusted_rand_score(above, [scenario[task] for task in whole])), 3)
        if has_scenarios
        else "",
        "more_kept": kept([first, rows], view, embedder),
        "absent_kept": kept([first, without, rows], view, embedder),
        "split_kept": kept([first, [*first, *more]], view, embedder),
        "seconds": round(took_s, 1),
        "peak_mb": round(peak_rss_mb()),
    }


def distinct(rows: list[Row], records: int) -> Iterator[Row]:
    """Yield `records` distinct requests, made of `rows` by changing a word of each."""
    dice = random.Random(0)
    words = sorted({word for row in rows for word in row["text"].split()})
    for number in range(records):
        row = rows[number % len(rows)]
        said = row["text"].split()
        if number >= len(rows):
            said[dice.randrange(len(said))] = dice.choice(words)
        yield {"name": row["name"], "text": " ".join([*said, str(number)])}


def measure(rows: list[Row], records: int, embedder: Embedder, ray: str | None) -> Row:
    """Return seconds and memory of `records` distinct requests."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = (example(row, number, "prompts") for number, row in enumerate(distinct(rows, records)))
        write_examples(folder / EXAMPLES, made)
        began_s = time.monotonic()
        with connected(ray):
            if ray:
                check_cluster()
            found = cluster(folder, embedder=embedder, run=on_cluster if ray else None)
        took_s = time.monotonic() - began_s
    return {"records": records, "found": len(found), "seconds": round(took_s, 1), "peak_mb": round(peak_rss_mb())}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON Lines with text, name and, perhaps, arguments")
    parser.add_argument("--requests", type=int, default=6000, help="drawn from each file")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=VIEWS)
    parser.add_argument("--records", type=int, default=0, help="measure the time of so many, and nothing else")
    parser.add_argument("--ray", metavar="ADDRESS", help="with --records: let a Ray cluster take part")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args(argv)
    embedder, results = Embedder(), list[Row]()
    for path in args.files:
        rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]
        if args.records:
            results.append({"file": path.stem, **measure(rows, args.records, embedder, args.ray)})
            continue
        rows = random.Random(0).sample(rows, min(args.requests, len(rows)))
        views = args.views if any("arguments" in row for row in rows) else ["prompts"]
        results += [{"file": path.stem, **judge(rows, view, embedder)} for view in views]
    table = terminal.table([tuple(map(str, row.values())) for row in results], tuple(results[0]))
    terminal.show({"results": results}, table, as_json=args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
