"""Whatever peft can write says merged what it says beside its base, and is shipped only where a GGUF can say it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fieldlm.core.errors import GateError, InputError
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.checkpoints.merge import merge_folder
from fieldlm_compiler.checkpoints.peft_adapter import check_mergeable, check_shippable, open_adapter
from tests.support import tiny_models

# kind → what makes it, and what a GGUF adapter cannot say of it
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, ""),
    "root of the rank": ({"use_rslora": True, "r": 16}, ""),
    "alpha by module": ({"alpha_pattern": {"v_proj": 32, r"layers\.1\.self_attn\.q_proj": 2}}, ""),
    "rank by module": ({"rank_pattern": {"down_proj": 2}}, ""),
    "some layers": ({"layers_to_transform": [1], "exclude_modules": ["v_proj"]}, ""),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, ""),
    "DoRA": ({"use_dora": True}, "DoRA"),
    "DoRA, root of the rank": ({"use_dora": True, "use_rslora": True}, "DoRA"),
    "bias": ({"bias": "all"}, "bias=all"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa (it changes the base too)"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_lora_weights=olora (it changes the base too)"),
    "head saved whole": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "embedding saved whole": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [1, 2, 500]}, "trainable_token_indices"),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens of a model whose embedding and head"),
    "head": ({"target_modules": ["lm_head", "q_proj"]}, "lm_head of a model whose embedding and head are one table"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_merged_what_it_says_beside_its_base(kind: str, tiny: Checkpoint, tmp_path: Path) -> None:
    """`merge_folder` itself holds what it wrote against peft, and refuses; the test does it once more by hand."""
    change, unshippable = KINDS[kind]
    adapter = open_adapter(tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder, **change), tiny)
    check_mergeable(adapter)
    gap = merge_folder(tiny.folder, adapter.folder, tmp_path / "merged")["logit_gap"]
    assert gap < 0.001
    beside, base = (tiny_models.logits(tiny.folder, adapter=each) for each in (adapter.folder, None))
    merged = tiny_models.logits(tmp_path / "merged")
    assert abs(merged - beside).max() < 0.001
    assert abs(merged - base).max() > 0.1
    if unshippable:
        with pytest.raises(InputError) as caught:
            check_shippable(adapter)
        assert f"uses {unshippable}" in str(caught.value)
        assert "use --merge instead" in str(caught.value)
    else:
        check_shippable(adapter)


def test_a_tied_table_that_only_one_side_changed_is_stored_twice(tiny: Checkpoint, tmp_path: Path) -> None:
    for name, target, tied in (("head", ["lm_head"], False), ("body", ["q_proj"], True)):
        lora = tiny_models.tiny_adapter(tmp_path / name, tiny.folder, target_modules=target)
        merge_folder(tiny.folder, lora, tmp_path / f"{name}-merged")
        merged = open_checkpoint(str(tmp_path / f"{name}-merged"))
        assert json.loads((merged.folder / "config.json").read_bytes())["tie_word_embeddings"] is tied
        assert merged.parameters == tiny.parameters + tiny_models.VOCABULARY * 64 * (not tied)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"alora_invocation_tokens": [1, 5]}, "uses aLoRA and cannot be merged: it acts behind its invocation tokens"),
        ({"use_qalora": True}, "uses use_qalora and cannot be merged: it was made for a quantised base"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "uses layer_replication and cannot be merged: it makes a model"),
    ],
)
def test_what_weights_cannot_say_is_refused(
    tiny: Checkpoint, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    adapter = open_adapter(changed(tiny, tmp_path, **change), tiny)
    with pytest.raises(InputError, match=reason):
        check_mergeable(adapter)
    with pytest.raises(InputError, match="which no GGUF adapter can carry"):
        check_shippable(adapter)


def test_a_kind_of_lora_that_does_not_exist_yet_is_not_shipped(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uses use_tomorrows_lora, which no GGUF adapter can carry"):
        check_shippable(open_adapter(changed(tiny, tmp_path, use_tomorrows_lora=True), tiny))


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("PROMPT_TUNING", "virtual tokens are no change of weights: train a LoRA instead"),
        ("LOKR", "merge it with peft's merge_and_unload, save that model and compile it"),
    ],
)
def test_other_kinds_of_adapter_are_refused_with_what_to_do(
    tiny: Checkpoint, tmp_path: Path, kind: str, advice: str
) -> None:
    with pytest.raises(InputError, match=f"is a {kind} adapter; only LoRA can be compiled: {advice}"):
        open_adapter(changed(tiny, tmp_path, peft_type=kind), tiny)


def test_an_adapter_with_a_half_missing_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = changed(tiny, tmp_path)
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if ".lora_B" in name)
    save_file({other: weights[other] for other in weights if other != name}, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"has only half of the pair for model\.layers\.0\.\S+; save the adapter"):
        open_adapter(folder, tiny)


def test_a_module_that_the_configuration_promises_and_the_file_lacks_is_refused(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    folder = changed(tiny, tmp_path, target_modules=["q_proj", "v_proj", "down_proj", "up_proj"])
    open_adapter(folder, tiny)
    with pytest.raises(InputError, match="peft cannot merge lora: Found missing adapter keys"):
        merge_folder(tiny.folder, folder, tmp_path / "merged")


def test_a_merge_that_says_something_else_is_not_handed_out(tiny: Checkpoint, tmp_path: Path) -> None:
    """An infinite weight: peft's own check catches it, or ours does."""
    from safetensors.numpy import load_file, save_file

    folder = changed(tiny, tmp_path)
    weights = load_file(folder / "adapter_model.safetensors")
    weights[next(iter(weights))][:] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises((InputError, GateError), match=r"cannot merge|is not what it is"):
        merge_folder(tiny.folder, folder, tmp_path / "merged")


def changed(base: Checkpoint, tmp_path: Path, **change: Any) -> Path:
    """A plain adapter whose configuration says something else."""
    folder = tiny_models.tiny_adapter(tmp_path / "lora", base.folder)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    return folder


def test_a_matrix_that_is_said_to_lie_the_other_way_round_is_refused_with_the_shape_it_would_have(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    lora = tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder, target_modules=["down_proj"])
    config = json.loads((lora / "adapter_config.json").read_bytes())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": True}))
    with pytest.raises(
        InputError, match=r"of shape \(128, 64\), .* has \(64, 128\); its fan_in_fan_out is wrong, or it"
    ):
        open_adapter(lora, tiny)
