"""Tell systemd how the service fares: a few lines instead of a dependency. Without systemd every call does nothing."""

import os
import socket


def ready() -> None:
    """Say that requests are answered from now on; a unit of Type=notify counts as started."""
    _send("READY=1")


def stopping() -> None:
    """Say that the last answers are being finished."""
    _send("STOPPING=1")


def watchdog() -> None:
    """Say that work goes on; a unit with WatchdogSec= is restarted when this stays away."""
    _send("WATCHDOG=1")


def _send(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        # A leading @ stands for the zero byte of Linux's abstract names.
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())
