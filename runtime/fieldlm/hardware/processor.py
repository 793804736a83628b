"""CPU feature check: whether this processor has the instructions that the libraries here were compiled for.

A library that meets an instruction which the processor lacks ends the process without a word.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from fieldlm.core.errors import EngineError
from fieldlm.core.extras import PACKAGE_MARK

FLAGS = PACKAGE_MARK
"""Outside of a Debian package llama.cpp was built where it runs, or for every processor."""
CPUINFO = Path("/proc/cpuinfo")
LEAST = {"x86_64": ("ssse3", "sse4_1", "sse4_2", "popcnt")}
"""Architecture → what numpy's wheels (from 2.4 on) and llama.cpp's least kernels need, as /proc/cpuinfo calls it."""
ENOUGH = 8192  # bytes of /proc/cpuinfo in which the first processor is described


def check_least(cpuinfo: Path = CPUINFO, machine: str = os.uname().machine) -> None:
    """Raise EngineError where the processor is older than any that fieldlm runs on."""
    missing = _missing(("fpu", *LEAST.get(machine, ())), cpuinfo)
    # Under qemu it may show another architecture's processor, which has none of the words.
    if missing and "fpu" not in missing:
        raise EngineError(
            f"this processor lacks {', '.join(missing)}, which numpy and llama.cpp need; take one from after 2010"
        )


def check_processor(flags: Path = FLAGS, cpuinfo: Path = CPUINFO) -> None:
    """Raise EngineError when the processor lacks one of `flags`."""
    if not flags.is_file():
        return
    if missing := _missing(flags.read_text().split(), cpuinfo):
        raise EngineError(
            f"this package was built for processors with {', '.join(missing)}, which this one lacks; build it for "
            "every processor (make deb), or on a machine like this one"
        )


def _missing(flags: Sequence[str], cpuinfo: Path) -> list[str]:
    """Return those of `flags` that `cpuinfo` does not have."""
    if not flags or not cpuinfo.is_file():
        return []
    with cpuinfo.open(errors="replace") as file:
        had = set(file.read(ENOUGH).split())
    return [flag for flag in flags if flag not in had]
