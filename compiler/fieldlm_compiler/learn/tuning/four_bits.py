"""QLoRA: the frozen base's linear weights are held in 4 bits, and every product makes them whole again for itself.

They are NF4 in blocks of 64, whose scales are quantised once more (Dettmers et al. 2023, arXiv:2305.14314), by
bitsandbytes. Embeddings and the head stay whole, and what learns is in float32 as always. The adapter is an ordinary
one: it goes onto the full weights, or onto whatever else they are compiled to.
"""

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fieldlm.core.errors import MissingDependencyError
from fieldlm.core.extras import install_advice
from fieldlm_compiler.learn.tuning.recipe import NF4, TrainingRecipe


def check_four_bits(recipe: TrainingRecipe) -> None:
    """Raise MissingDependencyError where `recipe` wants 4 bits and bitsandbytes is not installed."""
    if recipe.base_weights == NF4 and find_spec("bitsandbytes") is None:
        raise MissingDependencyError(f"--qlora needs bitsandbytes; {install_advice('fieldlm-compiler', 'qlora')}")


def load_options(device: str, dtype: Any) -> dict[str, Any]:
    """Return what `from_pretrained` is told, so that weights become 4 bits one by one as they are read.

    Products are made in `dtype`, a floating type of PyTorch's, on `device`.
    """
    import torch
    from transformers import BitsAndBytesConfig

    # The one of this process, where each has its own.
    where = torch.cuda.current_device() if device == "cuda" else device
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": where}}


def keep_trainable(model: Any) -> None:
    """Let `model`, just loaded, be asked without gradients and trained after that.

    On a processor with AVX-512 BF16, bitsandbytes lays weights out anew for good when it is first asked without
    gradients, and what it computes with those has none: a measured model would learn little, and say nothing of it.
    """
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def four_bit_layers(model: Any) -> list[Any]:
    """Return the linear layers of `model` whose weights are in 4 bits."""
    if not any(getattr(module, "is_loaded_in_4bit", False) for module in model.modules()):
        return []
    linear: Any = import_module("bitsandbytes.nn").Linear4bit

    return [module for module in model.modules() if isinstance(module, linear)]


@contextmanager
def multiplied_in(model: Any, dtype: Any) -> Generator[None]:
    """Let the 4-bit layers of `model` make their products in `dtype` for a while."""
    layers = four_bit_layers(model)
    held = [layer.compute_dtype for layer in layers]
    for layer in layers:
        layer.compute_dtype = dtype
    try:
        yield
    finally:
        for layer, before in zip(layers, held, strict=True):
            layer.compute_dtype = before


def base_bytes(model: Any) -> int:
    """Return the memory, in bytes, that the frozen weights of `model` take, with the scales of those in 4 bits."""
    count = sum(each.numel() * each.element_size() for each in model.parameters() if not each.requires_grad)
    for layer in four_bit_layers(model):
        state = layer.weight.quant_state
        tables = (state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset)
        count += sum(each.numel() * each.element_size() for each in tables)
    return count
