"""sd_notify and the systemd watchdog in a few lines. Without systemd every call does nothing."""

import os
import socket
from collections.abc import Callable

from fieldlm.network.http_server import Heartbeat


def ready() -> None:
    """Say that requests are answered from now on; a unit of Type=notify counts as started."""
    _send("READY=1")


def stopping() -> None:
    """Say that the last answers are being finished."""
    _send("STOPPING=1")


def watchdog() -> None:
    """Say that work goes on; a unit with WatchdogSec= is restarted when this stays away."""
    _send("WATCHDOG=1")


def heartbeat(is_alive: Callable[[], bool]) -> Heartbeat | None:
    """Return what feeds systemd's watchdog while `is_alive`; None where no watchdog waits for this process."""
    period_us, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not period_us.isdecimal() or process != str(os.getpid()):
        return None

    def beat() -> None:
        if is_alive():
            watchdog()

    # systemd advises half the period; a quarter leaves room for a busy board.
    return Heartbeat(int(period_us) / 1e6 / 4, beat)


def _send(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        # A leading @ stands for the zero byte of Linux's abstract names.
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())
