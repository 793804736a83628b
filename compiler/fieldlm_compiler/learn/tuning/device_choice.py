"""Where a tuning computes, and in which type its base is multiplied: whatever is faster here."""

import math
import time
from typing import Any

from fieldlm.core.errors import MissingDependencyError


def choose_device(wanted: str) -> str:
    """Return "cuda" or "cpu" for `wanted`, which may be "auto".

    Raises MissingDependencyError for a GPU that is not seen.
    """
    import torch

    seen = torch.cuda.is_available()
    if wanted == "cuda" and not seen:
        built = torch.version.cuda
        why = f"is built for CUDA {built} and sees no GPU; look at its driver" if built else "is built without CUDA"
        raise MissingDependencyError(f"--device cuda: PyTorch {torch.__version__} {why}; or take --device cpu")
    return ("cuda" if seen else "cpu") if wanted == "auto" else wanted


def faster_on(device: str) -> str:
    """Return the type, bfloat16 or float32, in which `device` multiplies faster."""
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if bfloat16_gain() > 1.3 else "float32"


def name_of(device: Any) -> str:
    """Return what computes: the GPU's own name, or cpu."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def bfloat16_gain() -> float:
    """Return how many times faster this processor multiplies in bfloat16 (AMX, AVX-512 BF16) than in float32."""
    import torch

    def seconds(dtype: Any) -> float:
        left, right = torch.randn(512, 576).to(dtype), torch.randn(576, 1536).to(dtype)
        best = math.inf
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(left, right)
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(torch.float32) / seconds(torch.bfloat16)
