"""A mixture of types: full weights written with a type of its own for each matrix, and what that weighs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fieldlm.formats.profile import Profile
from fieldlm_compiler.export.artefact import MB, Artefact, copy_template
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search.searchable import mixtures_of


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
    fmt = mixtures_of(full)
    size = fmt.size_bytes(full, types, profile)
    inputs: dict[str, Any] = {
        "full": full.sha256,
        "types": dict(types),
        "calibration": calibration_sha256,
        "toolchain": llama_toolchain.installed(("gguf", "llama-cpp-python", "numpy", "scipy")),
        **fmt.mixture_inputs(profile),
    }

    def make(folder: Path) -> Ran:
        copy_template(full, folder)
        return fmt.write_mixture(full, types, statistics, profile=profile, folder=folder, writing=writing)

    return fmt.mixture(*stages.run(f"mixture-{size / MB:.1f}-MB", inputs, make, needs_mb=size / MB))
