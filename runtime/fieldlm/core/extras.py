"""Extras of a distribution: the pip command that brings what one needs, whoever the distribution was installed from."""

import shlex


def install_command(distribution: str, extra: str) -> str:
    """Return the command that installs what `extra` adds.

    It names the packages themselves: `distribution[extra]` would be looked for on PyPI, where a checkout's is not.
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        declared = requires(distribution) or []
    except PackageNotFoundError:  # read from a folder
        declared = []
    parted = [line.partition(";") for line in declared]
    names = [name.strip() for name, _, marker in parted if marker.replace('"', "'").strip() == f"extra == '{extra}'"]
    return f"pip install {shlex.join(sorted(names) or [f'{distribution}[{extra}]'])}"
