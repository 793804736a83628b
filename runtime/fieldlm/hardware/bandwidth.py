"""Memory bandwidth: how fast can this machine read? The ceiling of decoding, which reads all weights for every token.

Method: each thread takes the largest of its own stretch of an int32 array with `numpy.max`; all start together, and a
round ends when the last is done. The arrays together are at least four times the last cache (a quarter of the
available memory at most); the best of all rounds counts, as in STREAM. `numpy.sum` will not do: its pairwise float
addition stops at 23 GB/s with everything in cache, where `numpy.max` reads 85 (one core of an AVX-512 Xeon, in a
VM). It reads only, so it is a variant of STREAM and not STREAM.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fieldlm.hardware.limits import LIVE, read_text
from fieldlm.hardware.sensors import memory_available_mb

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEAST_MB = 64
SUFFIX_BYTES = {"K": 1024, "M": 1 << 20, "G": 1 << 30}


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """The best round in GB/s (1e9 bytes), all rounds, and whether the arrays were four caches large."""

    read_gb_s: float
    samples_gb_s: tuple[float, ...]
    threads: int
    array_mb: int
    cache_mb: float
    is_beyond_cache: bool


def read_bandwidth(threads: int, *, array_mb: int | None = None, rounds: int = 10) -> Bandwidth:
    """Measure reading with `threads` threads; `array_mb` is what all of them read together in one round."""
    import numpy as np

    cache_mb = last_cache_mb()
    wanted_mb = max(LEAST_MB, int(4 * cache_mb) + 1)
    size_mb = array_mb or min(wanted_mb, max(LEAST_MB, memory_available_mb() // 4))
    # Ones, not zeros: untouched zero pages are all the same page.
    stretches = [np.ones(size_mb * 1_000_000 // 4 // threads, np.int32) for _ in range(threads)]
    total_bytes = sum(stretch.nbytes for stretch in stretches)
    samples = [total_bytes / _round(stretches) / 1e9 for _ in range(rounds)]
    return Bandwidth(
        read_gb_s=max(samples),
        samples_gb_s=tuple(samples),
        threads=threads,
        array_mb=size_mb,
        cache_mb=cache_mb,
        is_beyond_cache=size_mb >= 4 * cache_mb,
    )


def last_cache_mb(root: Path = LIVE) -> float:
    """Return the size of the largest cache that the first core sees, in megabytes (1e6 bytes); 0 when unknown."""
    sizes = [read_text(path, "size") for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*")]
    known = [int(size[:-1]) * SUFFIX_BYTES[size[-1]] for size in sizes if size[:-1].isdigit() and size[-1] in "KMG"]
    return max(known, default=0) / 1e6


def _round(stretches: "list[npt.NDArray[np.int32]]") -> float:
    """Return the seconds from the common start to the last thread's end."""
    gate = threading.Barrier(len(stretches) + 1)

    def read(stretch: "npt.NDArray[np.int32]") -> float:
        gate.wait()
        stretch.max()
        return time.perf_counter()

    with ThreadPoolExecutor(len(stretches)) as pool:
        ended_s = [pool.submit(read, stretch) for stretch in stretches]
        started_s = time.perf_counter()
        gate.wait()
        return max(each.result() for each in ended_s) - started_s
