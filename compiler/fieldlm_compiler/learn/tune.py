"""LoRA fine-tuning, dataset in and adapter out: on the answers alone, on a GPU or, if need be, on a processor.

Four things make this fast enough for two cores. The examples of a step are one row behind their common beginning (see
`packing`), for a model that computes the same so (`answer_loss`). The head, a fifth of a small model's work, runs on
the answers' positions only. The base is multiplied in bfloat16 where the processor is faster at that, and in float32 a
layer and its LoRA are one product (`lora_product`).
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file, whole_folder, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.wording import counted
from fieldlm_compiler.checkpoints.checkpoint import folder_digest, weight_files
from fieldlm_compiler.checkpoints.peft_adapter import WEIGHTS
from fieldlm_compiler.learn.tokenized import TokenizedSplit, read_examples
from fieldlm_compiler.learn.tuning.adapted_model import adapted_model, check_start
from fieldlm_compiler.learn.tuning.adapter_card import write_card
from fieldlm_compiler.learn.tuning.arguments import blocks_file, checkpoint_folder
from fieldlm_compiler.learn.tuning.device_choice import name_of
from fieldlm_compiler.learn.tuning.four_bits import base_bytes, check_four_bits
from fieldlm_compiler.learn.tuning.processes.launch import launch, taking_part
from fieldlm_compiler.learn.tuning.processes.team import ALONE, Team, is_member, is_quiet, joined
from fieldlm_compiler.learn.tuning.ray_sweep import SweepInputs, check_cluster, tune_on_cluster
from fieldlm_compiler.learn.tuning.recipe import NF4, USUAL, TrainingRecipe, add_recipe, recipe_of
from fieldlm_compiler.learn.tuning.sweep import (
    Wanted,
    check_held_out,
    is_best_of,
    recipes,
    refuse_both,
    sweep,
    swept,
    table,
)
from fieldlm_compiler.learn.tuning.training import train_on
from fieldlm_compiler.learn.tuning.tuning_state import EVERY_S, TuningRun, kept_memory, prepare

if TYPE_CHECKING:
    from fieldlm_compiler.learn.tuning.answer_loss import Measured

log = logger(__name__)


def tune(
    checkpoint: Path,
    dataset: Path,
    out: Path,
    recipe: TrainingRecipe = USUAL,
    *,
    start: Path | None = None,
    blocks: Path | None = None,
    keep_every_s: float = EVERY_S,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Fine-tune `checkpoint` on `dataset`/train.jsonl and write a PEFT adapter folder to `out`.

    It begins with a fresh LoRA, or where the adapter in the folder `start` ended. With a GGUF file `blocks`, it learns
    to be merged and written in that file's types, and computes in float32. A run that was interrupted goes on where it
    was at most `keep_every_s` before, when it is asked for the same again. Of a `team` every process calls this alike,
    and the main one writes.
    Returns what tune.json holds: the recipe, the loss before and after on eval.jsonl, steps, seconds, tokens.
    Raises InputError when a file is missing, no example is left, `start` is of another shape, or DoRA or a
    base in 4 bits is to learn `blocks`; MissingDependencyError when PyTorch does not see the device that is asked for,
    or when 4 bits are asked for and bitsandbytes is not there.
    """
    _refuse(recipe, start, blocks, team.count)
    train, held_out = _splits(dataset, checkpoint, recipe)
    # PyTorch takes seconds to import: what can be refused without it has been.
    with terminal.progress("import PyTorch"):
        prepare()
        import torch

    torch.manual_seed(recipe.seed)
    sources = _sources(checkpoint, dataset, recipe, start, blocks)
    inputs_sha256 = _inputs_sha256(sources, dataset)
    with kept_memory():
        from fieldlm_compiler.learn.tuning.answer_loss import choose_loss

        model, types = adapted_model(checkpoint, recipe, start, blocks, team)
        with terminal.progress("hold a batch against the model's own computation"):
            loss = choose_loss(model, train.examples, recipe.batch, team)
        before = loss.measure(held_out.examples, recipe.batch)
        run = TuningRun(out.with_name(f".{out.name}.tuning"), sources, keep_every_s, team)
        train_on(loss, train.examples, held_out.examples, recipe, run)
        after = loss.measure(held_out.examples, recipe.batch)
    document = {
        "recipe": recipe.facts(),
        "dataset": _dataset_id(dataset),
        "base_sha256": sources["base_sha256"],
        "inputs_sha256": inputs_sha256,
        "start_sha256": sources.get("start_sha256", ""),
        "blocks": types,
        "packed": loss.is_packed,
        "processes": team.count,
        **_of_data(train, held_out, recipe, before, after),
        **_of_run(run, model),
    }
    if team.is_main:
        _write(out, model, document)
        run.forget()
    return document


def _write(out: Path, model: Any, document: dict[str, Any]) -> None:
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        write_card(folder, document)
        write_whole(folder / "tune.json", canonical_json(document))


def _refuse(recipe: TrainingRecipe, start: Path | None, blocks: Path | None, processes: int) -> None:
    """Raise for what cannot be tuned, before anything that takes time."""
    if blocks and recipe.kind == "dora":
        raise InputError("--quant-aware cannot train DoRA's magnitudes; leave it out, or --lora dora")
    if blocks and recipe.base_weights == NF4:
        raise InputError(
            "--quant-aware rounds the full weights at every step, and --qlora has none; leave one of them out"
        )
    if recipe.batch < processes:
        raise InputError(
            f"--batch {recipe.batch} is what all processes take in a step, and {processes} of them want one each; "
            f"take --batch {processes} or more, or fewer processes"
        )
    check_four_bits(recipe)
    if start:
        check_start(start, recipe)


def finished(
    checkpoint: Path, dataset: Path, out: Path, recipe: TrainingRecipe, *, start: Path | None, blocks: Path | None
) -> dict[str, Any] | None:
    """Return what tune.json in `out` holds where that adapter was tuned of exactly this; None where it was not."""
    try:
        known = msgspec.json.decode((out / "tune.json").read_bytes(), type=dict[str, Any])
        # Adapters from before this was kept say nothing of it.
        if "inputs_sha256" not in known or known.get("recipe") != recipe.facts() or not (out / WEIGHTS).is_file():
            return None
        wanted = _inputs_sha256(_sources(checkpoint, dataset, recipe, start, blocks), dataset)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return known if known["inputs_sha256"] == wanted else None


def _sources(
    checkpoint: Path, dataset: Path, recipe: TrainingRecipe, start: Path | None, blocks: Path | None
) -> dict[str, Any]:
    """Return what a run is kept by: it goes on only for the same."""
    files = {"dataset": dataset / "train.jsonl", "blocks": blocks, "start": start and start / WEIGHTS}
    # What is held out decides something where it may end the run, and only there.
    files["held_out"] = dataset / "eval.jsonl" if recipe.patience else None
    digests = {f"{name}_sha256": sha256_file(path) for name, path in files.items() if path}
    return {"recipe": recipe.facts(), "base_sha256": _base_sha256(checkpoint), **digests}


def _inputs_sha256(sources: dict[str, Any], dataset: Path) -> str:
    """Return what names all that tune.json tells of: what the run is made of, and what it is measured by."""
    measured = {"dataset": _dataset_id(dataset), "eval_sha256": sha256_file(dataset / "eval.jsonl")}
    return sha256_bytes(canonical_json({"sources": sources, "measured": measured}))


def _dataset_id(dataset: Path) -> str:
    path = dataset / "dataset.json"
    return json.loads(path.read_text())["id"] if path.exists() else ""


def _of_data(
    train: TokenizedSplit, held_out: TokenizedSplit, recipe: TrainingRecipe, before: "Measured", after: "Measured"
) -> dict[str, Any]:
    """Return what tune.json says of the examples, and how they fared.

    `eval_exact_…` is by task how many held-out answers greedy decoding gives to the token, and of how many.
    `preferences` is None where none were asked for; its `eval_preferred_…` are the shares of held-out pairs whose right
    answer has the higher mean log-probability of a token, its `eval_log_odds_…` the mean log odds ratios, None without
    such pairs.
    """
    preferences = {
        "weight": recipe.preference_weight,
        "pairs": {"train": train.pairs, "eval": held_out.pairs},
        "dropped": {"train": train.unpaired, "eval": held_out.unpaired},
        "eval_preferred_before": before.preferred,
        "eval_preferred_after": after.preferred,
        "eval_log_odds_before": before.log_odds,
        "eval_log_odds_after": after.log_odds,
    }
    return {
        "examples": len(train.examples),
        "dropped": {"train": train.dropped, "eval": held_out.dropped},
        "eval_loss_before": before.loss,
        "eval_loss_after": after.loss,
        "eval_exact_before": before.exact,
        "eval_exact_after": after.exact,
        "preferences": preferences if recipe.preference_weight else None,
    }


def _of_run(run: TuningRun, model: Any) -> dict[str, Any]:
    """Return what tune.json says of the steps. `losses` have the preference loss in them, where there is one."""
    return {
        "steps": len(run.losses),
        "seconds": round(run.seconds, 1),
        "device": name_of(model.device),
        "base_mb": round(base_bytes(model) / 1e6, 1),
        "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
        "losses": [round(loss, 4) for loss in run.losses],
        "passes": run.passes,
    }


def _splits(dataset: Path, checkpoint: Path, recipe: TrainingRecipe) -> tuple[TokenizedSplit, TokenizedSplit]:
    """Return what is trained on and what is held out, and say what is left out."""
    in_pairs = recipe.preference_weight > 0
    train, held_out = (
        read_examples(dataset / f"{split}.jsonl", checkpoint, recipe.max_tokens, in_pairs=in_pairs)
        for split in ("train", "eval")
    )
    if not train.examples:
        missing = f"{dataset / 'train.jsonl'} has no examples"
        raise InputError(f"{missing}; make a dataset with: fieldlm dataset EXAMPLES --out DIR")
    if in_pairs and not train.pairs:
        log.warning(
            f"! {dataset / 'train.jsonl'} has no rejected answer, so there is nothing to prefer and --preferences "
            "changes nothing; collect corrections, and make the data set anew with: fieldlm dataset EXAMPLES --out DIR"
        )
    return train, held_out


def _base_sha256(checkpoint: Path) -> str:
    """Return what names the weights: of one file its own digest, of several the digest of the model's folder."""
    files = weight_files(checkpoint)
    return sha256_file(files[0]) if len(files) == 1 else folder_digest(checkpoint)


def _parser() -> terminal.Parser:
    parser = terminal.parser(
        "tune",
        "Fine-tune a checkpoint on a dataset; writes a LoRA adapter.",
        "fieldlm unpack smollm2 checkpoint",
        "fieldlm tune checkpoint --dataset datasets/DATASET --out adapter",
    )
    parser.add_argument("checkpoint", type=checkpoint_folder, help="Hugging Face folder of the base")
    parser.add_argument(
        "--dataset", type=options.existing_folder, required=True, help="folder with train.jsonl and eval.jsonl"
    )
    parser.add_argument("--out", type=options.new_folder, required=True, help="where the adapter goes")
    parser.add_argument(
        "--from", dest="start", type=options.existing_folder, metavar="ADAPTER", help="go on where this adapter ended"
    )
    parser.add_argument(
        "--quant-aware",
        dest="blocks",
        type=blocks_file,
        metavar="BUNDLE|GGUF",
        help="learn to be merged and written in this file's types",
    )
    parser.add_argument(
        "--sweep",
        type=swept,
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="tune with each of these values, such as rank=8,32, and keep what does best on eval.jsonl; repeat",
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="let the nodes of a Ray cluster tune the adapters of a --sweep"
    )
    parser.add_argument(
        "--processes",
        type=options.whole(1, 64),
        default=1,
        metavar="N",
        help="share each batch among so many, a GPU for each (accelerate launch and torchrun do the same)",
    )
    add_recipe(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """`fieldlm tune CHECKPOINT --dataset DIR --out DIR`."""
    args = _parser().parse_args(argv)
    refuse_both(args, args.sweep)
    check_cluster(args.ray, args.sweep)
    if args.sweep and (args.processes > 1 or is_member()):
        raise InputError("--sweep is for one process; tune with each value by itself, or leave --processes out")
    tried = recipes(recipe_of(args), args.sweep)
    if known := _known(args, tried):
        said = (
            f"{args.out} holds this adapter already, tuned on the same data by the same recipe ({known['examples']} "
            f"examples, {known['steps']} steps); name another --out to tune it anew"
        )
        if not is_quiet():
            terminal.show(known, said, as_json=args.json)
        return 0
    for recipe in tried:
        _refuse(recipe, args.start, args.blocks, args.processes)
    if args.processes > 1 and not is_member():
        return launch(argv, args.processes)
    with taking_part(), joined(args.device, prepare) as team:
        document = _tuned(args, tried, team)
    if team.is_main:
        _show(args, document)
    return 0


def _show(args: Namespace, document: dict[str, Any]) -> None:
    text = (
        f"{args.out}: {document['examples']} examples, {document['steps']} steps in {document['seconds']} s "
        f"({document['device']}, {document['precision']}{_held(document)}), "
        f"loss {document['eval_loss_before']} → {document['eval_loss_after']}"
    )
    if found := document["preferences"]:
        text += f"; {_preferred(found)}"
    if args.sweep:
        text = f"{table(document)}\n{text}"
    terminal.show(document, text, as_json=args.json)


def _known(args: Namespace, tried: Sequence[TrainingRecipe]) -> dict[str, Any] | None:
    """Return what tune.json holds of an adapter that is there already, and was made of what is asked for."""
    if args.sweep and not is_best_of(tried, args.out):
        return None
    inputs: dict[str, Any] = {"start": args.start, "blocks": args.blocks}
    each = (finished(args.checkpoint, args.dataset, args.out, recipe, **inputs) for recipe in tried)
    return next(filter(None, each), None)


def _tuned(args: Namespace, tried: Sequence[TrainingRecipe], team: Team) -> dict[str, Any]:
    if args.sweep:
        check_held_out(args.dataset / "eval.jsonl", args.checkpoint, args.max_tokens)

    inputs: dict[str, Any] = {"start": args.start, "blocks": args.blocks}

    def done(recipe: TrainingRecipe, out: Path) -> dict[str, Any] | None:
        return finished(args.checkpoint, args.dataset, out, recipe, **inputs)

    def make(recipe: TrainingRecipe, out: Path) -> dict[str, Any]:
        return done(recipe, out) or tune(args.checkpoint, args.dataset, out, recipe, **inputs, team=team)

    def ahead(wanted: Wanted) -> None:
        """Have the cluster tune those that are not there."""
        of = SweepInputs(checkpoint=args.checkpoint, dataset=args.dataset, **inputs)
        tune_on_cluster(args.ray, tune, of, [each for each in wanted if done(*each) is None])

    if args.sweep:
        return sweep(tried, args.out, make, ahead=ahead if args.ray is not None else None)
    return make(tried[0], args.out)


def _held(document: dict[str, Any]) -> str:
    """Return what a base in 4 bits takes, in words, and nothing for a whole one."""
    is_small = document["recipe"].get("base_weights") == NF4
    return f", the base in 4 bits and {document['base_mb']:g} MB" if is_small else ""


def _preferred(found: dict[str, Any]) -> str:
    """Return what was learned from pairs, in words."""
    learned = f"{counted(found['pairs']['train'], 'correction')} held against what was said before"
    if found["eval_preferred_after"] is None:
        return f"{learned}, none of them held out"
    before, after = found["eval_preferred_before"], found["eval_preferred_after"]
    return f"{learned}: of {found['pairs']['eval']} held out {before:.0%} → {after:.0%} are the likelier answer"
