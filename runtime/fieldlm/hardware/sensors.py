"""Sensors: small probes of memory, heat, free cores and the own process."""

import contextlib
import resource
from collections.abc import Sequence
from pathlib import Path

from fieldlm.hardware.facts import meminfo_mb
from fieldlm.hardware.limits import LIVE, memory_left_mb, read_text


def memory_available_mb(root: Path = LIVE) -> int:
    """Return what a new allocation may take: MemAvailable, or what the control groups have left where that is less."""
    available, left = meminfo_mb(root, "MemAvailable"), memory_left_mb(root)
    return available if left is None else min(available, left)


def temperature_c(root: Path = LIVE, zones: Sequence[str] = ()) -> float | None:
    """Return the temperature of the hottest of the kernel's thermal `zones`, by their types.

    Where none of them is, that of the hottest sensor, a drive's or a radio's among them; None when there is no sensor
    (virtual machines).
    """
    known = (root / "sys/class/thermal").glob("thermal_zone*/type")
    named = [path.with_name("temp") for path in known if read_text(path.parent, path.name).strip() in zones]
    paths = named or [
        *(root / "sys/class/thermal").glob("thermal_zone*/temp"),
        *(root / "sys/class/hwmon").glob("hwmon*/temp*_input"),
    ]
    heat: list[float] = []
    for path in paths:
        with contextlib.suppress(ValueError):
            heat.append(int(read_text(path.parent, path.name)) / 1000)
    # Unused zones report 0 or absurd values.
    return max((degrees for degrees in heat if 0 < degrees < 150), default=None)


def clock_mhz(root: Path = LIVE) -> float | None:
    """Return the highest clock of a core now, None where the kernel does not say (virtual machines)."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks = [int(text) for path in files if (text := read_text(path.parent, path.name)).isdigit()]
    return max(clocks) / 1000 if clocks else None


def rss_mb() -> float:
    """Return the memory this process holds now, in megabytes."""
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """Return the most memory this process ever held, in megabytes."""
    return _status_mb("VmHWM")


def _status_mb(key: str) -> float:
    for line in read_text(LIVE, "proc/self/status").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    # Elsewhere only the peak is to be had: bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
