"""Work that is given up when it takes too long."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def within(seconds: float, give_up: Callable[[], None]) -> Generator[None]:
    """Call `give_up` from another thread unless the block ends within `seconds`."""
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
