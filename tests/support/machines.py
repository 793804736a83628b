"""Machines as files: a TOML of `fixtures/machines` becomes a folder with what is read of /proc, /sys and /etc."""

import functools
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MACHINES = Path(__file__).parents[1] / "fixtures/machines"


def machine_names() -> list[str]:
    return sorted(path.stem for path in MACHINES.glob("*.toml"))


@functools.cache
def read_machine(name: str) -> dict[str, Any]:
    return tomllib.loads((MACHINES / f"{name}.toml").read_text(encoding="utf-8"))


@functools.cache
def sysroot(name: str) -> Path:
    """Return a folder with the machine's files, which is removed when the process ends. Read it, write nothing."""
    return materialise(read_machine(name), Path(_folder().name) / name)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="machines-")


def materialise(machine: dict[str, Any], root: Path) -> Path:
    """Write the files of `machine` under `root` and return it."""
    for path, text in _files(machine):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def _files(machine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _processors(machine)
    board: dict[str, Any] = machine.get("board", {})
    if "model" in board:
        yield "proc/device-tree/model", f"{board['model']}\0"
    if "compatible" in board:
        yield "proc/device-tree/compatible", "".join(f"{name}\0" for name in board["compatible"])
    for key, name in (("vendor", "sys_vendor"), ("product", "product_name"), ("chassis", "chassis_type")):
        if key in board:
            yield f"sys/class/dmi/id/{name}", f"{board[key]}\n"
    if memory := machine.get("memory"):
        total_kb = memory["total_kb"]
        rows = {
            "MemTotal": total_kb,
            "MemFree": total_kb // 2,
            "MemAvailable": memory.get("available_kb", total_kb * 3 // 4),
            "SwapTotal": memory.get("swap_kb", 0),
            "SwapFree": memory.get("swap_kb", 0),
        }
        yield "proc/meminfo", "".join(f"{name + ':':<16}{kb} kB\n" for name, kb in rows.items())
    yield from machine.get("files", {}).items()


def _processors(machine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rows = [row for row in machine.get("processors", []) for _ in range(row["count"])]
    blocks = [f"processor\t: {cpu}\n{row['cpuinfo'].strip()}\n\n" for cpu, row in enumerate(rows) if row.get("cpuinfo")]
    model = machine.get("board", {}).get("cpuinfo_model")
    if blocks:
        yield "proc/cpuinfo", "".join(blocks) + (f"Model\t\t: {model}\n" if model else "")
    for cpu, row in enumerate(rows):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        if not row.get("online", True):
            yield f"{folder}/online", "0\n"
        if "max_khz" in row:
            yield f"{folder}/cpufreq/cpuinfo_max_freq", f"{row['max_khz']}\n"
        if "capacity" in row:
            yield f"{folder}/cpu_capacity", f"{row['capacity']}\n"
        if siblings := row.get("siblings"):
            even = cpu - cpu % 2
            named = {"alone": str(cpu), "next": f"{even}-{even + 1}"}.get(siblings, siblings)
            yield f"{folder}/topology/thread_siblings_list", f"{named}\n"
