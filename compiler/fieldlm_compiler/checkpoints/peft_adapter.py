"""A PEFT adapter folder, read and held against the model it is to change."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file
from fieldlm.core.logs import logger
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, shapes, weight_files
from fieldlm_compiler.checkpoints.licences import licence_of

log = logger(__name__)

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
# Families whose models' names begin with the name of their architecture.
FAMILIES = ("gemma", "granite", "mistral", "mixtral", "phi", "qwen", "stablelm")
HEAD, TABLES = "lm_head", ("lm_head", "embed_tokens")
# What a LoRA's configuration may say without changing what its two matrices mean. Whatever else is switched on is
# refused by name, so that a kind of adapter that does not exist yet is not taken for one that does.
PLAIN = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
        "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
        "lora_alpha", "lora_dropout", "lora_ga_config", "loftq_config", "megatron_config", "megatron_core",
        "peft_type", "peft_version", "qalora_group_size", "r", "revision", "runtime_config", "target_modules",
        "task_type", "velora_config",
        # These say how it is scaled; `true_scale` reads them.
        "alpha_pattern", "rank_pattern", "use_rslora",
    }
)  # fmt: skip
NAMES = {"use_dora": "DoRA", "alora_invocation_tokens": "aLoRA"}
# Initialisations that also change the base, each time peft loads the adapter.
MOVES_BASE = ("pissa", "corda", "olora", "loftq")
# What even merged weights cannot do, and why.
UNMERGEABLE = {
    "alora_invocation_tokens": "it acts behind its invocation tokens only, which merged weights cannot know",
    "arrow_config": "it chooses among several adapters at every token",
    "use_qalora": "it was made for a quantised base; train a LoRA on the full one",
    "layer_replication": "it makes a model with other layers; merge and save it with peft, then compile that",
}
# What only merged weights can say, and peft says rightly.
MERGED = frozenset(
    {
        "corda_config", "fan_in_fan_out", "lora_bias", "modules_to_save", "target_parameters",
        "trainable_token_indices", "use_bdlora", "use_dora",
    }
)  # fmt: skip
VIRTUAL_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """A LoRA that fits its base: where it is, what names it, and what its authors recorded."""

    folder: Path
    sha256: str
    config: dict[str, Any]
    rank: int
    dataset: str | None
    licence: str
    unshippable: tuple[str, ...]
    """What a GGUF adapter cannot carry; merged into the weights, it can stay."""

    @property
    def is_plain(self) -> bool:
        """Say whether one alpha and one rank hold for every module, with the usual scale alpha / rank."""
        return not any(self.config.get(key) for key in ("use_rslora", "alpha_pattern", "rank_pattern"))


def open_adapter(folder: Path, checkpoint: Checkpoint) -> PeftAdapter:
    """Read the adapter in `folder` and check that it was made for `checkpoint`.

    Raises InputError with the module that does not fit.
    """
    config, tuned = _json(folder, "adapter_config.json"), _json(folder, "tune.json", missing={})
    _check_kind(folder, config)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; save the adapter as safetensors")
    _check_base(folder, tuned, checkpoint)
    _note_other_base(folder, config, checkpoint)
    tensors = shapes(weights)
    _check_shapes(folder, config, tensors, checkpoint)
    digest = {"config": sha256_bytes(canonical_json(_telling(config))), "weights": sha256_file(weights)}
    return PeftAdapter(
        folder=folder,
        sha256=sha256_bytes(canonical_json(digest)),
        config=config,
        rank=max((shape[0] for name, shape in tensors.items() if _is_first_half(name)), default=0),
        dataset=cast(str | None, tuned.get("dataset") or None),
        licence=licence_of(folder),
        unshippable=_unshippable(config, tensors, checkpoint),
    )


def check_shippable(adapter: PeftAdapter) -> None:
    """Raise InputError when `adapter` holds something that only a merged model can carry."""
    if adapter.unshippable:
        raise InputError(
            f"{adapter.folder} uses {', '.join(adapter.unshippable)}, which no GGUF adapter can carry; "
            f"use --merge instead"
        )


def check_mergeable(adapter: PeftAdapter) -> None:
    """Raise InputError when no weights can say what `adapter` does, or nobody here knows what it does."""
    for key, reason in UNMERGEABLE.items():
        if adapter.config.get(key):
            raise InputError(f"{adapter.folder} uses {NAMES.get(key, key)} and cannot be merged: {reason}")
    strange = [key for key, value in adapter.config.items() if value and key not in PLAIN | MERGED | UNMERGEABLE.keys()]
    if strange:
        raise InputError(
            f"{adapter.folder} uses {', '.join(strange)}, which is not known here and peft would silently leave out; "
            "merge and save it with the peft that trained it, then compile that model"
        )


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind == "LORA":
        return
    advice = (
        "virtual tokens are no change of weights: train a LoRA instead"
        if kind in VIRTUAL_TOKENS
        else "merge it with peft's merge_and_unload, save that model and compile it"
    )
    raise InputError(f"{folder} is a {kind} adapter; only LoRA can be compiled: {advice}")


def _unshippable(
    config: dict[str, Any], tensors: dict[str, tuple[int, ...]], checkpoint: Checkpoint
) -> tuple[str, ...]:
    held = [NAMES.get(key, key) for key, value in config.items() if value and key not in PLAIN]
    if config.get("bias", "none") != "none":
        held.append(f"bias={config['bias']}")
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(MOVES_BASE):
        held.append(f"init_lora_weights={start} (it changes the base too)")
    tables = {module.rpartition(".")[2] for module in map(_module, tensors)} & {*TABLES}
    if tables and f"{HEAD}.weight" not in _base_shapes(checkpoint):
        held.append(f"{' and '.join(sorted(tables))} of a model whose embedding and head are one table")
    return tuple(held)


def _is_first_half(name: str) -> bool:
    return ".lora_A." in name or name.endswith(".lora_embedding_A")


def _module(name: str) -> str:
    """Return the module that the tensor `name` of an adapter belongs to."""
    return re.split(r"\.(?:base_layer|modules_to_save|lora_|token_adapter|weight$|bias$)", name.removeprefix(PREFIX))[0]


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
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise InputError(f"{path} is no JSON object; save the adapter again")
    return cast(dict[str, Any], said)


def _check_base(folder: Path, tuned: dict[str, Any], checkpoint: Checkpoint) -> None:
    wanted = tuned.get("base_sha256")
    if wanted and wanted not in (checkpoint.sha256, *map(sha256_file, weight_files(checkpoint.folder))):
        raise InputError(
            f"{folder} was tuned on weights {wanted[:12]}…, {checkpoint.name} has others; name the one it was tuned on"
        )


def _note_other_base(folder: Path, config: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Say so when the base that peft recorded is of another architecture, as far as its folder or its name tells."""
    named = str(config.get("base_model_name_or_path") or "")
    try:
        found = json.loads((Path(named) / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        parts = set(re.split(r"[^a-z]+", Path(named).name.lower()))
        found = next((each for each in FAMILIES if each in parts), None)
        is_other = found is not None and not checkpoint.architecture.startswith(found)
    else:
        is_other = found != checkpoint.architecture
    if named and is_other:
        log.info(
            f"  note: {folder.name} was trained on {named}, a {found}, and {checkpoint.name} is a "
            f"{checkpoint.architecture}: equal shapes alone do not make it fit"
        )


def _base_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    base: dict[str, tuple[int, ...]] = {}
    for path in weight_files(checkpoint.folder):
        base.update(shapes(path))
    return base


def _check_shapes(
    folder: Path, config: dict[str, Any], tensors: dict[str, tuple[int, ...]], checkpoint: Checkpoint
) -> None:
    """Raise InputError unless every pair of `tensors` fits a weight of the base."""
    base = _base_shapes(checkpoint)
    if not tensors:
        raise InputError(f"{folder} changes nothing: {WEIGHTS} has no tensors")
    for name, found in _changed(folder, tensors):
        wanted = base.get(f"{name}.weight")
        if wanted is None and name != HEAD and not config.get("target_parameters"):
            raise InputError(f"{folder} changes {name}, which {checkpoint.name} does not have; it is for another model")
        turned = found[::-1] if config.get("fan_in_fan_out") else found
        # A tied head is not in the file; its table is.
        table = wanted or next((base[key] for key in base if key.endswith("embed_tokens.weight")), None)
        is_table = name.rpartition(".")[2] in TABLES
        if table is not None and is_table and table[1:] == turned[1:] and table[0] != turned[0]:
            raise InputError(
                f"{folder} was trained on {checkpoint.name} with its vocabulary resized from {table[0]} to {turned[0]} "
                "tokens: resize the model, merge and save it with its new tokenizer by peft, then compile that folder"
            )
        if wanted is not None and wanted != turned:
            why = "its fan_in_fan_out is wrong, or it" if config.get("fan_in_fan_out") else "it"
            raise InputError(
                f"{folder} changes {name} of shape {turned}, {checkpoint.name} has {wanted}; {why} is for another model"
            )


def _changed(folder: Path, tensors: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each module that `tensors` change, with the shape its weight must have."""
    for name, shape in tensors.items():
        if _is_first_half(name):
            other = tensors.get(name.replace("_A", "_B"))
            if other is None:
                raise InputError(f"{folder} has only half of the pair for {_module(name)}; save the adapter again")
            pair = (shape[-1], other[0])
            yield _module(name), pair if "embedding" in name else pair[::-1]
        elif name.endswith(".weight") and ".lora_" not in name:
            yield _module(name), shape
