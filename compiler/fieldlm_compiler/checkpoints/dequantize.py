"""Dequantise: a GGUF becomes a checkpoint with 32-bit weights. Runs in a child process.

transformers reads the weights well and the tokenizer badly: it forgets how the text is cut before the merges. That is
put back from the name the GGUF carries, and then proved: both must give the same tokens.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fieldlm.core.errors import InputError
from fieldlm.formats.gguf import read_header
from fieldlm_compiler.checkpoints.tokenizer_parity import CORPUS, first_difference, gguf_tokens, json_tokens

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
DIGITS = {"type": "Digits", "individual_digits": True}


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


# tokenizer.ggml.pre → how the text is cut, as in llama.cpp's src/llama-vocab.cpp
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _bytes(use_regex=True),
    "llama-bpe": _sequence(_split(LLAMA3), _bytes(use_regex=False)),
    "qwen2": _sequence(_split(QWEN2), _bytes(use_regex=False)),
    **{
        name: _sequence(DIGITS, _bytes(use_regex=True))
        for name in ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
    },
}


def dequantize(path: Path, folder: Path) -> dict[str, str]:
    """Write the model in the GGUF file `path` to `folder`; returns its weight type and licence.

    Raises InputError when the file is cut short, of an unknown architecture, or its tokenizer cannot be kept.
    """
    with _read_once():
        fields = _fields(path)
        _save(path, folder)
    _repair_tokenizer(folder, fields)
    check_tokenizer(folder, path)
    (folder / "config.json").write_text(_plain_config(folder / "config.json"))
    return {"type": str(fields["type"]), "licence": str(fields.get("general.license") or "unknown")}


@contextmanager
def _read_once() -> Generator[None]:
    """Let transformers read a file's header once, and make a family's table of names once.

    It reads the header three times, and makes the table for every layer of every module: half of all the time.
    """
    gguf: Any = import_module("gguf")
    reader, table = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(reader), cache(table)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, table


def _fields(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader, LlamaFileType

    try:
        reader = GGUFReader(str(path))  # spelled as transformers does
    except (ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{path} is cut short or damaged: {error}; fetch it again") from error
    names = ("general.license", "tokenizer.ggml.pre", "tokenizer.ggml.model", "general.file_type")
    fields = {name: field.contents() for name in names if (field := reader.get_field(name)) is not None}
    try:
        kind = LlamaFileType(fields.get("general.file_type", -1)).name.partition("_")[2]
    except ValueError:
        kind = "quantised"
    return {**fields, "type": kind}


def _save(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError) as error:
        raise InputError(f"transformers cannot read {path.name}: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        # It reads the experts of some families apart where the model has them together.
        family = read_header(path).architecture
        raise InputError(
            f"transformers cannot make a checkpoint of {path.name}, a {family}, again; name the model it was made from"
        ) from error
    # The weights are plain now; left in place, these two would claim they are not, and saving would be refused.
    vars(model)["hf_quantizer"] = None
    delattr(model.config, "quantization_config")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _repair_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    path = folder / "tokenizer.json"
    if fields.get("tokenizer.ggml.model") != "gpt2":
        return
    kept = json.loads(path.read_bytes())
    kept["pre_tokenizer"] = PRE_TOKENIZERS.get(str(fields.get("tokenizer.ggml.pre")), kept["pre_tokenizer"])
    path.write_text(json.dumps(kept, ensure_ascii=False))


def check_tokenizer(folder: Path, gguf: Path) -> None:
    """Raise InputError unless tokenizer.json in `folder` cuts the hard corpus as the GGUF does."""
    different = first_difference(CORPUS, json_tokens(folder, CORPUS), gguf_tokens(gguf, CORPUS))
    if different is not None:
        raise InputError(f"the tokenizer of {gguf.name} cannot be kept: {different}; name the model's original folder")


def _plain_config(path: Path) -> str:
    config = json.loads(path.read_bytes())
    config.pop("_model_name_or_path", None)
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
