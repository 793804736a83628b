"""A PEFT adapter folder, read and held against the model it is to change."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fieldlm.compiler.checkpoint import Checkpoint, shapes, weight_files
from fieldlm.formats.errors import InputError
from fieldlm.formats.files import canonical_json, sha256_bytes, sha256_file

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
# What a GGUF adapter cannot carry; merged into the weights, all of it can stay.
UNSHIPPABLE = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "fan_in_fan_out": "fan_in_fan_out",
    "lora_bias": "lora_bias",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "layer_replication",
}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA that fits its base: where it is, what names it, and what its authors recorded."""

    folder: Path
    sha256: str
    config: dict[str, Any]
    rank: int
    dataset: str | None

    @property
    def is_plain(self) -> bool:
        """Say whether one alpha and one rank hold for every module, with the usual scale alpha / rank."""
        return not any(self.config.get(key) for key in ("use_rslora", "alpha_pattern", "rank_pattern"))


def open_adapter(folder: Path, checkpoint: Checkpoint) -> Adapter:
    """Read the adapter in `folder` and check that it was made for `checkpoint`.

    Raises InputError with the module that does not fit.
    """
    config, tuned = _json(folder, "adapter_config.json"), _json(folder, "tune.json", missing={})
    if config.get("peft_type") != "LORA":
        raise InputError(f"{folder} is a {config.get('peft_type')} adapter; only LoRA can be compiled")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; save the adapter as safetensors")
    _check_base(folder, tuned, checkpoint)
    _check_shapes(folder, shapes(weights), checkpoint)
    digest = {"config": sha256_bytes(canonical_json(_telling(config))), "weights": sha256_file(weights)}
    return Adapter(
        folder=folder,
        sha256=sha256_bytes(canonical_json(digest)),
        config=config,
        rank=max(shape[0] for name, shape in shapes(weights).items() if ".lora_A" in name),
        dataset=cast(str | None, tuned.get("dataset") or None),
    )


def check_shippable(adapter: Adapter) -> None:
    """Raise InputError when `adapter` holds something that only a merged model can carry."""
    held = [name for key, name in UNSHIPPABLE.items() if adapter.config.get(key)]
    if adapter.config.get("bias", "none") != "none":
        held.append(f"bias={adapter.config['bias']}")
    if held:
        raise InputError(
            f"{adapter.folder} uses {', '.join(held)}, which no GGUF adapter can carry; use --merge instead"
        )


def true_scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Return what PEFT multiplies B·A with in `module`: its own alpha, and rank or, with rsLoRA, the root of it."""
    alpha = _pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _pattern(patterns: dict[str, float], module: str, otherwise: float) -> float:
    """Look `module` up as PEFT does: the first pattern that matches the end of its name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def _telling(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the base lay on the machine that trained; sort what PEFT writes in any order."""
    kept = {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision")}
    return {key: sorted(value) if isinstance(value, list) else value for key, value in kept.items()}


def _json(folder: Path, name: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if missing is not None:
            return missing
        raise InputError(f"{folder} has no {name}; name the folder that peft's save_pretrained wrote")
    try:
        return cast(dict[str, Any], json.loads(path.read_bytes()))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def _check_base(folder: Path, tuned: dict[str, Any], checkpoint: Checkpoint) -> None:
    wanted = tuned.get("base_sha256")
    if wanted and wanted not in (checkpoint.sha256, *map(sha256_file, weight_files(checkpoint.folder))):
        raise InputError(
            f"{folder} was tuned on weights {wanted[:12]}…, {checkpoint.name} has others; name the one it was tuned on"
        )


def _check_shapes(folder: Path, tensors: dict[str, tuple[int, ...]], checkpoint: Checkpoint) -> None:
    base: dict[str, tuple[int, ...]] = {}
    for path in weight_files(checkpoint.folder):
        base.update(shapes(path))
    changed = [name for name in tensors if ".lora_A" in name]
    if not changed:
        raise InputError(f"{folder} changes nothing: it has no lora_A tensors")
    for name in changed:
        module = name.removeprefix(PREFIX).split(".lora_A")[0]
        other = name.replace(".lora_A", ".lora_B")
        wanted = base.get(f"{module}.weight")
        found = (tensors.get(other, (0,))[0], tensors[name][-1])
        if wanted is None and module != "lm_head":
            raise InputError(
                f"{folder} changes {module}, which {checkpoint.name} does not have; it is for another model"
            )
        if wanted is not None and wanted != found:
            raise InputError(
                f"{folder} changes {module} of shape {found}, {checkpoint.name} has {wanted}; it is for another model"
            )
