"""A step of tuning beside a plain loop of PEFT's over the same examples: padded rows, labels, transformers' own loss.

    python -m benchmarks.tuning [--rounds 5] [--neighbour] [--qlora]

Both take the same model, LoRA, examples, precision and number of threads, one after the other in every round. The ratio
is the median over rounds, with its 95 % interval (Student's t). `--qlora` does the same beside a base in 4 bits,
and tells the memory of both bases. `--neighbour` holds passes beside a busy process, with as many threads as `fieldlm
tune` would take then, against passes with one thread and nobody else.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from fieldlm_compiler.learn.tuning.tuning_state import ThreadChoice, kept_memory, prepare

prepare()

import torch  # noqa: E402

from benchmarks.serving_sides import busy  # noqa: E402
from fieldlm.bench.result import interval  # noqa: E402
from fieldlm.core import options  # noqa: E402
from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL, open_checkpoint  # noqa: E402
from fieldlm_compiler.demo.customers import messages  # noqa: E402
from fieldlm_compiler.demo.kiosk import training_customers  # noqa: E402
from fieldlm_compiler.learn.tokenized import TokenizedExample, read_examples  # noqa: E402
from fieldlm_compiler.learn.tuning.adapted_model import with_adapter  # noqa: E402
from fieldlm_compiler.learn.tuning.answer_loss import AnswerLoss, choose_loss  # noqa: E402
from fieldlm_compiler.learn.tuning.four_bits import base_bytes  # noqa: E402
from fieldlm_compiler.learn.tuning.lora_product import join_products  # noqa: E402
from fieldlm_compiler.learn.tuning.recipe import NF4, TrainingRecipe  # noqa: E402

EXAMPLES, BATCH = 48, 8
QLORA = "fieldlm, --qlora"
IGNORED = -100
"""What transformers leaves out of the loss."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=options.whole(1), default=5)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--qlora", action="store_true", help="beside a base in 4 bits, too")
    parser.add_argument("--neighbour", action="store_true", help="beside a busy process, too")
    args = parser.parse_args(argv)
    folder = open_checkpoint(DEFAULT_MODEL).folder
    examples = _examples(folder)
    recipe = TrainingRecipe(batch=BATCH, precision=args.precision)
    with kept_memory():
        sides = {"plain PEFT loop": _plain(folder, recipe), "fieldlm, PEFT's layers": _ours(folder, recipe, examples)}
        sides["fieldlm"] = _ours(folder, recipe, examples, joined=True)
        if args.qlora:
            sides[QLORA] = _ours(folder, replace(recipe, base_weights=NF4), examples)
        seconds = _alternate(sides, examples, args.rounds)
        beside = _beside(*sides["fieldlm"], examples, args.rounds) if args.neighbour else []
    tokens = sum(len(example.tokens) for example in examples)
    rows = {name: _shown([tokens / each for each in took]) for name, took in seconds.items()}
    ratios = {
        name: _shown([theirs / ours for theirs, ours in zip(took, seconds["fieldlm"], strict=True)])
        for name, took in seconds.items()
        if name != "fieldlm"
    }
    told: dict[str, Any] = {"tokens/s": rows, "times as fast as": ratios, "threads": torch.get_num_threads()}
    if beside:
        told["beside a busy process, of one free core"] = _shown(beside)
    if args.qlora:
        told["base, MB"] = {name: round(base_bytes(sides[name][0]) / 1e6, 1) for name in ("fieldlm", QLORA)}
        told["precision"] = str(sides["fieldlm"][0].dtype)
    print(json.dumps(told, indent=1))
    return 0


def _shown(samples: Sequence[float]) -> dict[str, float | None]:
    found = interval(samples)
    return {"median": found.median, "low": found.low, "high": found.high}


def _examples(folder: Path) -> list[TokenizedExample]:
    """What customers of the demo say, with the kiosk's system prompt."""
    said = [utterance for customer in training_customers(EXAMPLES) for utterance in customer.utterances]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "train.jsonl")
        rows = [[*messages(each), {"role": "assistant", "content": each.answer}] for each in said]
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        return list(read_examples(path, folder, 512).examples)


Step = Callable[[Sequence[TokenizedExample]], torch.Tensor]


def _plain(folder: Path, recipe: TrainingRecipe) -> tuple[Any, Step]:
    """The loop of PEFT's documentation: a padded batch through the model, its own loss on the labels."""
    model = with_adapter(folder, recipe)
    is_mixed = model.get_base_model().dtype == torch.bfloat16

    def step(batch: Sequence[TokenizedExample]) -> torch.Tensor:
        longest = max(len(each.tokens) for each in batch)
        ids, labels, mask = (torch.full((len(batch), longest), fill) for fill in (0, IGNORED, 0))
        for row, each in enumerate(batch):
            count = len(each.tokens)
            ids[row, :count] = torch.tensor(each.tokens)
            labels[row, each.answer_at : count] = torch.tensor(each.tokens[each.answer_at :])
            mask[row, :count] = 1
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
            return model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss

    model.get_base_model().set_attn_implementation("sdpa")
    return model, step


def _ours(
    folder: Path, recipe: TrainingRecipe, examples: Sequence[TokenizedExample], *, joined: bool = False
) -> tuple[Any, Step]:
    model = with_adapter(folder, recipe)
    if joined:
        join_products(model)
    loss: AnswerLoss = choose_loss(model, examples, recipe.batch)
    return model, loss.mean


def _alternate(
    sides: dict[str, tuple[Any, Step]], examples: Sequence[TokenizedExample], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every pass over `examples`; a first one, that warms up, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, (model, step) in sides.items():
            took = _pass(model, step, examples)
            if turn:
                seconds[name].append(took)
            print(f"round {turn} of {rounds}: {name}", file=sys.stderr)
    return seconds


def _beside(model: Any, step: Step, examples: Sequence[TokenizedExample], rounds: int) -> list[float]:
    """Return the speeds of passes beside a busy process, of those before with one thread and nobody else.

    A pass beside it begins with what `fieldlm tune` knows of the passes before it, and looks again as often.
    """
    threads = ThreadChoice()
    found: list[float] = []
    for turn in range(rounds + 1):
        most = torch.get_num_threads()
        torch.set_num_threads(1)
        alone = _pass(model, step, examples)
        torch.set_num_threads(most)
        with busy(1), threads.restored():
            took = _pass(model, step, examples, threads)
        if turn:
            found.append(alone / took)
        print(f"round {turn} of {rounds}: beside a busy process", file=sys.stderr)
    return found


def _pass(model: Any, step: Step, examples: Sequence[TokenizedExample], threads: ThreadChoice | None = None) -> float:
    """Return the seconds of a pass over `examples`."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    started_s = time.perf_counter()
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        with threads.step(sum(each.work for each in batch)) if threads else nullcontext():
            step(batch).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    sys.exit(main())
