"""Fork server: steps that compute with torch begin at once, for importing it costs each seven seconds of processor.

A server imports what its steps share, computes nothing, and forks one step after the other. stdin: a line of JSON a
step, {"request": …, "answer": path, "log": path, "env": {…}, "cwd": path}. stdout: a line when the step was forked,
then the status that wait(2) tells of it and the most memory it held (KiB). It ends when nobody asks for a while, and
kills its step when its parent is gone.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from fieldlm_compiler.pipeline import step

IDLE_S = 60.0
POLL_S = 0.02
# Threads of torch that wait for each other in a loop stand still together when a neighbour takes a core.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, kw_only=True)
class Preload:
    """What a server imports before it forks: `modules`, first of all from the folder `path`."""

    modules: tuple[str, ...]
    path: Path | None = None


TORCH = Preload(modules=("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"))


class ForkServer:
    """A server of this process's own, for one step at a time."""

    def __init__(self, preload: Preload, env: Mapping[str, str], log: IO[bytes]) -> None:
        self.owner = os.getpid()
        paths = filter(None, (preload.path and str(preload.path), os.environ.get("PYTHONPATH")))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fieldlm_compiler.pipeline.fork_server", str(self.owner), *preload.modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **PATIENT, **env, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def run(self, asked: Mapping[str, Any]) -> tuple[int, float] | None:
        """Run a step; returns its exit code and the most memory it held (MB), None when the server died before it.

        Raises ChildProcessError when the server dies with it.
        """
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        if not self._process.stdout.readline():
            return None
        if not (told := self._process.stdout.readline().split()):
            raise ChildProcessError
        return os.waitstatus_to_exitcode(int(told[0])), int(told[1]) * 1024 / 1e6

    def close(self) -> int:
        """End it, and the step that runs; returns its exit code."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()


_idle: defaultdict[Preload, list[ForkServer]] = defaultdict(list)


def run(asked: Mapping[str, Any], preload: Preload, env: Mapping[str, str], log: IO[bytes]) -> tuple[int, float]:
    """Run a step in a server that is idle, or in a new one; returns its exit code and the most memory it held (MB)."""
    while True:
        is_new = (server := _take(preload)) is None
        server = server or ForkServer(preload, env, log)
        try:
            ran = server.run(asked)
        except ChildProcessError:
            return server.close(), 0.0
        except BaseException:
            server.close()
            raise
        if ran is not None:
            _idle[preload].append(server)
            return ran
        code = server.close()
        if is_new:
            return code, 0.0


def _take(preload: Preload) -> ForkServer | None:
    """Take an idle server; those of a process that was forked are its parent's."""
    with contextlib.suppress(IndexError):
        while True:
            server = _idle[preload].pop()
            if server.owner == os.getpid():
                return server
    return None


@atexit.register
def _close_all() -> None:
    for preload in list(_idle):
        while server := _take(preload):
            server.close()


def main(parent: int, modules: list[str]) -> int:
    """Be the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    for name in modules:
        import_module(name)
    gc.freeze()
    while select.select([sys.stdin], [], [], IDLE_S)[0] and (line := sys.stdin.readline()):
        # OpenBLAS has a thread of its own by now, and makes it anew in a child (pthread_atfork).
        with warnings.catch_warnings(action="ignore"):
            pid = os.fork()
        if pid == 0:
            _be_step(json.loads(line))
        print(pid, flush=True)
        print(*_wait(pid, parent), flush=True)
    return 0


def _wait(pid: int, parent: int) -> tuple[int, int]:
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, usage.ru_maxrss
        if os.getppid() != parent:
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _be_step(asked: Mapping[str, Any]) -> None:
    """Run the step that was asked for in this fork, and end it."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(step.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for target in (1, 2):
            os.dup2(os.open(asked["log"], os.O_WRONLY | os.O_APPEND), target)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.path[:0] = filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep))
        code = step.perform(asked["request"], Path(asked["answer"]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
