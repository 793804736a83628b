"""Installing what is missing: with pip, by the packages' own names; a Debian package has no pip and says what else."""

import shlex
import sys
from pathlib import Path

PACKAGE_MARK = Path(sys.prefix) / "cpu-flags"
"""packaging/build_deb.py writes it into the Debian package: the processors that its llama.cpp is for."""


def advice(command: str, instead: str) -> str:
    """Return what to do about something that is missing: run `command`, or `instead` in a Debian package."""
    return instead if PACKAGE_MARK.is_file() else f"run: {command}"


def install_advice(distribution: str, extra: str) -> str:
    """Return how to get what `extra` adds.

    It names the packages themselves: `distribution[extra]` would be looked for on PyPI, where a checkout's is not.
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        declared = requires(distribution) or []
    except PackageNotFoundError:  # read from a folder
        declared = []
    parted = [line.partition(";") for line in declared]
    names = [name.strip() for name, _, marker in parted if marker.replace('"', "'").strip() == f"extra == '{extra}'"]
    wanted = shlex.join(sorted(names) or [f"{distribution}[{extra}]"])
    instead = f"the Debian package comes without {wanted}; install fieldlm from a checkout in an environment of its own"
    return advice(f"pip install {wanted}", instead)
