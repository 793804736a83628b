"""Quantisation-aware tuning: the forward pass multiplies with the very blocks that the compiler will write.

What a weight becomes is not worked out here: ggml's own quantiser rounds the merged weights at every step, as it does
when the merged model is compiled. The gradient goes straight through the rounding (Bengio, Léonard and Courville 2013,
arXiv:1308.3432), so that LoRA learns where to put a weight for its block to come out right.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch.nn.functional import linear

from fieldlm.core.errors import InputError
from fieldlm.formats.gguf import read_header
from fieldlm_compiler.export.ggml import Floats, Kind, dequantize, kind, quantize
from fieldlm_compiler.learn.tuning.lora_product import is_plain

WHOLE = ("F32", "F16", "BF16")
LEAST_ROWS = 64  # a thread's share: starting one costs as much as rounding some rows


class BlockTypes:
    """The type of each matrix in a GGUF file, by the names that transformers has for them."""

    def __init__(self, path: Path) -> None:
        from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map

        header = read_header(path)
        self.path = path
        self._shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
        self._types = {name: GGMLQuantizationType(tensor.type).name for name, tensor in header.tensors.items()}
        layers = int(header.metadata.get(f"{header.architecture}.block_count", 0))
        known = next(number for number, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
        self._names = get_tensor_name_map(known, layers)

    def of(self, module: str, weight: torch.Tensor) -> Kind | None:
        """Return what the file holds the weight (out, in) of `module` in; None for a type that is not blocks.

        Raises InputError when the file has no such matrix.
        """
        name = f"{self._names.get_name(module)}.weight"
        shape = tuple(reversed(weight.shape))
        if (found := self._shapes.get(name)) != shape:
            what = f"has {module} as {found}" if found else f"has no {module}"
            raise InputError(f"{self.path} {what}, the model to tune as {shape}; name a file made from this model")
        return None if self._types[name] in WHOLE else kind(self._types[name])


def hold_as_blocks(model: Any, types: BlockTypes) -> dict[str, int]:
    """Let the PEFT `model` compute with its weights as `types` has them; return how many matrices have which type.

    Raises InputError for a matrix that the file has not, and for a LoRA that is not plain and float32.
    """
    held = Counter[str]()
    base = model.get_base_model()
    done = set[int]()
    for name, module in base.named_modules():
        if type(module) is LoraLinear:
            weight: Any = module.base_layer.weight
            if not is_plain(module):
                raise InputError(f"{name} is no plain LoRA in float32, which training for blocks needs")
            to = types.of(name, weight)
            if to is not None:
                module.forward = MethodType(_forward_as(to), module)
                held[to.name] += 1
            done.add(id(weight))
    with torch.no_grad():
        for name, module in base.named_modules():
            weight = getattr(module, "weight", None)
            # What learns is LoRA's own; the head of a tied model is its embedding, which comes first.
            if (
                not isinstance(module, torch.nn.Linear | torch.nn.Embedding)
                or weight.requires_grad
                or id(weight) in done
            ):
                continue
            done.add(id(weight))
            if (to := types.of(name, weight)) is not None:
                weight.copy_(rounded(weight, to))
                held[to.name] += 1
    return dict(sorted(held.items()))


def rounded(weight: torch.Tensor, to: Kind) -> torch.Tensor:
    """Return `weight` (out, in) as it is after it was written in blocks of type `to`, by way of the 16 bits between."""
    rows = weight.detach().half().float().numpy(force=True)
    threads = max(1, min(torch.get_num_threads(), len(rows) // LEAST_ROWS))
    step = -(-len(rows) // threads)
    parts = [rows[at : at + step] for at in range(0, len(rows), step)]

    def there_and_back(part: Floats) -> torch.Tensor:
        return torch.from_numpy(dequantize(quantize(part, to), to))

    with ThreadPoolExecutor(threads) as pool:
        made = list(pool.map(there_and_back, parts))
    return torch.cat(made).to(weight.device)


class _BlockProduct(torch.autograd.Function):
    """x Q(W + scale · B A)ᵀ + bias, and the gradients of a LoRA layer beside the weights Q(…).

    W (out, in), A (r, in), B (out, r). Straight through Q, the gradient of the merged weight is gradᵀ x; it is never
    formed, since A and B need only its products with them.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        x, weight, bias, a, b, scale, to = given
        rows = x.reshape(-1, x.shape[-1])
        held = rounded(torch.addmm(weight, b, a, alpha=scale), to)
        ctx.save_for_backward(rows, held, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return linear(rows, held, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, held, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, held.shape[0])
        of_a = ((grad @ b).T @ rows).mul_(ctx.scale)
        of_b = (grad.T @ (rows @ a.T)).mul_(ctx.scale)
        of_x = (grad @ held).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_a, of_b, None, None


def _forward_as(to: Kind) -> Any:
    def forward(self: Any, x: torch.Tensor) -> Any:
        (name,) = self.active_adapters
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        return _BlockProduct.apply(x, base.weight, base.bias, a, b, self.scaling[name], to)

    return forward
