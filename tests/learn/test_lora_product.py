"""A joined LoRA layer has PEFT's own outputs and gradients."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fieldlm_compiler.learn.tuning.lora_product import join_products


def layers(*, bias: bool = True, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(12, 20, bias=bias), torch.nn.Linear(20, 8, bias=bias)).to(dtype)
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=["0", "1"], **config))  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def learned(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, and the gradients of the input and of every LoRA matrix."""
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().sum().backward()
    assert x.grad is not None
    own = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(own) == 4
    return [out.detach(), x.grad, *own.values()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(12,), (5, 12), (1, 7, 12)])
def test_outputs_and_gradients_are_those_of_peft(*, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape)
    wanted = learned(layers(bias=bias), x)
    model = layers(bias=bias)
    assert join_products(model) == 2
    for one, other in zip(learned(model, x), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_what_is_no_plain_product_is_left_to_peft(config: dict[str, Any]) -> None:
    assert join_products(layers(**config)) == 0


def test_a_base_in_bfloat16_is_left_to_peft() -> None:
    assert join_products(layers(dtype=torch.bfloat16)) == 0
