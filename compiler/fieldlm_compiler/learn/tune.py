"""LoRA fine-tuning, dataset in and adapter out: on the answers alone, on a GPU or, if need be, on a processor.

Three things make this fast enough for two cores. The examples of a step are one row behind their common beginning (see
`packing`), for a model that computes the same so (`answer_loss`). The head, a fifth of a small model's work, runs on
the answers' positions only. And the base is multiplied in bfloat16 where the processor is faster at that.
"""

import json
import math
import random
import time
import warnings
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError, MissingDependencyError
from fieldlm.core.files import canonical_json, sha256_file, whole_folder, write_whole
from fieldlm.core.logs import logger
from fieldlm_compiler.checkpoints.checkpoint import folder_digest, weight_files
from fieldlm_compiler.learn.tokenized import TokenizedExample, TokenizedSplit, read_examples
from fieldlm_compiler.learn.tuning_state import EVERY_S, ThreadChoice, TuningRun, kept_memory, prepare

log = logger(__name__)

if TYPE_CHECKING:
    from fieldlm_compiler.learn.answer_loss import AnswerLoss

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer of a family, whatever it calls them, but the head."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How to tune. The learning rate falls along a half cosine after `warmup` of the steps."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Names of modules, or the one word for all linear layers."""
    epochs: float = 2.0
    batch: int = 8
    learning_rate: float = 1e-3
    """Peak, of LoRA's A."""
    b_ratio: float = 4.0
    """How many times faster B learns than A: LoRA+ (Hayou, Ghosh and Yu 2024, arXiv:2402.12354)."""
    warmup: float = 0.05
    clip: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    precision: str = "auto"
    """Of the frozen base: float32, bfloat16, or auto: whichever this machine multiplies faster."""
    device: str = "auto"
    """Where to compute: cpu, cuda, or auto: a GPU where PyTorch sees one. There two runs differ in the last digits."""


def tune(
    checkpoint: Path,
    dataset: Path,
    out: Path,
    recipe: TrainingRecipe = TrainingRecipe(),
    *,
    keep_every_s: float = EVERY_S,
) -> dict[str, Any]:
    """Fine-tune `checkpoint` on `dataset`/train.jsonl and write a PEFT adapter folder to `out`.

    A run that was interrupted goes on where it was at most `keep_every_s` before, when it is asked for the same again.

    Returns what tune.json holds: the recipe, the loss before and after on eval.jsonl, steps, seconds, tokens.
    Raises InputError when a file is missing or no example is left, MissingDependencyError when PyTorch does not see the
    device that is asked for.
    """
    train, held_out = _splits(dataset, checkpoint, recipe)
    base_sha256 = _base_sha256(checkpoint)
    # PyTorch takes seconds to import: what can be refused without it has been.
    prepare()
    import torch

    torch.manual_seed(recipe.seed)
    sources = {
        "recipe": asdict(recipe),
        "base_sha256": base_sha256,
        "dataset_sha256": sha256_file(dataset / "train.jsonl"),
    }
    with kept_memory():
        from fieldlm_compiler.learn.answer_loss import choose_loss

        model = with_adapter(checkpoint, recipe)
        loss = choose_loss(model, train.examples, recipe.batch)
        before = loss.evaluate(held_out.examples, recipe.batch)
        run = TuningRun(out.with_name(f".{out.name}.tuning"), sources, keep_every_s)
        _train(loss, train.examples, recipe, run)
        after = loss.evaluate(held_out.examples, recipe.batch)
    document = {
        "recipe": asdict(recipe),
        "dataset": json.loads((dataset / "dataset.json").read_text())["id"]
        if (dataset / "dataset.json").exists()
        else "",
        "base_sha256": sources["base_sha256"],
        "examples": len(train.examples),
        "dropped": {"train": train.dropped, "eval": held_out.dropped},
        "packed": loss.is_packed,
        "steps": len(run.losses),
        "seconds": round(run.seconds, 1),
        "device": _name_of(model.device),
        "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
        "eval_loss_before": before,
        "eval_loss_after": after,
        "losses": [round(loss, 4) for loss in run.losses],
    }
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        write_whole(folder / "tune.json", canonical_json(document))
    run.forget()
    return document


def _splits(dataset: Path, checkpoint: Path, recipe: TrainingRecipe) -> tuple[TokenizedSplit, TokenizedSplit]:
    """Return what is trained on and what is held out, and say what is left out."""
    train, held_out = (
        read_examples(dataset / f"{split}.jsonl", checkpoint, recipe.max_tokens) for split in ("train", "eval")
    )
    for name, count in (Counter(train.dropped) + Counter(held_out.dropped)).items():
        log.info(f"  left out: {count} {name}")
    if not train.examples:
        raise InputError(f"{dataset / 'train.jsonl'} has no examples; make a dataset with: fieldlm dataset EXAMPLES")
    return train, held_out


def _base_sha256(checkpoint: Path) -> str:
    """Return what names the weights: of one file its own digest, of several the digest of the model's folder."""
    files = weight_files(checkpoint)
    return sha256_file(files[0]) if len(files) == 1 else folder_digest(checkpoint)


def _train(answers: "AnswerLoss", examples: Sequence[TokenizedExample], recipe: TrainingRecipe, run: TuningRun) -> None:
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
    done = len(run.losses)
    threads = ThreadChoice(is_needed=model.device.type == "cpu")
    with terminal.progress("tune", total=steps) as line, threads.restored():
        for step, batch in enumerate(islice(_batches(examples, recipe, steps), done, None), done):
            started_s = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _schedule(step, steps, recipe.warmup)
            with threads.step(sum(len(example.tokens) for example in batch)):
                loss = answers.mean(batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            run.add(float(loss.detach()), time.monotonic() - started_s)
            run.keep(model, optimiser)
            line.update(step + 1, f"loss {sum(run.losses[-10:]) / len(run.losses[-10:]):.3f}")


def _schedule(step: int, steps: int, warmup: float) -> float:
    rising = (step + 1) / max(1.0, warmup * steps)
    return min(rising, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)


def _batches(
    examples: Sequence[TokenizedExample], recipe: TrainingRecipe, steps: int
) -> Iterator[list[TokenizedExample]]:
    """Yield `steps` batches out of reshuffled epochs."""
    rng = random.Random(recipe.seed)
    pool: list[TokenizedExample] = []
    for _ in range(steps):
        while len(pool) < recipe.batch:
            pool += rng.sample(examples, len(examples))
        yield pool[: recipe.batch]
        pool = pool[recipe.batch :]


def with_adapter(checkpoint: Path, recipe: TrainingRecipe) -> Any:
    """Load the checkpoint frozen, in the faster of float32 and bfloat16 on its device, with a fresh float32 LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from fieldlm_compiler.learn.answer_loss import OWN_ATTENTION

    disable_progress_bar()
    device = choose_device(recipe.device)
    dtype = getattr(torch, _faster_on(device) if recipe.precision == "auto" else recipe.precision)
    targets = ALL_LINEAR if ALL_LINEAR in recipe.targets else list(recipe.targets)
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=targets, task_type="CAUSAL_LM")
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


def choose_device(wanted: str) -> str:
    """Return "cuda" or "cpu" for `wanted`, which may be "auto".

    Raises MissingDependencyError for a GPU that is not seen.
    """
    import torch

    seen = torch.cuda.is_available()
    if wanted == "cuda" and not seen:
        built = torch.version.cuda
        why = f"is built for CUDA {built} and sees no GPU; look at its driver" if built else "is built without CUDA"
        raise MissingDependencyError(f"--device cuda: PyTorch {torch.__version__} {why}; or take --device cpu")
    return ("cuda" if seen else "cpu") if wanted == "auto" else wanted


def _faster_on(device: str) -> str:
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if bfloat16_gain() > 1.3 else "float32"


def _name_of(device: Any) -> str:
    """Return what computes: the GPU's own name, or cpu."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def bfloat16_gain() -> float:
    """Return how many times faster this processor multiplies in bfloat16 (AMX, AVX-512 BF16) than in float32."""
    import torch

    def seconds(dtype: Any) -> float:
        left, right = torch.randn(512, 576).to(dtype), torch.randn(576, 1536).to(dtype)
        best = math.inf
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(left, right)
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(torch.float32) / seconds(torch.bfloat16)


def _checkpoint(text: str) -> Path:
    try:
        return options.existing_folder(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(
            f"{error}; make a folder of a model or bundle with: fieldlm unpack MODEL FOLDER"
        ) from error


def _parser() -> terminal.Parser:
    parser = terminal.parser(
        "tune",
        "Fine-tune a checkpoint on a dataset; writes a LoRA adapter.",
        "fieldlm unpack smollm2 checkpoint",
        "fieldlm tune checkpoint --dataset datasets/DATASET --out adapter",
    )
    parser.add_argument("checkpoint", type=_checkpoint, help="Hugging Face folder of the base")
    parser.add_argument(
        "--dataset", type=options.existing_folder, required=True, help="folder with train.jsonl and eval.jsonl"
    )
    parser.add_argument("--out", type=options.new_folder, required=True, help="where the adapter goes")
    parser.add_argument("--rank", type=options.whole(1, 4096), default=TrainingRecipe.rank, help="LoRA rank")
    parser.add_argument(
        "--epochs",
        type=options.real(0, 10_000, above=True),
        default=TrainingRecipe.epochs,
        help="passes over the examples",
    )
    parser.add_argument("--batch", type=options.whole(1, 65_536), default=TrainingRecipe.batch, help="examples a step")
    parser.add_argument(
        "--learning-rate",
        type=options.real(0, 1, above=True),
        default=TrainingRecipe.learning_rate,
        help="peak learning rate",
    )
    parser.add_argument(
        "--max-tokens",
        type=options.whole(1, options.CONTEXT[1]),
        default=TrainingRecipe.max_tokens,
        help="longer examples are left out",
    )
    parser.add_argument(
        "--seed",
        type=options.whole(*options.SEED),
        default=TrainingRecipe.seed,
        help="order of examples and first weights",
    )
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the base")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    return parser


def main(argv: Sequence[str]) -> int:
    """`fieldlm tune CHECKPOINT --dataset DIR --out DIR`."""
    args = _parser().parse_args(argv)
    recipe = TrainingRecipe(
        rank=args.rank,
        alpha=2 * args.rank,
        epochs=args.epochs,
        batch=args.batch,
        learning_rate=args.learning_rate,
        max_tokens=args.max_tokens,
        seed=args.seed,
        precision=args.precision,
        device=args.device,
    )
    document = tune(args.checkpoint, args.dataset, args.out, recipe)
    text = (
        f"{args.out}: {document['examples']} examples, {document['steps']} steps in {document['seconds']} s "
        f"({document['device']}, {document['precision']}), "
        f"loss {document['eval_loss_before']} → {document['eval_loss_after']}"
    )
    terminal.show(document, text, as_json=args.json)
    return 0
