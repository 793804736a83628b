"""A mixture of types: full weights written with a type of its own for each matrix, and what that weighs."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fieldlm.formats.profile import Profile
from fieldlm_compiler.export.artefact import MB, MODEL, Artefact, copy_template, gguf_artefact, onnx_artefact, versions
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search import gguf_write, onnx_write
from fieldlm_compiler.search.onnx_weights import opened


def mix(
    full: Artefact,
    types: Mapping[str, str],
    statistics: Path,
    calibration_sha256: str,
    *,
    profile: Profile,
    stages: Stages,
    writing: Callable[[Path], Ran] | None = None,
) -> Artefact:
    """Write `full` with a type of its own for each matrix, rounded by what calibration wrote to `statistics`.

    A mixture is called by its bits for each weight: MIX-4.68. `writing(target)` writes the same file in another way.
    """
    size = size_bytes(full, types, profile)
    inputs: dict[str, Any] = {
        "full": full.sha256,
        "types": dict(types),
        "calibration": calibration_sha256,
        "toolchain": llama_toolchain.installed(("gguf", "llama-cpp-python", "numpy", "scipy")),
    }
    if full.engine == "onnx":
        inputs |= {"toolchain": versions("onnx"), "shape": profile.onnx.accuracy_level}

    def make(folder: Path) -> Ran:
        copy_template(full, folder)
        if full.engine == "onnx":
            return _mixed_onnx(full, types, statistics, profile, folder)
        target = folder / MODEL
        return writing(target) if writing else gguf_write.write(full.base, statistics, types, target)

    folder, made = stages.run(f"mixture-{size / MB:.1f}-MB", inputs, make, needs_mb=size / MB)
    return onnx_artefact(folder, made) if full.engine == "onnx" else gguf_artefact(_mixture(made.value), folder, made)


def _mixture(value: Mapping[str, Any]) -> str:
    return f"MIX-{value['bits_per_weight']:.2f}"


def size_bytes(full: Artefact, types: Mapping[str, str], profile: Profile) -> int:
    """Return the exact size of `full` once its matrices have `types`."""
    if full.engine == "llama":
        return gguf_write.size_bytes(full.base, types)
    weights = opened(full.base)
    return full.tokenizer_bytes + weights.size_bytes(types, profile.onnx.accuracy_level)


def _mixed_onnx(full: Artefact, types: Mapping[str, str], statistics: Path, profile: Profile, folder: Path) -> Ran:
    ran = onnx_write.write(full.base, statistics, types, folder, accuracy_level=profile.onnx.accuracy_level)
    beside = [part for part in full.parts if part.role == "tokenizer"]
    for part in beside:
        shutil.copyfile(part.source, folder / part.name)
    files = [(part.name, part.role) for part in full.parts if part.role in {"base", "tokenizer"}]
    size = ran.value["bytes"] + sum((folder / part.name).stat().st_size for part in beside)
    return replace(ran, value={**ran.value, "bytes": size, "quant": _mixture(ran.value), "files": files})
