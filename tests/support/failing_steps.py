"""Steps of a compiler that go wrong, or say what they were given, for tests of what it makes of them."""

import os
import signal
import sys
import time
from pathlib import Path

from fieldlm.formats.bundle import CacheTypes


def fill_disk() -> None:
    Path("/dev/full").write_bytes(b"x" * 100_000)


def abort_in_ggml() -> None:
    """End as ggml does: what it asserted, then what a debugger says of the process."""
    print("/src/ggml-cpu/ops.cpp:12: GGML_ASSERT(n > 0) failed", file=sys.stderr)
    print("[New LWP 29464]\n[Inferior 1 (process 29463) detached]", file=sys.stderr, flush=True)
    os.abort()


def kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def look_up() -> str:
    config: dict[str, int] = {}
    return str(config["n_ctx"])


def retold(paths: list[Path], cache: CacheTypes | None) -> str:
    return f"{type(paths[0]).__name__} {paths[0]} {type(cache).__name__} {cache.values if cache else ''}"
