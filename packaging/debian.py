"""Which Debian goes with the Python that builds, and where its packages are. What is built here holds its programs."""

import os
import sys

MINOR = f"3.{sys.version_info.minor}"
SUITES = {"3.11": "bookworm", "3.13": "trixie"}
"""Python that builds → the Debian that has it."""
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
COMPONENTS = "main non-free-firmware"


def suite() -> str:
    """Return the name of the Debian that has this Python; ends the program where none has."""
    if MINOR not in SUITES:
        raise SystemExit(f"no Debian has Python {MINOR}; build with one of {', '.join(SUITES)}")
    return SUITES[MINOR]


def sources() -> list[str]:
    """Return the lines for apt: the Debian of this Python, what it has been given since, and its security's."""
    name = suite()
    return [
        f"deb {MIRROR} {name} {COMPONENTS}",
        f"deb {MIRROR} {name}-updates {COMPONENTS}",
        f"deb {MIRROR}-security {name}-security {COMPONENTS}",
    ]
