"""Machine facts, read from the files under `root`: device tree, /proc, /sys, DMI.

Nothing is run, nothing needs root rights, and a folder with the same files is as good as the machine. What cannot be
read is empty or None.
"""

import platform
import re
import struct
from pathlib import Path

import msgspec

from fieldlm.hardware.limits import LIVE, cpu_limit, memory_limit_mb, read_text

ARM_ISA = {
    "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16",
    "i8mm": "i8mm", "sve": "sve", "sve2": "sve2", "sme": "sme",
}  # fmt: skip
POINTER_64 = 8
X86_ISA = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
# Implementer and part, as in the registers' manuals and util-linux's lscpu.
ARM_PARTS = {
    "0x41": {
        "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78",
        "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710",
        "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2", "0xd4b": "Cortex-A78C", "0xd4d": "Cortex-A715",
        "0xd4e": "Cortex-X3", "0xd4f": "Neoverse-V2", "0xd80": "Cortex-A520", "0xd81": "Cortex-A720",
        "0xd82": "Cortex-X4", "0xd83": "Neoverse-V3AE", "0xd84": "Neoverse-V3", "0xd85": "Cortex-X925",
        "0xd87": "Cortex-A725",
    },
    "0x4e": {"0x003": "Denver 2", "0x004": "Carmel"},
    "0x51": {"0x001": "Oryon"},
    "0x61": {"0x022": "Apple M1 Icestorm", "0x023": "Apple M1 Firestorm"},
    "0xc0": {"0xac3": "Ampere-1", "0xac4": "Ampere-1a"},
}  # fmt: skip
# Cores of one kind differ by this much: AMD's driver gives equal cores clocks of 5.14 to 6.08 GHz, and the slow ones of
# a mixed set have three quarters of the fast ones' clock at most.
ONE_KIND = 0.8
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
    "apple virtualization",
    "google compute engine",
    "openstack",
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known; memory in megabytes (1e6 bytes).

    `isa` has our names (dotprod, not asimddp). `cores` are the physical ones that are switched on, `big_cores` those of
    them that are of the fastest kind.
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


def read_facts(root: Path = LIVE) -> Facts:
    """Return everything we look at."""
    cpuinfo = read_text(root, "proc/cpuinfo")
    arch, is_linux = _arch(root, cpuinfo), _os(root) == "linux"
    name, isa = _cpu_name(cpuinfo, arch), _isa(cpuinfo, arch)
    model = read_text(root, "proc/device-tree/model")
    if not model and (told := re.search(r"^Model\s*:\s*(.+)$", cpuinfo, re.MULTILINE)):
        model = told[1].strip()  # Docker hides the device tree of a Raspberry Pi, and not this
    cores, big_cores = _cores(root, cpuinfo)
    vendor, product = (read_text(root, f"sys/class/dmi/id/{key}") for key in ("sys_vendor", "product_name"))
    return Facts(
        os=_os(root),
        arch=arch,
        model=model,
        compatible=tuple(filter(None, read_text(root, "proc/device-tree/compatible").split("\0"))),
        cpu_name=name,
        cores=cores,
        big_cores=big_cores,
        isa=isa if is_linux else ("neon", "dotprod", "fp16"),
        memory_total_mb=meminfo_mb(root, "MemTotal"),
        memory_limit_mb=memory_limit_mb(root),
        cpu_limit=cpu_limit(root),
        vendor=vendor,
        product=product,
        chassis="laptop" if read_text(root, "sys/class/dmi/id/chassis_type") in LAPTOP_CHASSIS else "",
        gpus=_gpus(root),
        l4t=_l4t(root),
        virtual=_is_virtual(root, cpuinfo, f"{vendor} {product}"),
        container=_is_container(root),
        kernel=read_text(root, "proc/sys/kernel/osrelease"),
        governor=read_text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def meminfo_mb(root: Path, key: str) -> int:
    """Return one line of /proc/meminfo in megabytes; 0 when it is not there."""
    found = re.search(rf"^{key}:\s+(\d+) kB", read_text(root, "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 // 1_000_000 if found else 0


def _os(root: Path) -> str:
    return "macos" if (root / "System/Library/CoreServices/SystemVersion.plist").exists() else "linux"


def _arch(root: Path, cpuinfo: str) -> str:
    """Return aarch64 or x86_64, what it is when it is neither, or "" when nothing says.

    The running kernel comes first: under an emulator (docker build for another processor) /proc/cpuinfo is the host's.
    """
    if root == LIVE and struct.calcsize("P") == POINTER_64:
        machine = platform.machine()
        return {"arm64": "aarch64", "AMD64": "x86_64"}.get(machine, machine)
    if re.search(r"^flags\s*:.*\blm\b", cpuinfo, re.MULTILINE):
        return "x86_64"
    if re.search(r"^Features\s*:.*\basimd\b", cpuinfo, re.MULTILINE):
        return "aarch64"
    if re.search(r"^(Features\s*:.*\b(neon|vfp\w*)|flags\s*:.*\bfpu)\b", cpuinfo, re.MULTILINE):
        return "a 32-bit system, where 64 bits are needed"
    if any((root / "System/Library/Kernels").glob("kernel.release.t*")):
        return "aarch64"
    return "a 32-bit system, where 64 bits are needed" if root == LIVE else ""


def _isa(cpuinfo: str, arch: str) -> tuple[str, ...]:
    if arch == "aarch64" and "Features" not in cpuinfo:
        return ("neon",) if cpuinfo else ()  # cpuinfo is another processor's, and all of these have that
    x86 = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    if x86:
        flags = set(x86[1].split())
        return tuple(name for name in X86_ISA if name in flags)
    # Cores of two kinds may differ; only what all of them have can be used.
    each = [set(line.split()) for line in re.findall(r"^Features\s*:(.*)$", cpuinfo, re.MULTILINE)]
    common = set[str].intersection(*each) if each else set[str]()
    return tuple(name for flag, name in ARM_ISA.items() if flag in common)


def _cpu_name(cpuinfo: str, arch: str) -> str:
    if arch == "aarch64" and "vendor_id" in cpuinfo:
        return ""
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named and "Processor rev" not in named[1]:
        return named[1].strip()
    lines = r"^CPU implementer\s*:\s*(\S+)$(?:\n(?!\n).*)*?\nCPU part\s*:\s*(\S+)$"
    cores = dict.fromkeys(re.findall(lines, cpuinfo, re.MULTILINE))
    return ", ".join(ARM_PARTS.get(who, {}).get(part, f"implementer {who} part {part}") for who, part in cores)


def _cores(root: Path, cpuinfo: str) -> tuple[int, int]:
    """Return the physical cores that are switched on, and those of them that are of the fastest kind."""
    clocks = dict(core_clocks(root).values())
    if not clocks:
        threads = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE))
        return threads, threads
    fast = [clock for clock in clocks.values() if clock >= ONE_KIND * max(clocks.values())]
    return len(clocks), len(fast)


def core_clocks(root: Path) -> dict[int, tuple[str, int]]:
    """Return of each processor that is switched on which ones share its core, and how fast it is, in whatever unit.

    The kernel's own measure of a core (cpu_capacity, ARM) comes before its clock: of two kinds one may do more at less.
    One that is switched off (a Jetson's power mode, hyperthreading) says nothing of its core.
    """
    found: dict[int, tuple[str, int]] = {}
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))
    knows_siblings = any((folder / "topology/thread_siblings_list").is_file() for folder in folders)
    for folder in folders:
        siblings = read_text(folder, "topology/thread_siblings_list")
        if read_text(folder, "online") == "0" or (knows_siblings and not siblings):
            continue
        clock = read_text(folder, "cpu_capacity") or read_text(folder, "cpufreq/cpuinfo_max_freq")
        found[int(folder.name[3:])] = siblings or folder.name, int(clock) if clock.isdigit() else 0
    return found


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


def _is_virtual(root: Path, cpuinfo: str, dmi: str) -> bool:
    return (
        bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE))
        or any(word in dmi.lower() for word in VIRTUAL_WORDS)
        or ("Amazon EC2" in dmi and not dmi.endswith(".metal"))
        # Virtual machines without DMI: those of QEMU for ARM, and Docker's on a Mac.
        or "linux,dummy-virt" in read_text(root, "proc/device-tree/compatible")
        or "linuxkit" in read_text(root, "proc/sys/kernel/osrelease")
    )


def _is_container(root: Path) -> bool:
    marks = (root / ".dockerenv", root / "run/.containerenv")
    return any(mark.exists() for mark in marks) or any(
        word in read_text(root, "proc/1/cgroup") for word in CONTAINER_WORDS
    )
