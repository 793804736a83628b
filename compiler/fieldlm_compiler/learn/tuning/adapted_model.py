"""The model that a tuning trains: a frozen base, and an adapter beside its linear layers that learns."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm.core.errors import InputError, MissingDependencyError
from fieldlm_compiler.checkpoints.peft_adapter import WEIGHTS
from fieldlm_compiler.learn.tuning.device_choice import choose_device, faster_on
from fieldlm_compiler.learn.tuning.four_bits import keep_trainable, load_options
from fieldlm_compiler.learn.tuning.processes.team import ALONE, Team
from fieldlm_compiler.learn.tuning.recipe import ALL_LINEAR, NF4, TrainingRecipe


def adapted_model(
    checkpoint: Path, recipe: TrainingRecipe, start: Path | None, blocks: Path | None, team: Team = ALONE
) -> tuple[Any, dict[str, int]]:
    """Return the model, and how many of its matrices are held in which type of `blocks`."""
    from fieldlm_compiler.learn.tuning.lora_product import join_products
    from fieldlm_compiler.learn.tuning.quantised_weights import BlockTypes, hold_as_blocks

    with terminal.progress("load the model"):
        # What is rounded to blocks must be what the compiler will round, to the last bit.
        precision = "float32" if blocks else team.same(lambda: precision_of(recipe))
        model = with_adapter(checkpoint, replace(recipe, precision=precision))
        if start:
            begin_at(model, start)
        if blocks:
            return model, hold_as_blocks(model, BlockTypes(blocks))
        join_products(model)
    return model, {}


def precision_of(recipe: TrainingRecipe) -> str:
    """Return the type in which the base is multiplied here: what `recipe` says, or whichever is faster."""
    return faster_on(choose_device(recipe.device)) if recipe.precision == "auto" else recipe.precision


def with_adapter(checkpoint: Path, recipe: TrainingRecipe) -> Any:
    """Load the checkpoint frozen, in the faster of float32 and bfloat16 on its device, with a fresh float32 LoRA.

    Its linear weights are in 4 bits where `recipe` says so. Raises InputError for modules that it has not, and
    MissingDependencyError for a bitsandbytes that cannot be used here.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from fieldlm_compiler.learn.tuning.answer_loss import OWN_ATTENTION

    disable_progress_bar()
    device = choose_device(recipe.device)
    dtype = getattr(torch, precision_of(recipe))
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
        # A base whose weights are quantised as they are read is where it computes from the beginning.
        quantised = load_options(device, dtype) if recipe.base_weights == NF4 else {}
        try:
            base = AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=dtype, attn_implementation=OWN_ATTENTION, **quantised
            )
        except ImportError as error:
            if not quantised:
                raise
            raise MissingDependencyError(f"--qlora: {error}") from error
        keep_trainable(base)
        try:
            return get_peft_model(base, config).to(device)
        except ValueError as error:
            raise InputError(f"{checkpoint} has no module {', '.join(recipe.targets)} to tune: {error}") from error


def check_start(folder: Path, recipe: TrainingRecipe) -> None:
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


def begin_at(model: Any, folder: Path) -> None:
    """Put the weights of the adapter in `folder` into the LoRA of `model`."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        found = set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise InputError(f"{folder} does not fit this model: {error}") from error
    if found.unexpected_keys:
        raise InputError(f"{folder} tunes {found.unexpected_keys[0]}, which this model or recipe does not")
