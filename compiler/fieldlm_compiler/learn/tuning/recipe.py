"""The recipe of a tuning: its values, and the flags of `fieldlm tune` and `fieldlm round` that set them."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fieldlm.core import options, terminal

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer of a family, whatever it calls them, but the head."""
NF4 = "nf4"
"""What bitsandbytes calls the 4-bit type of QLoRA."""
PREFERENCE_WEIGHT = 0.25
"""Of the preference loss beside the cross-entropy, where `--preferences` asks for it: what Hong, Lee and Thorne 2024
(arXiv:2403.07691) took for the smallest of their models, Phi-2."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How to tune. The learning rate falls along a half cosine after `warmup` of the steps."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Names of modules, or the one word for all linear layers."""
    epochs: float = 2.0
    known: float = 0.0
    """In nats; above 0, passes after the first leave out examples with no answer's token above it when last seen."""
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
    preference_weight: float = 0.0
    """Of the preference loss (`preference_loss`) on examples with a rejected answer; at 0 those are not read."""
    patience: int = 0
    """Passes without a better one on the held-out examples after which it ends (`early_stopping`); 0: all are made."""
    kind: str = "lora"
    """Of LoRA: lora; rslora, whose scale falls with the root of the rank, so that large ranks learn as well
    (Kalajdzievski 2023, arXiv:2312.03732); dora, which has a magnitude for every output (Liu et al. 2024,
    arXiv:2402.09353)."""
    base_weights: str = "whole"
    """How the frozen base's linear weights are held: whole, in `precision`; or nf4, 4 bits that are multiplied in
    `precision` (QLoRA, `four_bits`)."""

    def facts(self) -> dict[str, Any]:
        """Return the recipe as tune.json and round.json hold it, and as what was made by it is kept by."""
        facts = asdict(self) | {"targets": list(self.targets)}
        # Recipes from before there was a choice have no such keys, which is the same.
        unsaid = {"preference_weight": 0.0, "patience": 0, "kind": "lora", "base_weights": "whole"}
        return {name: value for name, value in facts.items() if name not in unsaid or value != unsaid[name]}


USUAL = TrainingRecipe()


def alpha_of(rank: int, kind: str) -> int:
    """Return the alpha with which an adapter of `rank` has a scale of 2: rsLoRA's has it at the usual rank, 16."""
    return 8 if kind == "rslora" else 2 * rank


SWEPT: Mapping[str, Callable[[str], Any]] = {
    "rank": options.whole(1, 4096),
    "epochs": options.real(0, 10_000, above=True),
    "batch": options.whole(1, 65_536),
    "learning-rate": options.real(0, 1, above=True),
    "seed": options.whole(*options.SEED),
}
"""Flags of which `--sweep` may name several values, and how one value is read; None where none was given."""
_SAID = {
    "rank": "LoRA rank",
    "epochs": "passes over the examples",
    "batch": "examples a step",
    "learning-rate": "peak learning rate",
    "seed": "order of examples and first weights",
}


def add_recipe(parser: terminal.Parser) -> None:
    """Add the flags that `recipe_of` reads."""
    of = TrainingRecipe
    for name, read in SWEPT.items():
        usual = getattr(of, field_of(name))
        # Without a default, so that one that was given beside a sweep of it is seen.
        parser.add_argument(f"--{name}", type=read, help=f"{_SAID[name]} (default: {usual})")
    parser.add_argument(
        "--lora", choices=("lora", "rslora", "dora"), default=of.kind,
        help="rslora: a scale for large ranks; dora: a magnitude for every output, to be merged",
    )  # fmt: skip
    parser.add_argument(
        "--qlora", action="store_true", help="hold the frozen base in 4 bits (NF4, QLoRA), for less memory"
    )
    parser.add_argument(
        "--max-tokens", type=options.whole(1, options.CONTEXT[1]), default=of.max_tokens,
        help="longer examples are left out",
    )  # fmt: skip
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the base")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument(
        "--preferences",
        action="store_true",
        help="where people corrected an answer, learn to prefer theirs to the one before (ORPO)",
    )
    parser.add_argument(
        "--patience",
        type=options.whole(0, 10_000),
        default=of.patience,
        metavar="PASSES",
        help="end when so many passes brought no better exact match on held-out answers, over tasks; 0: make all",
    )


def field_of(name: str) -> str:
    """Return what the flag `name` is called in a recipe."""
    return name.replace("-", "_")


def recipe_of(args: argparse.Namespace) -> TrainingRecipe:
    """Return the recipe that the flags of `tune` and `round` ask for."""
    given = {field: value for name in SWEPT if (value := getattr(args, field := field_of(name))) is not None}
    return TrainingRecipe(
        **given,
        alpha=alpha_of(given.get("rank", USUAL.rank), args.lora),
        max_tokens=args.max_tokens,
        precision=args.precision,
        device=args.device,
        preference_weight=PREFERENCE_WEIGHT if args.preferences else 0.0,
        patience=args.patience,
        kind=args.lora,
        base_weights=NF4 if args.qlora else USUAL.base_weights,
    )
