"""KeyboardInterrupt that Python drops where C calls it, raised all the same."""

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def heeding_interrupts() -> Generator[None]:
    """Raise KeyboardInterrupt behind a call of a library in which Python dropped it: in a line of its log.

    Signals come to the main thread alone; elsewhere this does nothing, so that no two of them hold the hook at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual, dropped = sys.unraisablehook, list[bool]()

    def keep(what: Any) -> None:
        if what.exc_type is KeyboardInterrupt:
            dropped.append(True)
        else:
            usual(what)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = usual
    if dropped:
        raise KeyboardInterrupt
