"""The stages of a round that make something: tasks, a dataset, the base's bundle, an adapter, its bundle.

Each is kept by the digest of what it was made from. An adapter is tuned beside the finished stages, so that a tuning
that is stopped goes on where it was.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file
from fieldlm.core.logs import logger
from fieldlm.formats import router
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.checkpoints.peft_adapter import WEIGHTS
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.compile.named_adapters import NamedAdapter
from fieldlm_compiler.learn.cluster import TASKS, cluster
from fieldlm_compiler.learn.curated import EXAMPLES, read_examples, write_examples
from fieldlm_compiler.learn.dataset import DOCUMENT, SPLITS, dataset
from fieldlm_compiler.learn.task_edits.edits import FILE as EDITS
from fieldlm_compiler.learn.task_edits.edits import TaskEdits, read_edits, write_edits
from fieldlm_compiler.learn.tokenized import read_lines
from fieldlm_compiler.learn.tune import tune
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.rounds.sealed import to_watch
from fieldlm_compiler.rounds.state import FinishedRound
from fieldlm_compiler.rounds.wish import RoundWish
from fieldlm_compiler.verify.limits import PRESETS, Limits, SearchRequest

log = logger(__name__)
LEAST_WATCHED = 20
"""Fewer examples to watch with do not judge what quantising costs the adapter."""
LEAST_KEPT = 0.8
"""Of what the adapter answers right on full weights, so much has to stay on the quantised base for a bundle to be made;
the exam judges what is left."""


def tasks(examples: Path, rounds: Sequence[FinishedRound], edits: TaskEdits, stages: Stages) -> Path:
    """Return a folder with the examples and their tasks, which keep the ids that they had in the round before.

    They are as people want them, by their `edits`.
    """
    known = rounds[-1].examples / TASKS if rounds else None
    inputs = {
        "examples": sha256_file(examples / EXAMPLES),
        "tasks": sha256_file(known) if known else None,
        "task_edits": edits.digest,
    }

    def make(folder: Path) -> Ran:
        shutil.copyfile(examples / EXAMPLES, folder / EXAMPLES)
        if known:
            shutil.copyfile(known, folder / TASKS)
        write_edits(folder, edits)
        return _timed(lambda: len(cluster(folder)))

    return stages.run("tasks", inputs, make)[0]


def dataset_of(clustered: Path, stages: Stages) -> Path:
    """Return the data set of the training customers, a part of whom it has as `eval`, to watch the training with.

    What is held out for the exam is not in it, nor a task that people left out. Where all would be watched, nobody is.
    Raises InputError when nothing is left to train on.
    """

    def make(folder: Path) -> Ran:
        edits = read_edits(clustered)
        learned = [e for e in read_examples(clustered) if e.split == "train" and not edits.leaves_out(e.task)]
        parted = [msgspec.structs.replace(each, split="eval") if to_watch(each) else each for each in learned]
        with TemporaryDirectory(prefix="fieldlm-") as aside:
            is_any_left = any(each.split == "train" for each in parted)
            write_examples(Path(aside) / EXAMPLES, parted if is_any_left else learned)
            for name in (TASKS, EDITS):
                if (clustered / name).is_file():
                    shutil.copyfile(clustered / name, Path(aside) / name)
            return _timed(lambda: dataset(Path(aside), folder).name)

    inputs = {"examples": sha256_file(clustered / EXAMPLES), "excluded": sorted(read_edits(clustered).excluded)}
    folder, made = stages.run("dataset", inputs, make)
    return folder / made.value


def base_bundle(wish: RoundWish, checkpoint: Checkpoint, stages: Stages) -> Bundle:
    """Return the bundle of the base: the one that is named, or one that is compiled."""
    if wish.base_bundle:
        return open_bundle(wish.base_bundle)
    facts = wish.facts()
    inputs = {name: facts[name] for name in ("profile_sha256", "signer", "quants", "name", "system_prompt")}

    def make(folder: Path) -> Ran:
        return _timed(
            lambda: (
                compile_model(
                    wish.base,
                    profile=wish.profile,
                    out=folder / "bundle",
                    key=wish.key,
                    quants=wish.quants,
                    name=wish.name,
                    system_prompt=wish.system_prompt,
                    work=wish.work,
                ).generation
            )
        )

    return open_bundle(stages.run("base", inputs | {"base": checkpoint.sha256}, make)[0] / "bundle")


def adapter(
    wish: RoundWish, checkpoint: Checkpoint, data: Path, start: Path | None, stages: Stages
) -> tuple[Path, dict[str, Any]]:
    """Return the adapter that is tuned on `data`, and what tune.json says of it.

    With `begin` as "best" it is tuned both from `start`, the last accepted one, and afresh, and the one with the lower
    loss on the customers to watch is taken; without any of those, the fresh one.
    """
    begin = wish.begin if start else "fresh"
    starts = {"fresh": [None], "last": [start], "best": [None, start]}[begin]
    made = [tuned(wish, checkpoint, data, each, stages) for each in starts]
    best = min(made, key=lambda each: _loss(each[1]))
    for _, document in made if len(made) > 1 else ():
        log.info(f"  {_said(document)}{' ← taken' if document is best[1] else ''}")
    return best


def tuned_bundle(
    wish: RoundWish,
    checkpoint: Checkpoint,
    base: Bundle,
    *,
    adapters: Sequence[NamedAdapter],
    data: Path,
    clustered: Path,
    stages: Stages,
    classifier: Path | None = None,
) -> Bundle:
    """Return the bundle of `adapters` on the quantised base, judged by the customers to watch.

    Raises GateError when one is not what was tuned; of several, an AdapterGateError.
    """
    facts = wish.facts()
    inputs = {name: facts[name] for name in ("profile_sha256", "signer", "name", "system_prompt")}
    found = clustered / router.NAME
    tells = found if found.exists() else None
    inputs |= {
        "router": sha256_file(tells) if tells else None,
        "base_bundle": base.id,
        "base": checkpoint.sha256,
        "adapter": sha256_file(adapters[0].folder / WEIGHTS),
        "dataset": data.name,
    }
    if len(adapters) > 1:
        inputs["adapters"] = [[each.name, sha256_file(each.folder / WEIGHTS), each.tasks] for each in adapters]
    if classifier:
        inputs["classifier"] = sha256_file(classifier)
    if wish.deferral != "threshold":
        inputs["deferral"] = wish.deferral

    def make(out: Path) -> Ran:
        return _timed(
            lambda: (
                compile_model(
                    wish.base,
                    profile=wish.profile,
                    out=out / "bundle",
                    key=wish.key,
                    adapters=adapters,
                    base_bundle=base.folder,
                    name=wish.name,
                    system_prompt=wish.system_prompt,
                    work=wish.work,
                    request=_watched(data),
                    router=tells,
                    classifier=classifier,
                    deferral=wish.deferral,
                ).generation
            )
        )

    return open_bundle(stages.run("bundle", inputs, make)[0] / "bundle")


def part_of(data: Path, tasks: Sequence[str], stages: Stages) -> Path:
    """Return the part of a data set that is of `tasks`, by the whole one's id: what is made of it was made of that."""
    document = msgspec.json.decode((data / DOCUMENT).read_bytes(), type=dict[str, Any])

    def make(folder: Path) -> Ran:
        lines = {
            split: [line for line in read_lines(data / f"{split}.jsonl") if msgspec.json.decode(line)["task"] in tasks]
            for split in SPLITS
        }
        part = {name: count for name, count in document["tasks"].items() if name in tasks}
        counts = {split: len(those) for split, those in lines.items()}
        (folder / data.name).mkdir()
        for split, those in lines.items():
            (folder / data.name / f"{split}.jsonl").write_bytes(b"".join(line + b"\n" for line in those))
        (folder / data.name / DOCUMENT).write_bytes(canonical_json({**document, **counts, "tasks": part}))
        return Ran(value=counts, seconds=0.0, peak_mb=0.0)

    inputs = {"dataset": sha256_file(data / DOCUMENT), "tasks": sorted(tasks)}
    return stages.run("part", inputs, make)[0] / data.name


def tuned(
    wish: RoundWish, checkpoint: Checkpoint, data: Path, start: Path | None, stages: Stages
) -> tuple[Path, dict[str, Any]]:
    """Return the adapter that is tuned on `data` from `start`, or afresh, and what tune.json says of it."""
    inputs = {
        "base": checkpoint.sha256,
        "dataset": sha256_file(data / "dataset.json"),
        "recipe": wish.recipe.facts(),
        "start": sha256_file(start / WEIGHTS) if start else None,
    }
    place = stages.folder / "tuning" / sha256_bytes(canonical_json(inputs))[:20]

    def make(folder: Path) -> Ran:
        ran = _timed(lambda: tune(checkpoint.folder, data, place / "adapter", wish.recipe, start=start))
        shutil.move(place / "adapter", folder / "adapter")
        shutil.rmtree(place, ignore_errors=True)
        return ran

    folder, made = stages.run("tune", inputs, make)
    return folder / "adapter", made.value | {"began_at": "last" if start else "fresh"}


def _watched(data: Path) -> SearchRequest:
    """Return the request that judges an adapter by what is watched, where that is enough and is answered in text."""
    path = data / "eval.jsonl"
    lines = [msgspec.json.decode(line, type=dict[str, Any]) for line in path.read_bytes().split(b"\n") if line]
    is_text = all(line["messages"][-1].get("content") for line in lines)
    return (
        SearchRequest(task=path, limits=Limits(min_task=LEAST_KEPT))
        if len(lines) >= LEAST_WATCHED and is_text
        else PRESETS
    )


def _loss(document: dict[str, Any]) -> float:
    loss = document["eval_loss_after"]
    return math.inf if loss is None else loss


def _said(document: dict[str, Any]) -> str:
    return (
        f"tuned {'from the last adapter' if document['start_sha256'] else 'afresh'}: loss {document['eval_loss_after']}"
    )


def _timed(work: Callable[[], Any]) -> Ran:
    started_s = time.monotonic()
    value = work()
    return Ran(value=value, seconds=time.monotonic() - started_s, peak_mb=0.0)
