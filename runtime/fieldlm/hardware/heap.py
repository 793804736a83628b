"""The C library's heap: what was freed goes back to the system only when it is asked for, or never."""

import ctypes
from contextlib import suppress


def trim() -> None:
    """Give freed memory back to the system. Where the C library knows no such call (musl), it keeps none."""
    with suppress(AttributeError, OSError):
        # glibc keeps blocks of up to 32 MB once one of that size was freed: caches and buffers of a model are such.
        ctypes.CDLL(None).malloc_trim(0)
