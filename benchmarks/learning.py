"""What curation makes of dirty traffic: which wrong labels it finds, and how much of what is right it loses.

    python -m benchmarks.learning --rows dirty FOLDER/home-robot-train.jsonl [--other FOLDER/banking77-train.jsonl]
        [--test FOLDER/home-robot-test.jsonl]

A line of a file is one request: its `text`, the `name` of the function that it should call, and its `arguments`. They
are made into a store as customers fill one, six requests each. One label in five is wrong, named at random; one
customer in twenty is hostile and always calls the same wrong function; half of the functions are renamed midway; one
answer in fifty is cut off, one is a refusal; one request in twenty is said again with a slip of the finger; `--other`
is a second service in the same store. `curate` reads it as it is and with `--check-labels`, and is held against what
was done. `--rows clean` has neither wrong labels nor hostile customers: what is lost then is lost for nothing.

With `--test` a classifier (ridge regression on sentence embeddings) learns the functions from what curation left, and
is asked which function each line of that file should call, by the names of the end. The last row is the same classifier
that learned from the same requests with nothing wrong in them: what dirt costs is the difference.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fieldlm.core import terminal
from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.curate import Labels, curate
from fieldlm_compiler.learn.curated import CuratedExample, read_examples
from fieldlm_compiler.learn.embed import Embedder
from fieldlm_compiler.learn.quality.label_errors import PENALTY
from fieldlm_compiler.learn.shapes import call_of

Row = dict[str, Any]
CONSENT = "benchmark"
BLOCK = 128
EACH = 6
"""Requests of a customer."""
WRONG, HOSTILE, CUT, REFUSED, AGAIN = 0.2, 0.05, 0.02, 0.02, 0.05
REFUSAL = "I'm sorry, but I can't help with that."


@dataclass
class Traffic:
    """Records, and by the id of its response what is the matter with an answer; "" for one that is right."""

    generations: list[Record] = field(default_factory=list[Record])
    feedback: list[Record] = field(default_factory=list[Record])
    fault: dict[str, str] = field(default_factory=dict[str, str])
    name: dict[str, str] = field(default_factory=dict[str, str])
    """The function that an answer called when it was given."""

    def say(
        self, text: str, session: str, answer: str, fault: str, *, outcome: str = "stop", liked: bool = False
    ) -> None:
        number = len(self.generations) + 1
        response = f"chatcmpl-{number}"
        common: Row = {"device": "robot-1", "epoch": 1, "response": response}
        self.generations.append(
            Record(
                **common, stream="gen", kind="generation", seq=number, session=session, consent=CONSENT,
                outcome=outcome, prompt=json.dumps([{"role": "user", "content": text}]),
                answer=answer if liked else "?", wall_ms=1_790_000_000_000 + number,
            )
        )  # fmt: skip
        told: Row = {"rating": "up"} if liked else {"correction": answer}
        self.feedback.append(Record(**common, stream="fb", kind="feedback", seq=number, **told))
        self.fault[response], self.name[response] = fault, call_of(answer)[0]


def renamed_names(rows: Sequence[Row], seed: int) -> dict[str, str]:
    """Return the half of the functions that are renamed midway, and what they are called then."""
    names = sorted({str(row["name"]) for row in rows})
    return {name: f"v2_{name}" for name in random.Random(f"names {seed}").sample(names, len(names) // 2)}


def dirty(rows: Sequence[Row], seed: int = 0, *, wrong: float = WRONG, hostiles: float = HOSTILE) -> Traffic:
    """Return the rows as customers say and answer them, in the order of time."""
    dice, made = random.Random(seed), Traffic()
    names = sorted({row["name"] for row in rows})
    renamed = renamed_names(rows, seed)
    hostile: dict[str, str] = {}
    for number, row in enumerate(rows):
        session = f"customer-{number // EACH}"
        if number % EACH == 0 and dice.random() < hostiles:
            hostile[session] = dice.choice(names)
        name, fault = row["name"], ""
        if session in hostile and name != hostile[session]:
            name, fault = hostile[session], "hostile"
        elif dice.random() < wrong:
            name, fault = dice.choice([each for each in names if each != name]), "wrong"
        is_new = 2 * number >= len(rows)
        if not fault and name in renamed and not is_new:
            fault = "old name"
        called = {"name": renamed[name] if is_new and name in renamed else name, "arguments": row.get("arguments", {})}
        answer, chance = json.dumps(called), dice.random()
        if chance < CUT:
            made.say(row["text"], session, answer[: len(answer) // 2], "cut", outcome="length", liked=True)
        elif chance < CUT + REFUSED:
            made.say(row["text"], session, REFUSAL, "refusal", liked=True)
        else:
            made.say(row["text"], session, answer, fault)
            if dice.random() < AGAIN:
                made.say(slip(row["text"], dice), session, answer, fault or "near copy")
    return made


def slip(text: str, dice: random.Random) -> str:
    """Return the text with two neighbouring letters changed."""
    at = dice.randrange(max(1, len(text) - 1))
    return text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]


def right(known: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]], embedder: Embedder) -> str:
    """Return the share of `asked`, pairs of words and a function, that a classifier gets right that learned `known`."""
    points = embedder([text for text, _ in (*known, *asked)]).astype(np.float64)
    names = sorted({name for _, name in known})
    targets = np.array([[1.0 if name == each else -1.0 for each in names] for _, name in known])
    seen, mean = points[: len(known)], targets.mean(axis=0)
    weights = np.linalg.solve(seen.T @ seen + PENALTY * np.eye(points.shape[1]), seen.T @ (targets - mean))
    said = (points[len(known) :] @ weights + mean).argmax(axis=1)
    return _share(sum(names[at] == name for at, (_, name) in zip(said.tolist(), asked, strict=True)), len(asked))


def judge(traffic: Traffic, store: Path, out: Path, *, check_labels: bool) -> Row:
    began_s = time.monotonic()
    labels = Labels(checked=check_labels)
    document = curate(str(store), out, consents=(CONSENT,), eval_share=0.0, labels=labels)
    took_s = time.monotonic() - began_s
    examples = read_examples(out)
    kept = {example.response for example in examples}
    told = Counter(fault for fault in traffic.fault.values())
    left = Counter(traffic.fault[response] for response in kept)
    gone = {fault: told[fault] - left[fault] for fault in told}
    wrong = ("wrong", "hostile")
    # What is said twice alike is one example, which loses nothing.
    same = document["dropped"].get("duplicate", 0)
    clean = ("", "old name", "near copy")
    lost = sum(gone[fault] for fault in clean if fault in gone) - same
    found = sum(gone.get(fault, 0) for fault in wrong)
    return {
        "curation": "with --check-labels" if check_labels else "as it is",
        "requests": len(traffic.fault),
        "wrong": sum(told[fault] for fault in wrong),
        "found": _share(found, sum(told[fault] for fault in wrong)),
        "hostile found": _share(gone.get("hostile", 0), told["hostile"]),
        "precision": _share(found, found + lost),
        "clean lost": _share(lost, sum(told[fault] for fault in clean)),
        "refusals kept": left["refusal"],
        "cut kept": left["cut"],
        "near copies kept": left["near copy"],
        "old names kept": sum(
            traffic.fault[each.response] == "old name" and call_of(each.answer)[0] == traffic.name[each.response]
            for each in examples
        ),
        "renamed found": len(document["renamed"]),
        "seconds": round(took_s, 1),
    }


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _ask(results: list[Row], found: Sequence[Sequence[CuratedExample]], rows: Sequence[Row], args: Any) -> None:
    """Add to each result how often a classifier that learned from what was found is right, and a row of clean data."""
    new_name, embedder = renamed_names(rows, args.seed), Embedder()

    def called(row: Row) -> tuple[str, str]:
        name = str(row["name"])
        return str(row["text"]), new_name.get(name, name)

    asked = [called(row) for path in args.test for row in _read(path)]
    for result, examples in zip(results, found, strict=True):
        known = [(each.utterance, call_of(each.answer)[0]) for each in examples]
        result["right"] = right(known, asked, embedder)
    clean = list(map(called, rows))
    nothing = dict.fromkeys(results[0], "–") | {"curation": "nothing wrong, no curation", "requests": len(rows)}
    results.append(nothing | {"right": right(clean, asked, embedder)})


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON Lines with text, name and, perhaps, arguments")
    parser.add_argument("--rows", choices=("dirty", "clean"), default="dirty", help="what is measured")
    parser.add_argument("--other", type=Path, help="a second service, mixed into the same store")
    parser.add_argument(
        "--test", type=Path, action="append", default=[], help="lines that a classifier is asked; repeat"
    )
    parser.add_argument("--requests", type=int, default=4000, help="drawn from each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args(argv)
    dice, rows = random.Random(args.seed), list[Row]()
    for path in [args.file, *([args.other] if args.other else [])]:
        every = _read(path)
        rows += dice.sample(every, min(args.requests, len(every)))
    dice.shuffle(rows)
    is_dirty = args.rows == "dirty"
    traffic = dirty(rows, args.seed, wrong=WRONG * is_dirty, hostiles=HOSTILE * is_dirty)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with open_sink(str(folder / "store")) as store:
            for records in (traffic.generations, traffic.feedback):
                parts = [records[at : at + BLOCK] for at in range(0, len(records), BLOCK)]
                store.append([block.parse(block.encode(part)) for part in parts])
        results = [judge(traffic, folder / "store", folder / str(check), check_labels=check) for check in (False, True)]
        if args.test:
            _ask(results, [read_examples(folder / str(check)) for check in (False, True)], rows, args)
    table = terminal.table([tuple(map(str, row.values())) for row in results], tuple(results[0]))
    terminal.show({"results": results}, table, as_json=args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
