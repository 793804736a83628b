"""What calibration knows nothing of is not free: experts are priced, and what is not keeps a safe type."""

import shutil
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import open_checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import json_tokens
from fieldlm_compiler.export import quantize
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search import calibrate
from fieldlm_compiler.search.calibrate import FISHER
from fieldlm_compiler.search.frontier import Frontier, Option
from fieldlm_compiler.search.price import SAFE_BITS, price
from tests.support import tiny_models
from tests.verify.test_architectures import SHAPE

MOE: dict[str, Any] = {
    "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, work: Path) -> tuple[Path, Path]:
    """Return full weights of a small mixture of experts, and the folder with its statistics."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("experts") / "moe"
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **SHAPE | MOE), dtype=torch.float32)
    model.save_pretrained(folder)
    tiny_models.copy_tokenizer(folder)
    checkpoint, statistics = open_checkpoint(str(folder)), tmp_path_factory.mktemp("statistics")
    full = lower(checkpoint, "gguf", Stages(work)).base
    (tokens,) = json_tokens(folder, [topics["assignment"][:6000]])
    calibrate.collect(folder, full, [tokens[at : at + 128] for at in range(0, 512, 128)], [], statistics)
    return full, statistics


def test_experts_are_priced_like_any_other_matrix(experts: tuple[Path, Path], profile: Profile) -> None:
    """transformers 5 keeps all experts of a layer in one parameter, which calibration used to pass over."""
    full, statistics = experts
    priced = price(full, statistics, profile.cpu.isa).value
    stacked = {name: options for name, options in priced.items() if name.endswith("_exps.weight")}
    assert len(stacked) == 6
    for options in priced.values():
        losses = {type: loss for type, _, loss in options}
        assert None not in losses.values()
        assert losses["Q4_0"] > 4 * losses["Q8_0"] > 0


def test_what_nobody_priced_keeps_a_safe_type_whatever_the_budget(
    experts: tuple[Path, Path], profile: Profile, tmp_path: Path
) -> None:
    full, statistics = experts[0], Path(shutil.copytree(experts[1], tmp_path / "statistics"))
    fisher = load_file(statistics / FISHER)
    unreached = "blk.1.ffn_down_exps.weight"
    for name in fisher:
        if name.startswith(unreached):
            fisher[name][:] = 0.0
    save_file({name: sums for name, sums in fisher.items() if "blk.0.attn_v" not in name}, statistics / FISHER)
    priced = price(full, statistics, profile.cpu.isa).value
    unknown = {name for name, options in priced.items() if options[0][2] is None}
    assert unknown == {unreached, "blk.0.attn_v.weight"}
    frontier = Frontier(
        {name: [Option(type, size, loss or 0.0) for type, size, loss in each] for name, each in priced.items()}
    )
    for point in (frontier.points[0], frontier.points[-1]):
        mixture = frontier.mixture(point)
        assert {mixture[name].type for name in unknown} == {"Q8_0"}
    assert SAFE_BITS == 8


def test_a_hybrid_model_is_quantised_as_llama_cpp_does_it(stages: Stages, tmp_path: Path) -> None:
    """LFM2's convolutions have rows of three weights, which no block holds and llama.cpp never quantises."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    layers = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    config: Any = AutoConfig.for_model("lfm2", **SHAPE | layers)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "hybrid")
    tiny_models.copy_tokenizer(tmp_path / "hybrid")
    full = lower(open_checkpoint(str(tmp_path / "hybrid")), "gguf", stages)
    made = quantize.quantize(full.base, tmp_path / "q.gguf", "Q8_0").value
    assert made["tensors"]["Q8_0"] > 8
