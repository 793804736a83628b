"""One adapter for all tasks, or what a round makes of them: groups with adapters of their own, and a classifier.

    python -m benchmarks.task_adapters FOLDER/home-robot-train.jsonl FOLDER/home-robot-test.jsonl --out build/robot

A line of a file is one request: its `text`, the `name` of the function that it should call, and its `arguments`. The
first file is said by customers with six requests each, whose corrections are right, and `fieldlm round --adapters best`
learns from them: the base, the tasks, one adapter, one more for each group, with `--classifiers best` a classifier, and
the choice by customers to watch. Then three bundles are asked every line of the second file, which had no part in any
of that: the one adapter, all groups' adapters whatever they gain, and what the round chose. Right is a whole answer,
the function and all its arguments. What is done is kept in --out and reused.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning import BLOCK, CONSENT, EACH, Traffic
from fieldlm.core import terminal
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file, whole_folder, write_whole
from fieldlm.core.logs import to_terminal
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats import block
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.profile import load_profile
from fieldlm.hardware.detect import detect
from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL
from fieldlm_compiler.checkpoints.peft_adapter import WEIGHTS
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.evaluate import Score
from fieldlm_compiler.learn.tuning.recipe import TrainingRecipe
from fieldlm_compiler.pipeline.stages import DONE, Stages
from fieldlm_compiler.rounds.answers import HeldOutQuestion, examine
from fieldlm_compiler.rounds.gate import chance, lost_and_gained
from fieldlm_compiler.rounds.round import LearningRound
from fieldlm_compiler.rounds.state import WORK, FinishedRound
from fieldlm_compiler.rounds.wish import RoundWish

Row = dict[str, Any]
SYSTEM_PROMPT = "Answer with one JSON call."


def answer_of(row: Row) -> str:
    return json.dumps({"name": row["name"], "arguments": row.get("arguments", {})}, ensure_ascii=False)


def write_store(rows: Sequence[Row], folder: Path) -> str:
    """Return the store under `folder` of these rows, as customers say and correct them; it is filled once."""
    made = Traffic()
    for number, row in enumerate(rows):
        made.say(row["text"], f"customer-{number // EACH}", answer_of(row), "")
    path = folder / sha256_bytes(canonical_json(list(rows)))[:12]
    if not path.exists():
        with whole_folder(path) as aside, open_sink(str(aside)) as store:
            for records in (made.generations, made.feedback):
                parts = [records[at : at + BLOCK] for at in range(0, len(records), BLOCK)]
                store.append([block.parse(block.encode(part)) for part in parts])
    return str(path)


def bundles_of(made: FinishedRound, stages: Path) -> Iterator[tuple[str, Bundle]]:
    """Yield the bundles to compare: those that the round compiled on its way, and the one that it chose."""
    adapter = sha256_file(made.folder / "adapter" / WEIGHTS)
    of_round = [
        path.parent
        for path in sorted(stages.glob(f"bundle-*/{DONE}"))
        if json.loads(path.read_bytes())["inputs"]["adapter"] == adapter
    ]
    compiled = [open_bundle(path / "bundle") for path in of_round]
    plain = [each for each in compiled if each.path("classifier") is None]
    several = sorted((each for each in plain if _count(each)), key=_count)
    yield from ((f"one adapter for all {len(made.document.tasks)} tasks", each) for each in plain if not _count(each))
    yield from ((f"{_count(each)} adapters, all groups", each) for each in several[-1:])
    if (made.folder / "bundle").exists():
        yield "what the round chose", open_bundle(made.folder / "bundle")


def _count(bundle: Bundle) -> int:
    return len(bundle.manifest.task_adapters)


def judged(name: str, right: Sequence[bool], one: Sequence[bool]) -> Row:
    score = Score(right=sum(right), total=len(right))
    low, high = score.interval
    lost, gained = lost_and_gained(list(zip(one, right, strict=True)))
    return {
        "answered by": name,
        "exactly right": f"{score.share:.1%}",
        "95 % interval": f"{100 * low:.1f}–{100 * high:.1f}",
        "gained": gained,
        "lost": lost,
        "p": f"{chance(gained, lost):.2g}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    to_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="JSON Lines with text, name and arguments")
    parser.add_argument("test", type=Path, help="others, which are only asked")
    parser.add_argument("--requests", type=int, default=0, help="drawn from the first file; 0: all")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--classifiers", choices=("none", "best"), default="none", help="as of fieldlm round")
    parser.add_argument("--profile", default="", help="the kind of device; none: this machine")
    parser.add_argument("--out", type=Path, default=Path("build/task-adapters"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args(argv)
    rows, asked = ([json.loads(line) for line in path.read_text().splitlines()] for path in (args.train, args.test))
    random.Random(args.seed).shuffle(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    wish = RoundWish(
        store=write_store(rows[: args.requests or None], args.out / "stores"),
        base=DEFAULT_MODEL,
        profile=load_profile(args.profile) if args.profile else detect().best,
        out=args.out / "rounds",
        key=load_or_create_key(args.out / "keys" / "signing.pem"),
        consents=(CONSENT,),
        system_prompt=SYSTEM_PROMPT,
        recipe=TrainingRecipe(epochs=args.epochs),
        adapters="best",
        classifiers=args.classifiers,
        eval_share=0.05,
        work=args.out / "compiled",
    )
    made = LearningRound(wish).run()
    questions = [
        HeldOutQuestion(
            messages=[{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": row["text"]}],
            answer=answer_of(row),
        )
        for row in asked
    ]
    stages = Stages(args.out / "asked")
    right = {
        name: examine(bundle, questions, wish.profile, stages, what=f"ask {name}")
        for name, bundle in bundles_of(made, wish.out / WORK)
    }
    results = [judged(name, each, next(iter(right.values()))) for name, each in right.items()]
    write_whole(args.out / "results.json", canonical_json(results))
    table = terminal.table([tuple(map(str, row.values())) for row in results], tuple(results[0]))
    terminal.show({"results": results}, table, as_json=args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
