"""Dataset in, LoRA adapter out: fine-tune on the answers alone, on a processor if need be.

Two things make this fast enough for two cores. Examples of one step share their common beginning (the system prompt):
a step is one row, `[prefix][example 1][example 2]…`, in which an attention mask lets every example see the prefix and
itself, so the prefix is computed once a step and the gradients are those of separate rows. And the head, a fifth of a
small model's work, runs on the answers' positions only.
"""

import json
import math
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.formats.errors import InputError
from fieldlm.formats.files import canonical_json, sha256_file, whole_folder, write_whole
from fieldlm.runtime import terminal

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to tune. The learning rate falls along a half cosine after `warmup` of the steps."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = (*ATTENTION, *FEED_FORWARD)
    epochs: float = 2.0
    batch: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0.05
    clip: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    precision: str = "auto"
    """Of the frozen base: float32, bfloat16, or auto: whichever this machine multiplies faster."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation as token ids; the loss counts from `answer_at` on."""

    tokens: tuple[int, ...]
    answer_at: int


def tune(checkpoint: Path, dataset: Path, out: Path, recipe: Recipe = Recipe()) -> dict[str, Any]:
    """Fine-tune `checkpoint` on `dataset`/train.jsonl and write a PEFT adapter folder to `out`.

    Returns what tune.json holds: the recipe, the loss before and after on eval.jsonl, steps, seconds, tokens.
    Raises InputError when a file is missing or an example is longer than the model's context.
    """
    import torch

    torch.manual_seed(recipe.seed)
    examples = read_examples(dataset / "train.jsonl", checkpoint, recipe.max_tokens)
    held_out = read_examples(dataset / "eval.jsonl", checkpoint, recipe.max_tokens)
    model = with_adapter(checkpoint, recipe)
    before = evaluate_loss(model, held_out, recipe.batch)
    started_s = time.monotonic()
    losses = _train(model, examples, recipe)
    document = {
        "recipe": asdict(recipe),
        "dataset": json.loads((dataset / "dataset.json").read_text())["id"]
        if (dataset / "dataset.json").exists()
        else "",
        "base_sha256": sha256_file(checkpoint / "model.safetensors"),
        "examples": len(examples),
        "steps": len(losses),
        "seconds": round(time.monotonic() - started_s, 1),
        "precision": str(next(model.parameters()).dtype).removeprefix("torch."),
        "eval_loss_before": before,
        "eval_loss_after": evaluate_loss(model, held_out, recipe.batch),
        "losses": [round(loss, 4) for loss in losses],
    }
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        write_whole(folder / "tune.json", canonical_json(document))
    return document


def read_examples(path: Path, checkpoint: Path, max_tokens: int) -> list[Example]:
    """Render every line of a dataset file with the checkpoint's own chat template and tokenise it."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"{path} does not exist; make a dataset with: fieldlm dataset EXAMPLES --out DIR")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((checkpoint / "chat_template.jinja").read_text())
    examples: list[Example] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        messages = msgspec.json.decode(line)["messages"]
        asked = template.render(messages=messages[:-1], add_generation_prompt=True, bos_token="", eos_token="")
        whole = template.render(messages=messages, add_generation_prompt=False, bos_token="", eos_token="")
        prompt = tokenizer.encode(asked, add_special_tokens=False).ids
        tokens = tokenizer.encode(whole.rstrip("\n"), add_special_tokens=False).ids
        if tokens[: len(prompt)] != prompt or len(tokens) > max_tokens:
            raise InputError(f"{path}:{number} has {len(tokens)} tokens (at most {max_tokens}) or an ambiguous border")
        examples.append(Example(tokens=tuple(tokens), answer_at=len(prompt)))
    return examples


def pack(examples: Sequence[Example]) -> dict[str, Any]:
    """Lay `examples` side by side behind their common prefix.

    Returns tensors: `input_ids` and `position_ids` (1, n), `attention_mask` (1, 1, n, n) boolean, `at` (m,) the places
    whose next token is judged, `targets` (m,) those tokens.
    """
    import torch

    shared = _common_prefix([example.tokens[: example.answer_at] for example in examples])
    tokens, positions, owner = list(examples[0].tokens[:shared]), list(range(shared)), [0] * shared
    at: list[int] = []
    targets: list[int] = []
    for number, example in enumerate(examples, 1):
        start = len(tokens) - shared
        at += range(start + example.answer_at - 1, start + len(example.tokens) - 1)
        targets += example.tokens[example.answer_at :]
        tokens += example.tokens[shared:]
        positions += range(shared, len(example.tokens))
        owner += [number] * (len(example.tokens) - shared)
    owners = torch.tensor(owner)
    sees = (owners[:, None] == owners[None, :]) | (owners == 0)[None, :]
    return {
        "input_ids": torch.tensor([tokens]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": (sees & torch.ones_like(sees).tril())[None, None],
        "at": torch.tensor(at),
        "targets": torch.tensor(targets),
    }


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all rows share; the last token of a prompt is never shared away."""
    shortest = min(len(row) for row in rows) - 1
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


def evaluate_loss(model: Any, examples: Sequence[Example], batch: int) -> float | None:
    """Return the mean cross-entropy per answer token in nats, or None without examples."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(examples), batch):
            row = pack(examples[start : start + batch])
            total += float(packed_loss(model, row)) * len(row["targets"])
            count += len(row["targets"])
    return round(total / count, 4) if count else None


def packed_loss(model: Any, row: dict[str, Any]) -> Any:
    """Return the mean cross-entropy of a row from `pack`, in nats."""
    import torch
    from peft.helpers import disable_input_dtype_casting
    from torch.nn.functional import cross_entropy

    causal = model.get_base_model()
    inputs = {name: row[name] for name in ("input_ids", "position_ids", "attention_mask")}
    # Under autocast the float32 adapter multiplies in bfloat16 too; peft's own cast to float32 would undo that.
    is_mixed = causal.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed), disable_input_dtype_casting(model, is_mixed):
        hidden = causal.model(**inputs, use_cache=False).last_hidden_state[0, row["at"]]
        logits = causal.lm_head(hidden)
    return cross_entropy(logits.float(), row["targets"])


def _train(model: Any, examples: Sequence[Example], recipe: Recipe) -> list[float]:
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    steps = math.ceil(len(examples) * recipe.epochs / recipe.batch)
    losses: list[float] = []
    with terminal.progress("tune", total=steps) as line:
        for step, batch in enumerate(_batches(examples, recipe, steps)):
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, steps, recipe.warmup)
            loss = packed_loss(model, pack(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            line.update(step + 1, f"loss {sum(losses[-10:]) / len(losses[-10:]):.3f}")
    return losses


def _schedule(step: int, steps: int, warmup: float) -> float:
    rising = (step + 1) / max(1.0, warmup * steps)
    return min(rising, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)


def _batches(examples: Sequence[Example], recipe: Recipe, steps: int) -> Iterator[list[Example]]:
    """Yield `steps` batches out of reshuffled epochs."""
    rng = random.Random(recipe.seed)
    pool: list[Example] = []
    for _ in range(steps):
        while len(pool) < recipe.batch:
            pool += rng.sample(examples, len(examples))
        yield pool[: recipe.batch]
        pool = pool[recipe.batch :]


def with_adapter(checkpoint: Path, recipe: Recipe) -> Any:
    """Load the checkpoint frozen, in the faster of float32 and bfloat16 on this machine, with a fresh float32 LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    precision = recipe.precision
    if precision == "auto":
        precision = "bfloat16" if bfloat16_gain() > 1.3 else "float32"
    dtype = getattr(torch, precision)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        # peft 0.21 still asks transformers by a name that 5.23 has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa")
        return get_peft_model(base, config)


def bfloat16_gain() -> float:
    """Return how many times faster this machine multiplies in bfloat16 (AMX, AVX-512 BF16) than in float32."""
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
    parser.add_argument("--rank", type=int, default=Recipe.rank, help="LoRA rank")
    parser.add_argument("--epochs", type=float, default=Recipe.epochs, help="passes over the examples")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="examples a step")
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="order of examples and first weights")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the base")
    args = parser.parse_args(argv)
    recipe = Recipe(
        rank=args.rank,
        alpha=2 * args.rank,
        epochs=args.epochs,
        batch=args.batch,
        learning_rate=args.learning_rate,
        seed=args.seed,
        precision=args.precision,
    )
    document = tune(args.checkpoint, args.dataset, args.out, recipe)
    text = (
        f"{args.out}: {document['examples']} examples, {document['steps']} steps in {document['seconds']} s "
        f"({document['precision']}), loss {document['eval_loss_before']} → {document['eval_loss_after']}"
    )
    terminal.show(document, text, as_json=args.json)
    return 0
