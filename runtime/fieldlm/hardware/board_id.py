"""Machine id: which machine this is, as far as one can tell without asking anybody."""

import hashlib
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_SERIALS = (
    Path("/proc/device-tree/serial-number"),  # Raspberry Pi, Jetson: fused into the processor
    Path("/sys/class/dmi/id/product_uuid"),  # PCs, for root alone
    Path("/sys/class/dmi/id/board_serial"),
)


def boot_id() -> str:
    """Return the first eight digits of what Linux calls this boot; empty where there is none."""
    return _BOOT.read_text()[:8] if _BOOT.exists() else ""


def fingerprint() -> str:
    """Return a hash of the board's serial number; empty when the board does not tell.

    Network addresses are left out: a container gets a new one with every start, and would seem to move.
    """
    for path in _SERIALS:
        try:
            serial = path.read_bytes().strip(b"\0 \n")
        except OSError:
            continue
        if serial.strip(b"0 -"):
            return hashlib.sha256(serial).hexdigest()[:16]
    return ""
