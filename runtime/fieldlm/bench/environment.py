"""The environment of a benchmark (clocks, heat, load): without it a number cannot be repeated."""

import os
import platform
import re
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.hardware.cores import physical_cores
from fieldlm.hardware.detect import Detection
from fieldlm.hardware.limits import LIVE, cpu_throttled, read_text
from fieldlm.hardware.sensors import memory_available_mb, temperature_c

PACKAGES = ("fieldlm", "llama-cpp-python", "numpy", "onnxruntime")


class EnvironmentSample(msgspec.Struct, frozen=True, kw_only=True):
    """What changes while one measures; counts are since boot, `busy_ticks` and `steal_ticks` of all CPUs.

    `cpu_waited_s` are the seconds in which something waited for a processor (PSI), `memory_waited_s` for memory,
    `pi_throttled` the bits of Raspberry Pi's firmware, `quota_stops` how often a control group's quota stopped us,
    `swapped_mb` what went to swap and back.
    """

    load_average: float
    temperature_c: float | None
    memory_available_mb: int
    busy_ticks: int
    steal_ticks: int
    throttled: int | None
    at_s: float = 0.0
    cpu_waited_s: float | None = None
    memory_waited_s: float | None = None
    pi_throttled: int = 0
    quota_stops: int | None = None
    swapped_mb: int = 0
    is_on_battery: bool = False


def moment(root: Path = LIVE, zones: Sequence[str] = ()) -> EnvironmentSample:
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
        temperature_c=temperature_c(root, zones),
        memory_available_mb=memory_available_mb(root),
        busy_ticks=sum(ticks),
        steal_ticks=steal,
        throttled=sum(throttles) if throttles else None,
        at_s=time.monotonic(),
        cpu_waited_s=_waited_s(root, "cpu"),
        memory_waited_s=_waited_s(root, "memory"),
        pi_throttled=_pi_throttled(root),
        quota_stops=cpu_throttled(root),
        swapped_mb=_swapped_mb(root),
        is_on_battery=any(
            read_text(path.parent, path.name) == "Discharging"
            for path in (root / "sys/class/power_supply").glob("*/status")
        ),
    )


def _waited_s(root: Path, what: str) -> float | None:
    """Seconds since boot in which a task waited for `what`: pressure stall information, `some`."""
    found = re.search(r"^some .*total=(\d+)", read_text(root, f"proc/pressure/{what}"), re.MULTILINE)
    return int(found[1]) / 1e6 if found else None


def _pi_throttled(root: Path) -> int:
    text = read_text(root, "sys/devices/platform/soc/soc:firmware/get_throttled")
    return int(text, 16) if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text) else 0


def _swapped_mb(root: Path) -> int:
    pages = re.findall(r"^pswp(?:in|out) (\d+)$", read_text(root, "proc/vmstat"), re.MULTILINE)
    return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE") // 1_000_000


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
        "usable_cores": physical_cores(),
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
