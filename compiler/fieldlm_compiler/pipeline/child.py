"""Child processes, one step in each: an abort becomes an error message, and its memory is measured.

`call("package.module:function", …)` starts a fresh interpreter, hands it JSON, and returns the JSON it answers. The
step dies with the compiler, whatever kills the compiler.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from fieldlm.core import errors
from fieldlm.core.errors import EngineError, FieldlmError, NoSpaceError
from fieldlm.core.terminal import progress

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The last is what numpy says when it could write only part of an array.
FULL_TEXT = re.compile(
    r"No space left on device|StorageFull|Disk quota exceeded|File too large|requested and \d+ written"
)
PR_SET_PDEATHSIG = 1
POLL_S = 0.05
# No step may reach for a hub: what is needed is on this disk, and a timeout would look like a hang.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONHASHSEED": "0",
}
# Threads of torch that wait for each other in a loop stand still together when a neighbour takes a core.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# One thread of linear algebra in each of a step's own processes: threads that wait for each other help nobody.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a step answered, how long it took and the most memory it held (1e6 bytes)."""

    value: Any
    seconds: float
    peak_mb: float


def call(target: str, /, *, what: str, env: Mapping[str, str] | None = None, **arguments: object) -> Ran:
    """Run `module:function` with `arguments` in a new process and return its JSON answer.

    Raises the FieldlmError that the step raised, NoSpaceError when its disk filled up, and EngineError with the last
    line of its stderr when it died.
    """
    request = json.dumps({"target": target, "arguments": arguments}, default=str)
    with tempfile.TemporaryDirectory(prefix="fieldlm-") as folder, progress(what):
        answer = Path(folder) / "answer.json"
        with (Path(folder) / "log").open("w+b") as log:
            started_s = time.monotonic()
            code, peak_mb = _run(request, answer, log, env or {})
            seconds = time.monotonic() - started_s
            value = _value(code, answer, log, what)
    return Ran(value=value, seconds=seconds, peak_mb=peak_mb)


def _run(request: str, answer: Path, log: IO[bytes], env: Mapping[str, str]) -> tuple[int, float]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fieldlm_compiler.pipeline.child", str(answer), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **QUIET, **env},
    )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(request.encode())
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage.ru_maxrss * 1024 / 1e6
            time.sleep(POLL_S)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


def _value(code: int, answer: Path, log: IO[bytes], what: str) -> Any:
    if answer.exists():
        told = json.loads(answer.read_bytes())
        if "error" in told:
            raise getattr(errors, told["error"])(told["message"])
        if code == 0:
            return told["value"]
    log.seek(0)
    text = log.read().decode(errors="replace")
    if FULL_TEXT.search(text[-4000:]):
        raise NoSpaceError(
            f"no space left on the disk while trying to {what}; free some and run the same command again"
        )
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise EngineError(f"could not {what} ({ended}): {_last_line(text)}")


def _last_line(text: str) -> str:
    """Return the last line that is not a progress bar."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    return next((line[:300] for line in reversed(lines) if line and "%|" not in line), "it printed nothing")


def main(answer: Path, parent: int) -> int:
    """Be the child: read the request from stdin, run it, leave the answer or the user's mistake in `answer`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    request = json.load(sys.stdin)
    module, _, function = request["target"].partition(":")
    try:
        told = {"value": getattr(import_module(module), function)(**request["arguments"])}
    except FieldlmError as error:
        told = {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        if error.errno not in FULL:
            raise
        traceback.print_exc()
        told = {
            "error": "NoSpaceError",
            "message": f"{error.filename or 'the disk'}: {error.strerror}; free some space",
        }
    answer.write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
