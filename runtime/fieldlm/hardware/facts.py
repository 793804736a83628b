"""Machine facts, read from the files under `root`: device tree, /proc, /sys, DMI.

Nothing is run, nothing needs root rights, and a folder with the same files is as good as the machine. What cannot be
read is empty or None.
"""

import contextlib
import platform
import re
from pathlib import Path

import msgspec

LIVE = Path("/")
ARM_ISA = {
    "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16",
    "i8mm": "i8mm", "sve": "sve", "sve2": "sve2", "sme": "sme",
}  # fmt: skip
X86_ISA = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72", "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1", "0xd42": "Cortex-A78AE", "0xd49": "Neoverse-N2",
}  # fmt: skip
GPU_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
LAPTOP_CHASSIS = {
    "8",
    "9",
    "10",
    "14",
    "31",
    "32",
}  # SMBIOS: portable, laptop, notebook, sub-notebook, convertible, detachable
CONTAINER_WORDS = ("docker", "kubepods", "lxc", "containerd", "podman")
VIRTUAL_WORDS = (
    "qemu",
    "kvm",
    "vmware",
    "virtualbox",
    "innotek",
    "firecracker",
    "xen",
    "microsoft corporation virtual",
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known; memory in megabytes (1e6 bytes).

    `isa` has our names (dotprod, not asimddp). `big_cores` are the physical cores within a tenth of the highest clock.
    `memory_mb` is the machine's memory, or the control group's limit where that is lower.
    """

    os: str
    arch: str
    model: str
    compatible: tuple[str, ...]
    cpu_name: str
    cores: int
    big_cores: int
    isa: tuple[str, ...]
    memory_total_mb: int
    memory_limit_mb: int | None
    cpu_limit: float | None
    vendor: str
    product: str
    chassis: str
    gpus: tuple[str, ...]
    l4t: str
    virtual: bool
    container: bool
    kernel: str
    governor: str

    @property
    def memory_mb(self) -> int:
        return min(self.memory_total_mb, self.memory_limit_mb or self.memory_total_mb)


def read_text(root: Path, path: str) -> str:
    """Return the text of a file under `root`, less NULs and white space at its ends; empty when it cannot be read."""
    with contextlib.suppress(OSError):
        return (root / path).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    return ""


def read_facts(root: Path = LIVE) -> Facts:
    """Return everything we look at."""
    cpuinfo = read_text(root, "proc/cpuinfo")
    name, isa = _cpu_name(cpuinfo), _isa(cpuinfo)
    cores, big_cores = _cores(root, cpuinfo)
    vendor, product = (read_text(root, f"sys/class/dmi/id/{key}") for key in ("sys_vendor", "product_name"))
    return Facts(
        os=_os(root),
        arch=_arch(root, cpuinfo),
        model=read_text(root, "proc/device-tree/model"),
        compatible=tuple(filter(None, read_text(root, "proc/device-tree/compatible").split("\0"))),
        cpu_name=name,
        cores=cores,
        big_cores=big_cores,
        isa=isa if _os(root) == "linux" else ("neon", "dotprod", "fp16"),
        memory_total_mb=meminfo_mb(root, "MemTotal"),
        memory_limit_mb=memory_limit_mb(root),
        cpu_limit=cpu_limit(root),
        vendor=vendor,
        product=product,
        chassis="laptop" if read_text(root, "sys/class/dmi/id/chassis_type") in LAPTOP_CHASSIS else "",
        gpus=_gpus(root),
        l4t=_l4t(root),
        virtual=_is_virtual(cpuinfo, f"{vendor} {product}"),
        container=_is_container(root),
        kernel=read_text(root, "proc/sys/kernel/osrelease"),
        governor=read_text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def meminfo_mb(root: Path, key: str) -> int:
    """Return one line of /proc/meminfo in megabytes; 0 when it is not there."""
    found = re.search(rf"^{key}:\s+(\d+) kB", read_text(root, "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 // 1_000_000 if found else 0


def cgroup_folders(root: Path) -> list[Path]:
    """Return the folders whose limits hold for this process, the nearest first (control groups version 2)."""
    base = root / "sys/fs/cgroup"
    found = re.search(r"^0::/(.*)$", read_text(root, "proc/self/cgroup"), re.MULTILINE)
    inner = base / (found[1] if found else "")
    folders = [folder for folder in (inner, *inner.parents) if folder.is_relative_to(base)]
    return [folder for folder in folders if folder.is_dir()]


def memory_limit_mb(root: Path = LIVE) -> int | None:
    """Return the lowest memory limit of the control groups around this process, None when there is none."""
    texts = [read_text(folder, "memory.max") for folder in cgroup_folders(root)]
    texts.append(read_text(root, "sys/fs/cgroup/memory/memory.limit_in_bytes"))
    # Version 1 says "none" as a number near 2^63.
    limits = [int(text) for text in texts if text.isdigit() and int(text) < 1 << 60]
    return min(limits) // 1_000_000 if limits else None


def cpu_limit(root: Path = LIVE) -> float | None:
    """Return how many cores' worth of time the control groups allow, None when they set no limit."""
    limits: list[float] = []
    for folder in cgroup_folders(root):
        quota, _, period = read_text(folder, "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _os(root: Path) -> str:
    return "macos" if (root / "System/Library/CoreServices/SystemVersion.plist").exists() else "linux"


def _arch(root: Path, cpuinfo: str) -> str:
    if re.search(r"^flags\s*:.*\blm\b", cpuinfo, re.MULTILINE):
        return "x86_64"
    if re.search(r"^Features\s*:.*\basimd\b", cpuinfo, re.MULTILINE):
        return "aarch64"
    if any((root / "System/Library/Kernels").glob("kernel.release.t*")):
        return "aarch64"
    machine = platform.machine() if root == LIVE else ""
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(machine, machine)


def _isa(cpuinfo: str) -> tuple[str, ...]:
    x86 = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    if x86:
        flags = set(x86[1].split())
        return tuple(name for name in X86_ISA if name in flags)
    # Cores of two kinds may differ; only what all of them have can be used.
    each = [set(line.split()) for line in re.findall(r"^Features\s*:(.*)$", cpuinfo, re.MULTILINE)]
    common = set[str].intersection(*each) if each else set[str]()
    return tuple(name for flag, name in ARM_ISA.items() if flag in common)


def _cpu_name(cpuinfo: str) -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named and "Processor rev" not in named[1]:
        return named[1].strip()
    parts = dict.fromkeys(re.findall(r"^CPU part\s*:\s*(\S+)$", cpuinfo, re.MULTILINE))
    return ", ".join(ARM_PARTS.get(part, f"part {part}") for part in parts)


def _cores(root: Path, cpuinfo: str) -> tuple[int, int]:
    """Return the physical cores, and those of them within a tenth of the highest clock."""
    folder = root / "sys/devices/system/cpu"
    clocks: dict[str, int] = {}
    for cpu in sorted(folder.glob("cpu[0-9]*")):
        siblings = read_text(cpu, "topology/thread_siblings_list") or cpu.name
        clock = read_text(cpu, "cpufreq/cpuinfo_max_freq") or read_text(cpu, "cpu_capacity")
        clocks[siblings] = int(clock) if clock.isdigit() else 0
    if not clocks:
        threads = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE))
        return threads, threads
    fast = [clock for clock in clocks.values() if clock >= 0.9 * max(clocks.values())]
    return len(clocks), len(fast)


def _gpus(root: Path) -> tuple[str, ...]:
    """Return GPUs whose driver is loaded; "nvidia" only with NVIDIA's own, since CUDA needs that."""
    found = {
        GPU_VENDORS.get(read_text(card, "device/vendor"), "") for card in (root / "sys/class/drm").glob("card[0-9]")
    }
    found -= {"", "nvidia"}
    if (root / "proc/driver/nvidia/version").exists():
        found.add("nvidia")
    return tuple(sorted(found))


def _l4t(root: Path) -> str:
    """Return the version of NVIDIA's Linux for Tegra: 36.4.3."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root, "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else ""


def _is_virtual(cpuinfo: str, dmi: str) -> bool:
    return bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)) or any(
        word in dmi.lower() for word in VIRTUAL_WORDS
    )


def _is_container(root: Path) -> bool:
    marks = (root / ".dockerenv", root / "run/.containerenv")
    return any(mark.exists() for mark in marks) or any(
        word in read_text(root, "proc/1/cgroup") for word in CONTAINER_WORDS
    )
