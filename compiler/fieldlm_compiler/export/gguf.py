"""GGUF export: checkpoint to GGUF, PEFT adapter to GGUF, by llama.cpp's own converter in a child process."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, model_files, shapes, weight_files
from fieldlm_compiler.checkpoints.licences import UNKNOWN
from fieldlm_compiler.checkpoints.peft_adapter import PREFIX, WEIGHTS, PeftAdapter, check_shippable, true_scale
from fieldlm_compiler.export.converter import run
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.pipeline.fork_server import TORCH

# Families whose converter counts on layers for drafting, and what those are called in a checkpoint.
WITH_MTP = ("qwen3_next", "qwen3_5")
MTP = re.compile(r"(model\.)?mtp\.")


def export_f16(checkpoint: Checkpoint, out: Path) -> Ran:
    """Write `checkpoint` to the GGUF file `out` with 16-bit weights; norms and biases keep 32."""
    converter = llama_toolchain.llama_converter()
    env = {"PYTHONPATH": str(converter / "gguf-py")}
    return call(convert_model, what=f"convert {checkpoint.name} to GGUF", env=env, preload=TORCH)(
        converter=converter,
        checkpoint=checkpoint.folder,
        out=out,
        name=checkpoint.name,
        licence=checkpoint.licence,
    )


def export_adapter(adapter: PeftAdapter, checkpoint: Checkpoint, out: Path) -> Ran:
    """Write `adapter` to the GGUF file `out`, for the base that `checkpoint` is.

    Raises InputError when it holds something a GGUF adapter cannot carry.
    """
    check_shippable(adapter)
    converter = llama_toolchain.llama_converter()
    env = {"PYTHONPATH": str(converter / "gguf-py")}
    return call(convert_adapter, what=f"convert {adapter.folder.name} to GGUF", env=env, preload=TORCH)(
        converter=converter,
        adapter=adapter.folder,
        plain=adapter.is_plain,
        checkpoint=checkpoint.folder,
        out=out,
    )


def convert_model(converter: Path, checkpoint: Path, out: Path, name: str, licence: str) -> None:
    """Run the model converter on a neutral copy. Runs in a child process."""
    with tempfile.TemporaryDirectory(prefix="fieldlm-") as temporary:
        staged = _stage_model(checkpoint, Path(temporary) / "model")
        if licence != UNKNOWN:
            # The converter reads a licence from the model card alone: who takes the file by itself must find it there.
            (staged / "README.md").write_text(f"---\nlicense: {json.dumps(licence)}\n---\n")
        arguments = [staged, "--outfile", out, "--outtype", "f16", "--model-name", name]
        if _lacks_draft_layers(checkpoint):
            arguments.append("--no-mtp")
        run(converter / "convert_hf_to_gguf.py", *arguments)


def _lacks_draft_layers(checkpoint: Path) -> bool:
    """Say whether transformers left the layers for drafting (MTP) out when it saved a family that has them.

    The converter expects them of these families, and asserts without a word.
    """
    config = json.loads((checkpoint / "config.json").read_bytes())
    has_them = any(MTP.match(name) for path in weight_files(checkpoint) for name in shapes(path))
    return str(config.get("model_type")).startswith(WITH_MTP) and not has_them


def convert_adapter(converter: Path, adapter: Path, plain: bool, checkpoint: Path, out: Path) -> None:
    """Run the adapter converter on a neutral copy with plain scales. Runs in a child process."""
    with tempfile.TemporaryDirectory(prefix="fieldlm-") as temporary:
        base = _stage_model(checkpoint, Path(temporary) / "model")
        staged = _stage_adapter(adapter, Path(temporary) / "adapter", plain=plain)
        run(converter / "convert_lora_to_gguf.py", "--base", base, staged, "--outfile", out, "--outtype", "f16")


def _stage_model(checkpoint: Path, into: Path) -> Path:
    """Lay out the files that make the model under a fixed name: the converter reads meaning into folder names."""
    into.mkdir()
    for path in model_files(checkpoint):
        (into / path.name).symlink_to(path.resolve())
    path = into / "tokenizer_config.json"
    if (into / "tokenizer.json").exists() and path.exists():
        # transformers 5 rebuilds a tokenizer from its class name and forgets steps; tokenizer.json has them all.
        config = json.loads(path.read_bytes())
        path.unlink()
        path.write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return into


def _stage_adapter(adapter: Path, into: Path, *, plain: bool) -> Path:
    into.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    config.pop("base_model_name_or_path", None)
    if plain:
        shutil.copyfile(adapter / WEIGHTS, into / WEIGHTS)
    else:
        _fold_scales(adapter / WEIGHTS, into / WEIGHTS, config)
        # llama.cpp multiplies with alpha / rank of each tensor, whatever the configuration says.
        config["lora_alpha"] = config["r"]
    (into / "adapter_config.json").write_text(json.dumps(config))
    return into


def _fold_scales(source: Path, target: Path, config: dict[str, Any]) -> None:
    """Multiply each lora_B so that llama.cpp's alpha / rank, with alpha = r, gives PEFT's scale."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    for name in [name for name in tensors if re.search(r"\.lora_(embedding_)?B", name)]:
        module = name.removeprefix(PREFIX).split(".lora_")[0]
        rank = tensors[name].shape[1]
        wanted, given = true_scale(config, module, rank), config["r"] / rank
        tensors[name] = (tensors[name].float() * (wanted / given)).contiguous()
    save_file(tensors, target)
