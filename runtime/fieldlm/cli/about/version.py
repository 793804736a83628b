"""`fieldlm version`: which fieldlm this is, and on which Python it runs."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from fieldlm.core import terminal

HALVES = ("fieldlm", "fieldlm-compiler")


def main(argv: Sequence[str]) -> int:
    """Print the version of each half that is installed."""
    parser = terminal.parser("version", "Print the version of fieldlm and of Python.", "fieldlm version")
    args = parser.parse_args(argv)
    found: dict[str, str] = {}
    for half in HALVES:
        try:
            found[half] = version(half)
        except PackageNotFoundError:
            continue
    found["python"] = platform.python_version()
    terminal.show(found, "\n".join(f"{name} {number}" for name, number in found.items()), as_json=args.json)
    return 0
