"""Kinds of cores: what they are called, which share one, and which are the fast ones of a mixed set."""

import re
from pathlib import Path
from typing import NamedTuple

from fieldlm.hardware.limits import cpu_list, read_text

# Implementer and part, as in the registers' manuals and util-linux's lscpu.
ARM_PARTS = {
    "0x41": {
        "0xd01": "Cortex-A32", "0xd02": "Cortex-A34", "0xd03": "Cortex-A53", "0xd04": "Cortex-A35",
        "0xd05": "Cortex-A55", "0xd06": "Cortex-A65", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
        "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1",
        "0xd0d": "Cortex-A77", "0xd0e": "Cortex-A76AE", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78",
        "0xd42": "Cortex-A78AE", "0xd43": "Cortex-A65AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510",
        "0xd47": "Cortex-A710", "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2", "0xd4a": "Neoverse-E1",
        "0xd4b": "Cortex-A78C", "0xd4c": "Cortex-X1C", "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3",
        "0xd4f": "Neoverse-V2", "0xd80": "Cortex-A520", "0xd81": "Cortex-A720", "0xd82": "Cortex-X4",
        "0xd83": "Neoverse-V3AE", "0xd84": "Neoverse-V3", "0xd85": "Cortex-X925", "0xd87": "Cortex-A725",
        "0xd88": "Cortex-A520AE", "0xd89": "Cortex-A720AE", "0xd8e": "Neoverse-N3",
    },
    "0x48": {"0xd01": "TaiShan v110", "0xd02": "TaiShan v120"},
    "0x4e": {"0x003": "Denver 2", "0x004": "Carmel"},
    "0x51": {
        "0x001": "Oryon", "0x002": "Oryon 2", "0x800": "Kryo 2xx Gold", "0x801": "Kryo 2xx Silver",
        "0x802": "Kryo 3xx Gold", "0x803": "Kryo 3xx Silver", "0x804": "Kryo 4xx Gold", "0x805": "Kryo 4xx Silver",
    },
    "0x61": {
        "0x000": "Apple, as a virtual machine sees it",
        "0x022": "Apple M1 Icestorm", "0x023": "Apple M1 Firestorm",
        "0x024": "Apple M1 Pro Icestorm", "0x025": "Apple M1 Pro Firestorm",
        "0x028": "Apple M1 Max Icestorm", "0x029": "Apple M1 Max Firestorm",
        "0x032": "Apple M2 Blizzard", "0x033": "Apple M2 Avalanche",
        "0x034": "Apple M2 Pro Blizzard", "0x035": "Apple M2 Pro Avalanche",
        "0x038": "Apple M2 Max Blizzard", "0x039": "Apple M2 Max Avalanche",
    },
    "0x70": {"0x303": "FTC310", "0x663": "FTC663", "0x664": "FTC664", "0x862": "FTC862"},
    "0xc0": {"0xac3": "Ampere-1", "0xac4": "Ampere-1a"},
}  # fmt: skip
LITTLE = re.compile(r"Cortex-A(3[245]|5[35]|65|65AE|510|520|520AE)|Kryo .* Silver|.* (Icestorm|Blizzard)|FTC310")
"""Names of the small cores of a mixed set: of one clock, they do half of the large ones' work or less."""
# Cores of one kind differ by this much: AMD's driver gives equal cores clocks of 5.14 to 6.08 GHz, and the slow ones of
# a mixed set have three quarters of the fast ones' clock at most.
ONE_KIND = 0.8


class Processor(NamedTuple):
    """What runs one thread: processors of one `core` share its units; `speed` is in whatever unit, 0 where unknown."""

    core: str
    speed: int


def arm_name(implementer: str, part: str) -> str:
    """Return what the core is called; registers that nobody has named are shown as they are."""
    return ARM_PARTS.get(implementer, {}).get(part, f"implementer {implementer} part {part}")


def arm_names(cpuinfo: str) -> dict[int, str]:
    """Return the name of each processor's core, empty for processors that are none of ARM's kind."""
    found: dict[int, str] = {}
    for block in cpuinfo.split("\n\n"):
        number, implementer, part = (
            re.search(rf"^{key}\s*:\s*(\S+)$", block, re.MULTILINE)
            for key in ("processor", "CPU implementer", "CPU part")
        )
        if implementer and part:
            found[int(number[1]) if number else len(found)] = arm_name(implementer[1], part[1])
    return found


def processors(root: Path) -> dict[int, Processor]:
    """Return the processors that are switched on, by their numbers; those of /proc/cpuinfo where /sys shows none.

    The kernel's own measure of a core (cpu_capacity) comes before its clock; of a clock, small cores do half. One that
    is switched off (a Jetson's power mode, hyperthreading) says nothing of its core, or has no such file at all.
    """
    cpuinfo = read_text(root, "proc/cpuinfo")
    slow = _small(root, cpuinfo)
    found: dict[int, Processor] = {}
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))
    knows_siblings = any((folder / "topology/thread_siblings_list").is_file() for folder in folders)
    for folder in folders:
        siblings, cpu = read_text(folder, "topology/thread_siblings_list"), int(folder.name[3:])
        if read_text(folder, "online") == "0" or (knows_siblings and not siblings):
            continue
        capacity, clock = read_text(folder, "cpu_capacity"), read_text(folder, "cpufreq/cpuinfo_max_freq")
        if capacity.isdigit():
            speed = int(capacity)
        else:
            speed = int(clock) // (2 if cpu in slow else 1) if clock.isdigit() else 0
        found[cpu] = Processor(siblings or folder.name, speed)
    found = found or _listed(cpuinfo)
    if not any(each.speed for each in found.values()):
        return {cpu: each._replace(speed=1 if cpu in slow else 2) for cpu, each in found.items()}
    return found


def _listed(cpuinfo: str) -> dict[int, Processor]:
    """Return the processors that /proc/cpuinfo has; x86 says which of them share a core."""
    found: dict[int, Processor] = {}
    for block in cpuinfo.split("\n\n"):
        ids = dict(re.findall(r"^(processor|physical id|core id)\s*:\s*(\d+)$", block, re.MULTILINE))
        if "processor" in ids:
            core = f"{ids.get('physical id')}.{ids['core id']}" if "core id" in ids else ids["processor"]
            found[int(ids["processor"])] = Processor(core, 0)
    return found


def _small(root: Path, cpuinfo: str) -> frozenset[int]:
    """Return the small cores of a mixed set; Intel's kernel driver lists its own."""
    little = {cpu for cpu, name in arm_names(cpuinfo).items() if LITTLE.fullmatch(name)}
    return cpu_list(read_text(root, "sys/devices/cpu_atom/cpus")) | little


def fast(known: dict[int, Processor]) -> frozenset[int]:
    """Return those of `known` processors whose cores are of the fastest kind: all where they are alike."""
    most = max((each.speed for each in known.values()), default=0)
    return frozenset(cpu for cpu, each in known.items() if each.speed >= ONE_KIND * most)
