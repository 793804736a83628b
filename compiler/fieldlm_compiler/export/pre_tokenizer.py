"""Pre-tokenizers by their definition: how text is cut before pairs are joined, and llama.cpp's name for that.

llama.cpp's converter recognises a pre-tokenizer by a hash over the tokens of one text. A vocabulary that was trimmed,
extended, or trained anew with the same rule gives other tokens, though the rule is one that llama.cpp has. Whether it
cuts alike is tried afterwards on every text of the tokenizer's gate, as with any other model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The patterns as the models' authors publish them in tokenizer.json; llama.cpp has them in src/llama-vocab.cpp.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}


def name_of(folder: Path) -> str | None:
    """Return llama.cpp's name for the pre-tokenizer in `folder`'s tokenizer.json, or None for one not known here."""
    part = json.loads((folder / "tokenizer.json").read_bytes()).get("pre_tokenizer") or {}
    steps: list[Mapping[str, Any]] = part.get("pretokenizers", [part])
    match [(step.get("type"), step) for step in steps]:
        case [("ByteLevel", last)] if _gpt2(last):
            return "gpt-2"
        case [("Digits", first), ("ByteLevel", last)] if first.get("individual_digits") and _gpt2(last):
            return "smollm"
        case [("Split", first), ("ByteLevel", last)] if first.get("behavior") == "Isolated" and _bytes_alone(last):
            return PATTERNS.get(first.get("pattern", {}).get("Regex", "")) if not first.get("invert") else None
        case _:
            return None


def _gpt2(step: Mapping[str, Any]) -> bool:
    """Say whether `step` cuts by GPT-2's own pattern, and puts no space in front."""
    return bool(step.get("use_regex", True)) and not step.get("add_prefix_space", True)


def _bytes_alone(step: Mapping[str, Any]) -> bool:
    return not step.get("use_regex", True) and not step.get("add_prefix_space", True)
