"""Machine facts, read from the files under `root`: device tree, /proc, /sys, DMI.

Nothing is run, nothing needs root rights, and a folder with the same files is as good as the machine. What cannot be
read is empty or None.
"""

import platform
import re
import struct
from pathlib import Path

import msgspec

from fieldlm.hardware.accelerators import PresentAccelerator, accelerators
from fieldlm.hardware.cores import fast_cores, physical_cores
from fieldlm.hardware.limits import LIVE, cpu_limit, memory_limit_mb, read_text
from fieldlm.hardware.processor_kinds import arm_names, fast, processors

ARM_ISA = {
    "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16",
    "i8mm": "i8mm", "sve": "sve", "sve2": "sve2", "sme": "sme",
}  # fmt: skip
POINTER_64 = 8  # bytes
X86_ISA = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
GPU_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
# SMBIOS: portable, laptop, notebook, sub-notebook, convertible, detachable.
LAPTOP_CHASSIS = {"8", "9", "10", "14", "31", "32"}
IS_32_BIT = "a 32-bit system"
# A Jetson's chip, by the number that its fuses have, and by its cores: a container shows no device tree.
TEGRA_IDS = {"33": "nvidia,tegra210", "25": "nvidia,tegra194", "35": "nvidia,tegra234", "38": "nvidia,tegra264"}
TEGRA_CORES = {
    "Cortex-A57": "nvidia,tegra210", "Carmel": "nvidia,tegra194", "Cortex-A78AE": "nvidia,tegra234",
    "Neoverse-V3AE": "nvidia,tegra264",
}  # fmt: skip
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
    them that are of the fastest kind, `usable_cores` those that this process may keep busy, `fast_cores` those of these
    that decoding gains from.
    `memory_mb` is the machine's memory, or the control group's limit where that is lower. `chip` is what was concluded
    where no device tree is shown. `gpus` have a driver loaded; `accelerators` are GPUs and NPUs with or without.
    """

    os: str
    arch: str
    model: str
    compatible: tuple[str, ...]
    chip: str
    cpu_name: str
    cores: int
    big_cores: int
    usable_cores: int
    fast_cores: int
    isa: tuple[str, ...]
    memory_total_mb: int
    memory_limit_mb: int | None
    cpu_limit: float | None
    vendor: str
    product: str
    chassis: str
    gpus: tuple[str, ...]
    accelerators: tuple[PresentAccelerator, ...]
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
    compatible = tuple(filter(None, read_text(root, "proc/device-tree/compatible").split("\0")))
    chip = "" if compatible else _chip(root, name)
    known = processors(root)
    cores, big_cores = (len({known[cpu].core for cpu in which}) for which in (known, fast(known)))
    vendor, product = (read_text(root, f"sys/class/dmi/id/{key}") for key in ("sys_vendor", "product_name"))
    return Facts(
        os=_os(root),
        arch=arch,
        model=_model(root, cpuinfo),
        compatible=compatible,
        chip=chip,
        cpu_name=name,
        cores=cores,
        big_cores=big_cores,
        usable_cores=physical_cores(root) if cores else 0,
        fast_cores=fast_cores(root) if cores else 0,
        isa=isa if is_linux else ("neon", "dotprod", "fp16"),
        memory_total_mb=meminfo_mb(root, "MemTotal"),
        memory_limit_mb=memory_limit_mb(root),
        cpu_limit=cpu_limit(root),
        vendor=vendor,
        product=product,
        chassis="laptop" if read_text(root, "sys/class/dmi/id/chassis_type") in LAPTOP_CHASSIS else "",
        gpus=_gpus(root),
        accelerators=accelerators(root, compatible or (chip,)),
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
    if root == LIVE:
        machine = platform.machine()
        is_wide = struct.calcsize("P") == POINTER_64  # a 64-bit kernel may run a system of 32 bits
        return {"arm64": "aarch64", "AMD64": "x86_64"}.get(machine, machine) if is_wide else IS_32_BIT
    if re.search(r"^flags\s*:.*\blm\b", cpuinfo, re.MULTILINE):
        return "x86_64"
    if re.search(r"^Features\s*:.*\basimd\b", cpuinfo, re.MULTILINE):
        return "aarch64"
    if re.search(r"^(Features\s*:.*\b(neon|vfp\w*)|flags\s*:.*\bfpu)\b", cpuinfo, re.MULTILINE):
        return IS_32_BIT
    if any((root / "System/Library/Kernels").glob("kernel.release.t*")):
        return "aarch64"
    return ""


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
    return ", ".join(dict.fromkeys(arm_names(cpuinfo).values()))


def _model(root: Path, cpuinfo: str) -> str:
    """Return what the board calls itself. Docker hides the device tree, and neither of the other two places."""
    told = re.search(r"^Model\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    said = (told[1].strip() if told else "", read_text(root, "sys/devices/soc0/machine"))
    return read_text(root, "proc/device-tree/model") or said[0] or said[1]


def _chip(root: Path, cpu_name: str) -> str:
    """Return the chip of a Jetson whose device tree is not shown, as that would call it; "" for others."""
    if read_text(root, "sys/devices/soc0/family") == "Tegra":
        return TEGRA_IDS.get(read_text(root, "sys/devices/soc0/soc_id"), "")
    return TEGRA_CORES.get(cpu_name, "") if _l4t(root) else ""


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
