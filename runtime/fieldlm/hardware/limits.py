"""Control groups (cgroups), versions 1 and 2: the limits of memory, processor time and processors of this process.

A limit holds for a group and for all that lie in it, so the groups around ours are read, too, out to the outermost that
is mounted here. Controllers of both versions are found side by side (systemd's hybrid layout, JetPack 5, balenaOS).
Swap is no room, on a disk or compressed in memory (zram): a model in swap does not answer.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

LIVE = Path("/")
UNLIMITED = 1 << 60  # bytes; version 1 says "none" as a number near 2^63


def read_text(root: Path, path: str) -> str:
    """Return the text of a file under `root`, less NULs and white space at its ends; empty when it cannot be read."""
    try:
        return (root / path).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def memory_limit_mb(root: Path = LIVE) -> int | None:
    """Return the lowest memory limit around this process in megabytes (1e6 bytes), None when there is none.

    Above `memory.high` the kernel slows a group down until it stands still, so that is a limit like `memory.max`.
    """
    v2 = (_number(folder, name) for folder in groups(root, "") for name in ("memory.max", "memory.high"))
    v1 = (_number(folder, "memory.limit_in_bytes") for folder in groups(root, "memory"))
    limits = [limit for limit in (*v2, *v1) if limit is not None and limit < UNLIMITED]
    return min(limits) // 1_000_000 if limits else None


def memory_left_mb(root: Path = LIVE) -> int | None:
    """Return what the groups around this process let it take yet, in megabytes; None when there is no limit.

    The page cache of files counts as free, as it does in MemAvailable: the kernel drops it before it refuses memory,
    in whichever of its two lists it is. A file that is hashed and then loaded was read twice, and is in the active one.
    """
    left: list[int] = []
    for folder in groups(root, ""):
        free = _number(folder, "memory.current"), _file_cache(folder, "")
        left += [_left(_number(folder, name), *free) for name in ("memory.max", "memory.high")]
    for folder in groups(root, "memory"):
        # "memsw" counts memory and swap together: what lies in swap already takes room here, too.
        for kind in ("memory", "memory.memsw"):
            used, cache = _number(folder, f"{kind}.usage_in_bytes"), _file_cache(folder, "total_")
            left.append(_left(_number(folder, f"{kind}.limit_in_bytes"), used, cache))
    lowest = min(left, default=UNLIMITED)
    return max(0, lowest) // 1_000_000 if lowest < UNLIMITED else None


def cpu_limit(root: Path = LIVE) -> float | None:
    """Return how many cores' worth of time the groups around this process allow, None when they set no limit."""
    quotas = [read_text(folder, "cpu.max").partition(" ")[::2] for folder in groups(root, "")]
    quotas += [
        (read_text(folder, "cpu.cfs_quota_us"), read_text(folder, "cpu.cfs_period_us"))
        for folder in groups(root, "cpu")
    ]
    limits = [int(quota) / int(period) for quota, period in quotas if quota.isdigit() and period.isdigit()]
    return min(limits, default=None)


def allowed_cpus(root: Path = LIVE) -> frozenset[int] | None:
    """Return the processors that affinity and cpusets leave to this process, None where nothing says."""
    if root == LIVE and hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    status = re.search(r"^Cpus_allowed_list:\s*(\S+)$", read_text(root, "proc/self/status"), re.MULTILINE)
    texts = [status[1] if status else ""]
    texts += [read_text(folder, "cpuset.cpus.effective") for folder in groups(root, "")]
    texts += [
        read_text(folder, "cpuset.effective_cpus") or read_text(folder, "cpuset.cpus")
        for folder in groups(root, "cpuset")
    ]
    sets = [cpu_list(text) for text in texts if text]
    return frozenset.intersection(*sets) or None if sets else None


def cpu_list(text: str) -> frozenset[int]:
    """Return the processors that the kernel means by a list such as 0-3,8; what is no number names none."""
    spans = [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in text.split(",")]
    return frozenset(cpu for span in spans if span for cpu in range(int(span[1]), int(span[2] or span[1]) + 1))


def cpu_throttled(root: Path = LIVE) -> int | None:
    """Return how often the processor quota has stopped a group around this process; None where no group counts it."""
    folders = [*groups(root, ""), *groups(root, "cpu")]
    counts = [re.search(r"^nr_throttled (\d+)$", read_text(each, "cpu.stat"), re.MULTILINE) for each in folders]
    return max((int(count[1]) for count in counts if count), default=None)


def groups(root: Path, controller: str) -> list[Path]:
    """Return the folders of this process's groups of version 1's `controller`, "" for version 2; the inmost first."""
    own = PurePosixPath(_own_group(root, controller))
    for mount, top in _mounts(root, controller):
        # In a container without a namespace of its own, the group's path begins with what is mounted here.
        inner = own.relative_to(top) if own.is_relative_to(top) else own.relative_to("/")
        # A group outside of what a namespace shows is named with "..": the outermost that is seen has to do.
        inner = PurePosixPath() if ".." in inner.parts else inner
        folders = [mount / each for each in (inner, *inner.parents)]
        if found := [folder for folder in dict.fromkeys(folders) if folder.is_dir()]:
            return found
    return []


def _own_group(root: Path, controller: str) -> str:
    for line in read_text(root, "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(",") and path.startswith("/"):
            return path
    return "/"


def _mounts(root: Path, controller: str) -> Iterator[tuple[Path, str]]:
    """Yield where the controller's tree is mounted and which of its groups is there; then where it usually is."""
    kind = "cgroup" if controller else "cgroup2"
    for line in read_text(root, "proc/self/mountinfo").splitlines():
        # id parent device root mount-point options … - type source super-options
        before, _, after = (part.split() for part in line.partition(" - "))
        is_one = len(before) > 4 and len(after) > 2 and after[0] == kind
        if is_one and (not controller or controller in after[2].split(",")):
            yield root / before[4].lstrip("/"), before[3]
    base = root / "sys/fs/cgroup"
    usual = (controller, f"{controller},{controller}acct") if controller else ("unified", "")
    yield from ((base / name, "/") for name in usual if (base / name).is_dir())


def _number(folder: Path, name: str) -> int | None:
    text = read_text(folder, name)
    return int(text) if text.isdigit() else None


def _file_cache(folder: Path, prefix: str) -> int:
    """Bytes of files in the page cache, those of groups within included: version 1 says that under `prefix`."""
    stat = dict(line.split(" ", 1) for line in read_text(folder, "memory.stat").splitlines() if " " in line)
    counts = [stat.get(f"{prefix}{name}", stat.get(name, "")) for name in ("inactive_file", "active_file")]
    return sum(int(count) for count in counts if count.isdigit())


def _left(limit: int | None, used: int | None, cache: int) -> int:
    if limit is None or used is None or limit >= UNLIMITED:
        return UNLIMITED
    return limit - max(0, used - cache)
