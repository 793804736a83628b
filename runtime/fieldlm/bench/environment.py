"""The environment of a benchmark (clocks, heat, load): without it a number cannot be repeated."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.hardware.detect import Detection, memory_available_mb, temperature_c, usable_cores
from fieldlm.hardware.facts import LIVE, read_text

PACKAGES = ("fieldlm", "llama-cpp-python", "numpy", "onnxruntime")


class EnvironmentSample(msgspec.Struct, frozen=True, kw_only=True):
    """What changes while one measures; `busy_ticks` and `steal_ticks` are of all CPUs since boot."""

    load_average: float
    temperature_c: float | None
    memory_available_mb: int
    busy_ticks: int
    steal_ticks: int
    throttled: int | None


def moment(root: Path = LIVE) -> EnvironmentSample:
    """Look at the machine now."""
    # user nice system idle iowait irq softirq steal …
    ticks = [int(word) for word in read_text(root, "proc/stat").partition("\n")[0].split()[1:9] if word.isdigit()]
    steal = ticks[7] if len(ticks) > 7 else 0
    throttles = [
        int(text)
        for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
        if (text := read_text(path.parent, path.name)).isdigit()
    ]
    load = read_text(root, "proc/loadavg").split()
    return EnvironmentSample(
        load_average=float(load[0]) if load else 0.0,
        temperature_c=temperature_c(root),
        memory_available_mb=memory_available_mb(root),
        busy_ticks=sum(ticks),
        steal_ticks=steal,
        throttled=sum(throttles) if throttles else None,
    )


def steal_percent(before: EnvironmentSample, after: EnvironmentSample) -> float:
    """Return the share of all CPU time between two moments that the hypervisor gave to others."""
    spent = after.busy_ticks - before.busy_ticks
    return 100 * (after.steal_ticks - before.steal_ticks) / spent if spent > 0 else 0.0


def environment(found: Detection) -> dict[str, Any]:
    """Return what stays: machine, versions, governor."""
    return {
        "profile": found.best.id,
        "confidence": found.confidence,
        "facts": found.facts,
        "usable_cores": usable_cores(),
        "python": platform.python_version(),
        "packages": {name: made for name in PACKAGES if (made := _version(name))},
        "kernel": platform.release(),
        "glibc": " ".join(platform.libc_ver()),
        "threads_environment": {
            name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GGML_"))
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
