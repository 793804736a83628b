"""Importing much at once."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def no_garbage() -> Generator[None]:
    """Look for no garbage in this block, which imports: it makes hardly any, and is looked through a hundred times.

    A tenth of what a start spent on its imports went there.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
