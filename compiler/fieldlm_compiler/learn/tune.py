"""LoRA fine-tuning, dataset in and adapter out: on the answers alone, on a GPU or, if need be, on a processor.

Three things make this fast enough for two cores. The examples of a step are one row behind their common beginning (see
`packing`). The head, a fifth of a small model's work, runs on the answers' positions only. And the base is multiplied
in bfloat16 where the processor is faster at that.
"""

import json
import math
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldlm.core import terminal
from fieldlm.core.errors import MissingDependencyError
from fieldlm.core.files import canonical_json, sha256_file, whole_folder, write_whole
from fieldlm_compiler.learn.tokenized import TokenizedExample, read_examples
from fieldlm_compiler.learn.tuning_state import EVERY_S, TuningRun, kept_memory, prepare

if TYPE_CHECKING:
    from fieldlm_compiler.learn.packing import Row

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How to tune. The learning rate falls along a half cosine after `warmup` of the steps."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = (*ATTENTION, *FEED_FORWARD)
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
    Raises InputError when a file is missing or an example is longer than the model's context, MissingPartError when
    PyTorch does not see the device that is asked for.
    """
    prepare()
    import torch

    torch.manual_seed(recipe.seed)
    examples = read_examples(dataset / "train.jsonl", checkpoint, recipe.max_tokens)
    held_out = read_examples(dataset / "eval.jsonl", checkpoint, recipe.max_tokens)
    sources = {
        "recipe": asdict(recipe),
        "base_sha256": sha256_file(checkpoint / "model.safetensors"),
        "dataset_sha256": sha256_file(dataset / "train.jsonl"),
    }
    with kept_memory():
        model = with_adapter(checkpoint, recipe)
        before = evaluate_loss(model, held_out, recipe.batch)
        run = TuningRun(out.with_name(f".{out.name}.tuning"), sources, keep_every_s)
        _train(model, examples, recipe, run)
        after = evaluate_loss(model, held_out, recipe.batch)
    document = {
        "recipe": asdict(recipe),
        "dataset": json.loads((dataset / "dataset.json").read_text())["id"]
        if (dataset / "dataset.json").exists()
        else "",
        "base_sha256": sources["base_sha256"],
        "examples": len(examples),
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


def evaluate_loss(model: Any, examples: Sequence[TokenizedExample], batch: int) -> float | None:
    """Return the mean cross-entropy per answer token in nats, or None without examples."""
    import torch
    from torch.nn.functional import cross_entropy

    from fieldlm_compiler.learn.packing import pack

    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(examples), batch):
            row = pack(examples[start : start + batch], model.device)
            total += float(cross_entropy(answer_logits(model, row).float(), row.targets, reduction="sum"))
            count += len(row.targets)
    return round(total / count, 4) if count else None


def answer_logits(model: Any, row: "Row") -> Any:
    """Return the logits (a, vocabulary) at the places of `row` whose next token is judged."""
    import torch
    from peft.helpers import disable_input_dtype_casting

    causal = model.get_base_model()
    # Under autocast the float32 adapter multiplies in bfloat16 too; peft's own cast to float32 would undo that.
    is_mixed = causal.dtype == torch.bfloat16
    mixed = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=is_mixed)
    with mixed, disable_input_dtype_casting(model, is_mixed):
        states = causal.model(input_ids=row.tokens, position_ids=row.positions, use_cache=False, row=row)
        return causal.lm_head(states.last_hidden_state[0, row.at])


def _train(model: Any, examples: Sequence[TokenizedExample], recipe: TrainingRecipe, run: TuningRun) -> None:
    import torch
    from peft.optimizers import create_loraplus_optimizer
    from torch.nn.functional import cross_entropy

    from fieldlm_compiler.learn.packing import pack

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=recipe.learning_rate, loraplus_lr_ratio=recipe.b_ratio, weight_decay=0.0
    )
    for group in optimiser.param_groups:
        group["peak"] = group["lr"]
    run.restore(model, optimiser)
    steps = math.ceil(len(examples) * recipe.epochs / recipe.batch)
    done = len(run.losses)
    with terminal.progress("tune", total=steps) as line:
        for step, batch in enumerate(islice(_batches(examples, recipe, steps), done, None), done):
            started_s = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _schedule(step, steps, recipe.warmup)
            row = pack(batch, model.device)
            loss = cross_entropy(answer_logits(model, row), row.targets)
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

    from fieldlm_compiler.learn.packing import ATTENTION_OF_ROWS

    disable_progress_bar()
    device = choose_device(recipe.device)
    dtype = getattr(torch, _faster_on(device) if recipe.precision == "auto" else recipe.precision)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        # peft 0.21 still asks transformers by a name that 5.23 has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation=ATTENTION_OF_ROWS)
        return get_peft_model(base, config).to(device)


def choose_device(wanted: str) -> str:
    """Return "cuda" or "cpu" for `wanted`, which may be "auto"; raises MissingPartError for a GPU that is not seen."""
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


def main(argv: Sequence[str]) -> int:
    """`fieldlm tune CHECKPOINT --dataset DIR --out DIR`."""
    parser = terminal.parser("tune", "Fine-tune a checkpoint on a dataset; writes a LoRA adapter.")
    parser.add_argument("checkpoint", type=Path, help="Hugging Face folder of the base")
    parser.add_argument("--dataset", type=Path, required=True, help="folder with train.jsonl and eval.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="where the adapter goes")
    parser.add_argument("--rank", type=int, default=TrainingRecipe.rank, help="LoRA rank")
    parser.add_argument("--epochs", type=float, default=TrainingRecipe.epochs, help="passes over the examples")
    parser.add_argument("--batch", type=int, default=TrainingRecipe.batch, help="examples a step")
    parser.add_argument("--learning-rate", type=float, default=TrainingRecipe.learning_rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=TrainingRecipe.seed, help="order of examples and first weights")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the base")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    args = parser.parse_args(argv)
    recipe = TrainingRecipe(
        rank=args.rank,
        alpha=2 * args.rank,
        epochs=args.epochs,
        batch=args.batch,
        learning_rate=args.learning_rate,
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
