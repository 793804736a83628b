"""How many threads pay: the physical cores this process may use, less what its cgroup denies."""

import os
from collections.abc import Collection
from pathlib import Path


def physical_cores(root: Path = Path("/"), visible: Collection[int] | None = None) -> int:
    """Return the number of physical cores among the `visible` processors, at least 1.

    Visible are those this process may run on, unless given.

    Two hyperthreads of one core share the units that multiply, so the second one only makes both wait.
    """
    cores = {_siblings(root, cpu) for cpu in visible or os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota(root) or len(cores)))


def _siblings(root: Path, cpu: int) -> str:
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota(root: Path) -> int | None:
    """Whole cores the cgroup (version 2) grants; a thread above them is stopped for most of each period."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
