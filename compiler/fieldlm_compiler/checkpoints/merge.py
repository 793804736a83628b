"""Merge a LoRA adapter into the weights: a new checkpoint, as large as the base and as fast."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fieldlm.core.errors import GateError, InputError
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, count_parameters, folder_digest, model_files
from fieldlm_compiler.checkpoints.peft_adapter import PeftAdapter, check_mergeable
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.pipeline.fork_server import TORCH
from fieldlm_compiler.pipeline.stages import Stages

# Merged and apart, 32 bits round otherwise; two logits further apart than this are another model.
ROUNDING = 0.01
TOKENS = 64


def merge(checkpoint: Checkpoint, adapter: PeftAdapter, stages: Stages) -> Checkpoint:
    """Return `checkpoint` with `adapter` merged in, in 32 bits so that small changes survive.

    Raises InputError for an adapter that no weights can stand for, GateError when the merged model is another one.
    """
    check_mergeable(adapter)

    def make(folder: Path) -> Ran:
        return call(merge_folder, what=f"merge {adapter.folder.name} into {checkpoint.name}", preload=TORCH)(
            base=checkpoint.folder,
            adapter=adapter.folder,
            into=folder,
        )

    inputs = {"base": checkpoint.sha256, "adapter": adapter.sha256, "toolchain": llama_toolchain.versions()}
    folder, _ = stages.run("merged", inputs, make, needs_mb=checkpoint.parameters * 4 / 1e6)
    return replace(checkpoint, folder=folder, sha256=folder_digest(folder), parameters=count_parameters(folder))


def merge_folder(base: Path, adapter: Path, into: Path) -> dict[str, float]:
    """Merge with peft, and read back what was saved: it must say what the adapter says beside its base.

    Runs in a child process. Returns the largest difference of a logit; raises GateError when it is no rounding.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    try:
        with warnings.catch_warnings():
            # peft warns of much that is checked below, and only warns where it should stop.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*missing adapter keys")
            attached = PeftModel.from_pretrained(model, adapter).eval()
            wanted = _read(attached)
            _part_tables(attached)
            merged = cast(Any, attached).merge_and_unload(safe_merge=True)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, UserWarning) as error:
        raise InputError(f"peft cannot merge {Path(adapter).name}: {' '.join(str(error).split())[:300]}") from error
    embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    merged.config.tie_word_embeddings = torch.equal(embedding.weight, head.weight)
    if merged.config.tie_word_embeddings:
        head.weight = embedding.weight
    merged.save_pretrained(into)
    # The tokenizer goes over byte by byte: loading and saving it could change it.
    for path in model_files(Path(base)):
        if path.suffix != ".safetensors" and "safetensors.index" not in path.name and path.name != "config.json":
            shutil.copyfile(path, Path(into) / path.name)
    del model, attached, merged, embedding, head
    found = _read(AutoModelForCausalLM.from_pretrained(into, dtype=torch.float32).eval())
    gap = float((found - wanted).abs().max())
    if not gap <= ROUNDING:
        raise GateError(
            f"{Path(adapter).name} merged is not what it is beside its base: a logit differs by {gap:.3g} "
            f"(limit {ROUNDING}); merge and save it with peft, then compile that"
        )
    return {"logit_gap": gap}


def _read(model: Any) -> Any:
    """Return the logits of `model` [tokens, vocabulary] over tokens from all of its vocabulary."""
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    tokens = torch.linspace(0, rows - 1, TOKENS).long()
    with torch.inference_mode():
        return model(input_ids=tokens[None]).logits[0].clone()


def _part_tables(model: Any) -> None:
    """Give each user of a tied table a copy: a change that is merged into one must not reach the other."""
    import torch

    seen: set[int] = set()
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        if id(weight) in seen:
            module.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
        seen.add(id(weight))
