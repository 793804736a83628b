"""Fold an adapter into the weights: a new checkpoint, as large as the base and as fast."""

import shutil
from pathlib import Path

from fieldlm.compiler import toolchain
from fieldlm.compiler.adapter import Adapter
from fieldlm.compiler.checkpoint import Checkpoint, folder_digest, model_files
from fieldlm.compiler.child import PATIENT, Ran, call
from fieldlm.compiler.stages import Stages


def merge(checkpoint: Checkpoint, adapter: Adapter, stages: Stages) -> Checkpoint:
    """Return `checkpoint` with `adapter` merged in, in 32 bits so that small changes survive."""

    def make(folder: Path) -> Ran:
        return call(
            "fieldlm.compiler.merge:merge_folder",
            what=f"merge {adapter.folder.name} into {checkpoint.name}",
            env=PATIENT,
            base=checkpoint.folder,
            adapter=adapter.folder,
            into=folder,
        )

    inputs = {"base": checkpoint.sha256, "adapter": adapter.sha256, "toolchain": toolchain.versions()}
    folder, _ = stages.run("merged", inputs, make, needs_mb=checkpoint.parameters * 4 / 1e6)
    return Checkpoint(
        folder=folder,
        name=checkpoint.name,
        licence=checkpoint.licence,
        source=checkpoint.source,
        sha256=folder_digest(folder),
        architecture=checkpoint.architecture,
        parameters=checkpoint.parameters,
        context=checkpoint.context,
    )


def merge_folder(base: str, adapter: str, into: str) -> None:
    """Merge with peft. Runs in a child process."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    merged.save_pretrained(into)
    # The tokenizer goes over byte by byte: loading and saving it could change it.
    for path in model_files(Path(base)):
        if path.suffix != ".safetensors" and "safetensors.index" not in path.name and path.name != "config.json":
            shutil.copyfile(path, Path(into) / path.name)
