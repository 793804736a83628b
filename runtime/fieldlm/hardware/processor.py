"""CPU feature check: whether this processor has the instructions that the packaged llama.cpp was compiled for."""

import sys
from pathlib import Path

from fieldlm.core.errors import EngineError

FLAGS = Path(sys.prefix) / "cpu-flags"
"""Written by packaging/build_deb.py; elsewhere llama.cpp was built where it runs."""


def check_processor(flags: Path = FLAGS, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Raise EngineError when the processor lacks one of `flags`: the library would end in an illegal instruction."""
    if not flags.is_file() or not cpuinfo.is_file():
        return
    had = set(cpuinfo.read_text(errors="replace").split())
    if missing := [flag for flag in flags.read_text().split() if flag not in had]:
        raise EngineError(
            f"this package was built for processors with {', '.join(missing)}, which this one lacks; build it on a "
            "machine like this one (make deb)"
        )
