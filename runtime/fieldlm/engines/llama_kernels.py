"""CPU kernels of llama.cpp: a build for every processor of an architecture keeps them as libraries and loads the best.

A build for one machine has its kernels inside, and nothing is loaded here.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

from fieldlm.core.errors import EngineError
from fieldlm.engines.binding.c_api import load_binding

CPUINFO = Path("/proc/cpuinfo")
CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
NEEDS = {
    "zen4": "avx512f", "icelake": "avx512f", "skylakex": "avx512f", "alderlake": "avx", "haswell": "avx",
    "sandybridge": "avx", "sse42": "sse4_2",
}  # fmt: skip
"""Kernels, the best first → the flag in /proc/cpuinfo of the registers that they use."""


def load_kernels(cpuinfo: Path = CPUINFO) -> None:
    """Have llama.cpp load the kernels that fit this processor best; once more does no harm.

    Raises EngineError where none fits.
    """
    ggml = library()
    ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path.restype = None
    for function, argument in (
        (ggml.ggml_backend_load, ctypes.c_char_p),
        (ggml.ggml_backend_dev_by_type, ctypes.c_int),
    ):
        function.argtypes, function.restype = [argument], ctypes.c_void_p
    folder = Path(str(ggml._name)).parent
    if not ggml.ggml_backend_reg_count():
        if granted := best_granted(kernels_in(folder), cpuinfo):
            ggml.ggml_backend_load(os.fsencode(path_of(folder, granted)))
        else:
            ggml.ggml_backend_load_all_from_path(os.fsencode(folder))
    if not ggml.ggml_backend_dev_by_type(CPU_DEVICE):
        raise EngineError(
            f"llama.cpp has kernels for {', '.join(kernels_in(folder)) or 'no processor'} here, and this one can run "
            "none of them; on a machine like this one run: make wheels CPU=native"
        )


def library() -> Any:
    """Return llama.cpp's library, through which ggml is asked.

    llama-cpp-python opens ggml under another name, too, and that is a second ggml, with a list of devices of its own.
    """
    return load_binding()._lib


def kernels_in(folder: Path) -> dict[str, int]:
    """Return the kernels in `folder`, in llama.cpp's words → how well they fit this processor; 0 is not at all."""
    found = [path.stem.removeprefix("libggml-cpu-") for path in folder.glob("libggml-cpu-*.so")]
    return {kind: ctypes.CDLL(str(path_of(folder, kind))).ggml_backend_score() for kind in sorted(found)}


def path_of(folder: Path, kind: str) -> Path:
    """Return where the kernels `kind` lie in `folder`."""
    return folder / f"libggml-cpu-{kind}.so"


def best_granted(kernels: dict[str, int], cpuinfo: Path) -> str | None:
    """Return the best of `kernels` that may be loaded where the system withholds registers; None where it does not.

    llama.cpp asks the processor alone. A Linux that answers Downfall by switching AVX off, or is told to (`noxsave`,
    `clearcpuid`), leaves the processor's word as it is, and the first such instruction would end the process.
    """
    if not kernels or not cpuinfo.is_file():
        return None
    flags = set(cpuinfo.read_text(errors="replace").split())
    best = max(kernels, key=lambda kind: kernels[kind])
    # Of another kind of processor, as qemu shows it, nothing can be said.
    if "sse4_2" not in flags or NEEDS.get(best, "sse4_2") in flags:
        return None
    return next((kind for kind, flag in NEEDS.items() if kernels.get(kind) and flag in flags), None)
