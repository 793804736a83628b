"""A Ray cluster as the workshop joins one: which, for how long, and how files come to nodes that share none.

What is sent goes through the object store in pieces, and each node keeps it by its digest, so it travels there once.
"""

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from fieldlm.core.errors import EngineError, MissingDependencyError, UnavailableError
from fieldlm.core.extras import install_advice
from fieldlm.core.files import cache_root, sha256_file
from fieldlm_compiler.pipeline.llama_toolchain import installed
from fieldlm_compiler.pipeline.stages import lock

PIECE_BYTES = 64 << 20
CONNECT_S = 5.0
# Nothing is told to Ray's makers; the second keeps a warning about GPUs off the terminal.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A file in the object store: its name, its digest and its pieces in turn."""

    name: str
    sha256: str
    pieces: tuple[Any, ...]


@contextlib.contextmanager
def connected(address: str | None) -> Generator[None]:
    """Belong to the cluster at `address` (HOST:PORT, ray://HOST:PORT or auto) until the block ends; None: to none.

    Raises MissingDependencyError without Ray, UnavailableError when no cluster answers or it runs another Ray or
    Python.
    """
    if address is None:
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise MissingDependencyError(f"--ray needs Ray; {install_advice('fieldlm-compiler', 'ray')}") from error
    _knock(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"no Ray cluster can be joined at {address}: {first[:300]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise UnavailableError when nothing listens at `address`.

    Ray itself would try for a minute, and say it in many lines.
    """
    found = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)
    if found is None and address != "auto":
        raise UnavailableError(f"--ray {address} is no address of a cluster; give HOST:PORT, ray://HOST:PORT or auto")
    if found:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise UnavailableError(
                f"no Ray cluster answers at {address} ({error}); start one with: ray start --head, "
                "or leave --ray out to use this machine alone"
            ) from error


@contextlib.contextmanager
def keep_interrupt() -> Generator[Callable[[], None]]:
    """Raise the KeyboardInterrupt of a Ctrl-C at the end of the block, or when the function given is called.

    It is raised where it falls too, but Ray's code has been seen to swallow it there.
    """
    before, pressed = signal.getsignal(signal.SIGINT), threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        pressed.set()
        if callable(before):
            before(number, frame)

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


def send(ray: Any, path: Path) -> Sent:
    """Put the file at `path` into the object store."""
    import numpy as np

    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    pieces = [np.asarray(content[at : at + PIECE_BYTES]) for at in range(0, len(content), PIECE_BYTES)]
    return Sent(name=path.name, sha256=sha256_file(path), pieces=tuple(ray.put(piece) for piece in pieces))


def check_packages(needs: Mapping[str, str]) -> None:
    """Raise EngineError unless this node has the packages of these versions."""
    have = installed(needs)
    for name, wanted in needs.items():
        if have.get(name) != wanted:
            raise EngineError(
                f"this node has {name} {have.get(name, 'not at all')}, the compiler {wanted}: "
                f"its bytes would be others; run there: pip install {name}=={wanted}"
            )


def held(sent: Sent, folder: Path) -> Path:
    """Return the file `sent` under its name in `folder`; it is fetched unless the node has it from before."""
    ray: Any = import_module("ray")
    kept = cache_root() / "nodes" / sent.sha256
    with lock(kept.with_name(f".{sent.sha256}.lock")):
        if not kept.exists():
            part = kept.with_name(f"{sent.sha256}.part")
            with part.open("wb") as file:
                for piece in sent.pieces:
                    file.write(ray.get(piece))
            if sha256_file(part) != sent.sha256:
                raise EngineError(f"{sent.name} did not arrive whole; run the same command again")
            part.replace(kept)
    path = folder / sent.name
    path.symlink_to(kept)
    return path


def last_line(error: Exception) -> str:
    """Return the last line of what Ray says: before it stand the stacks of several processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]
