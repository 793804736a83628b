"""Transformers 4 compatibility: a checkpoint as that would have saved it, and the tokens that end its answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, link_or_copy

TOKENIZER = "tokenizer.json"
# Tokens that end a turn in the templates of the families we know, whether or not the configuration lists them.
ENDS_OF_TURN = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>", "</s>"}
)


def in_old_form(checkpoint: Path, into: Path) -> None:
    """Write `checkpoint` into the folder `into` as Transformers 4 would have saved it; weights are only linked.

    Transformers 4 reads a configuration that Transformers 5 saved without complaint, and takes rope_theta 10,000
    whatever stands in `rope_parameters`. The tokenizer stays behind: the export needs none, and version 4 refuses it.
    """
    config = old_config(_load(checkpoint / "config.json"))
    (into / "config.json").write_bytes(canonical_json(config))
    weights = [path for path in checkpoint.iterdir() if ".safetensors" in path.name]
    if not weights:
        raise InputError(f"{checkpoint} has no .safetensors weights; save the model with save_pretrained")
    for path in weights:
        link_or_copy(path, into / path.name)


def old_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with what Transformers 5 renamed under its Transformers 4 names."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    if "dtype" in config:
        old["torch_dtype"] = config["dtype"]
    rope: dict[str, Any] = dict(config.get("rope_parameters") or {})
    if any(isinstance(value, dict) for value in rope.values()):
        full, sliding = rope.get("full_attention", {}), rope.get("sliding_attention", {})
        if not full.keys() | sliding.keys() <= {"rope_theta", "rope_type"}:
            raise InputError("rope_parameters scale per layer type, which this exporter cannot say in the old form")
        return old | {"rope_theta": full["rope_theta"], "rope_local_base_freq": sliding["rope_theta"]}
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            old[key] = rope.pop(key)
    if rope.get("rope_type", "default") != "default":
        old["rope_scaling"] = rope
    return old


def named_stops(checkpoint: Path) -> dict[int, str]:
    """Return the tokens that the configurations and the tokenizer of `checkpoint` themselves say end an answer."""
    added = {token["id"]: token["content"] for token in _load(checkpoint / TOKENIZER).get("added_tokens") or []}
    last = _load(checkpoint / "tokenizer_config.json").get("eos_token")
    last = last["content"] if isinstance(last, dict) else last
    stops = {number for number, content in added.items() if content == last}
    for name in ("config.json", "generation_config.json"):
        named = _load(checkpoint / name).get("eos_token_id")
        stops.update(named if isinstance(named, list) else [] if named is None else [named])
    return {number: added.get(number, f"token {number}") for number in sorted(stops)}


def stop_tokens(checkpoint: Path) -> list[int]:
    """Return the ids that end an answer: what the configurations name, and every known end of a turn."""
    added = _load(checkpoint / TOKENIZER).get("added_tokens") or []
    stops = {*named_stops(checkpoint), *(token["id"] for token in added if token["content"] in ENDS_OF_TURN)}
    if not stops:
        raise InputError(f"{checkpoint} names no token that ends an answer; set eos_token_id in generation_config.json")
    return sorted(stops)


def _load(path: Path) -> dict[str, Any]:
    """Read a JSON object; one that is not there is empty."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
