"""GPU offload: what llama.cpp can compute on here, and whether that is what a profile promises.

A GPU that is promised and not used is the most expensive kind of slow: everything works, at a tenth of the speed, and
nothing says so. So it is an error before the weights are read, and again when not every layer went there.
"""

import ctypes
from typing import Any, NamedTuple

from fieldlm.core.errors import EngineError, MissingDependencyError
from fieldlm.core.extras import advice
from fieldlm.engines.binding.c_api import binding_version
from fieldlm.engines.llama_api import api, start_backend
from fieldlm.engines.llama_kernels import library
from fieldlm.formats.profile import Accelerator

# What the build is called in the names of its devices (CUDA0, MTL0, Vulkan0), and the flag that makes it.
BUILDS = {"cuda": ("CUDA", "GGML_CUDA"), "metal": ("MTL", "GGML_METAL"), "vulkan": ("Vulkan", "GGML_VULKAN")}


class ComputeDevice(NamedTuple):
    """One thing that computes; memory in megabytes (1e6 bytes)."""

    name: str
    description: str
    free_mb: int
    total_mb: int


class AbsentDeviceError(MissingDependencyError):
    """The build could use the GPU and does not see it. A driver that is late at boot is there at the next try."""

    exit_code = 1


def devices() -> list[ComputeDevice]:
    """Return what this build of llama.cpp sees, the CPU too."""
    start_backend()
    ggml = library()
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for text in (ggml.ggml_backend_dev_name, ggml.ggml_backend_dev_description):
        text.restype, text.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_memory.restype = None
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    return [_device(ggml, ggml.ggml_backend_dev_get(index)) for index in range(ggml.ggml_backend_dev_count())]


def _device(ggml: Any, handle: int) -> ComputeDevice:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    names = (ggml.ggml_backend_dev_name(handle), ggml.ggml_backend_dev_description(handle))
    name, description = (text.decode(errors="replace") for text in names)
    return ComputeDevice(name, description, free.value // 1_000_000, total.value // 1_000_000)


def promised(gpu: Accelerator, seen: list[ComputeDevice], *, can_offload: bool | None = None) -> ComputeDevice:
    """Return the device among `seen` that the profile means by `gpu`; raises MissingDependencyError when there is none.

    `can_offload`: whether this build can use a GPU at all; asked of llama.cpp unless given.
    """
    prefix, flag = BUILDS.get(gpu.kind, ("", ""))
    if not prefix:
        raise MissingDependencyError(
            f"the profile promises {gpu.name}, and llama.cpp has no way to use it ({gpu.kind})"
        )
    found = [device for device in seen if device.name.startswith(prefix)]
    if found:
        return found[0]
    names = ", ".join(device.name for device in seen) or "nothing"
    if api.llama_supports_gpu_offload() if can_offload is None else can_offload:
        raise AbsentDeviceError(
            f"the profile promises {gpu.name} ({gpu.kind}), and llama.cpp, which could use a GPU, sees only {names} "
            "here; look at its driver and at who may open its device files"
        )
    build = f'CMAKE_ARGS="-D{flag}=on"'
    again = advice(
        f"{build} pip install --force-reinstall --no-binary llama-cpp-python 'llama-cpp-python=={binding_version()}'",
        f"install a package that was built for it ({build} make deb CPU=native on a machine like it)",
    )
    raise MissingDependencyError(
        f"the profile promises {gpu.name} ({gpu.kind}), and llama.cpp is built without and sees only {names} here; "
        f"{again}; or compile for a profile without it"
    )


def check_offload(gpu: Accelerator, offloaded: tuple[int, int] | None) -> None:
    """Raise EngineError unless all layers went to `gpu`; `offloaded` is what llama.cpp says, (layers there, all)."""
    there, every = offloaded or (0, 0)
    if not there or there < every:
        raise EngineError(
            f"the profile promises {gpu.name}, and {there} of {every or 'all'} layers went there; "
            "free its memory or take a smaller model"
        )
