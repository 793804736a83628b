"""Child processes, one step in each: an abort becomes an error message, and its memory is measured.

`call(function, what="…")(…)` starts a fresh interpreter, which imports the function and hands it the arguments, and
returns the JSON it answers; with `preload` the interpreter is a fork of one that has imported what takes long. The
step dies with the compiler, whatever kills the compiler.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, ParamSpec

import msgspec

from fieldlm.core import errors
from fieldlm.core.errors import EngineError, NoSpaceError
from fieldlm.core.terminal import progress
from fieldlm_compiler.pipeline import fork_server
from fieldlm_compiler.pipeline.fork_server import Preload

# The last is what numpy says when it could write only part of an array.
FULL_TEXT = re.compile(
    r"No space left on device|StorageFull|Disk quota exceeded|File too large|requested and \d+ written"
)
GGML_ASSERT = re.compile(r"GGML_ASSERT\(|GGML_ABORT|\bggml\S*\.(c|cpp|h):\d+: ")
# An exception whose message says nothing to who does not know the code that raised it.
BARE = re.compile(r"(AssertionError|KeyError|IndexError|StopIteration|NotImplementedError)(: .{0,40})?")
TRACED = re.compile(r'File "([^"]+)", line (\d+), in ')
POLL_S = 0.05
P = ParamSpec("P")
# No step may reach for a hub: what is needed is on this disk, and a timeout would look like a hang.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONHASHSEED": "0",
}
# One thread of linear algebra in each of a step's own processes: threads that wait for each other help nobody.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a step answered, how long it took and the most memory it held (1e6 bytes)."""

    value: Any
    seconds: float
    peak_mb: float


def call(
    function: Callable[P, object], *, what: str, env: Mapping[str, str] | None = None, preload: Preload | None = None
) -> Callable[P, Ran]:
    """Return `function` as one that runs in a new process, and says how it went.

    `env` is added to its environment, a PYTHONPATH in front of the one there is. `preload` says what it needs that
    takes long to import: `fork_server.TORCH`.

    The function stands in a module of its own right, takes what JSON can say (paths and structs too: they are made
    again from the types that it declares) and answers with JSON. It raises the FieldlmError that the step raised,
    NoSpaceError when its disk filled up, and EngineError with the last line of its stderr when it died.
    """

    def run(*arguments: P.args, **named: P.kwargs) -> Ran:
        asked = {"target": _target(function), "arguments": arguments, "named": named}
        request = msgspec.json.encode(asked, enc_hook=_plain)
        with tempfile.TemporaryDirectory(prefix="fieldlm-") as folder, progress(what):
            answer = Path(folder) / "answer.json"
            with (Path(folder) / "log").open("w+b") as log:
                started_s = time.monotonic()
                settings = _environment(env or {})
                if preload:
                    code, peak_mb = _fork(request, answer, log, settings, preload)
                else:
                    code, peak_mb = _run(request, answer, log, settings)
                seconds = time.monotonic() - started_s
                value = _value(code, answer, log, what)
        return Ran(value=value, seconds=seconds, peak_mb=peak_mb)

    return run


def _target(function: Callable[..., object]) -> tuple[str, str]:
    """Return module and name by which another interpreter finds `function`; `__main__` is another module there."""
    module = function.__module__
    if module == "__main__" and (spec := sys.modules[module].__spec__) is not None:
        module = spec.name
    return module, function.__qualname__


def _plain(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a step cannot be handed a {type(value).__name__}")


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    # In front of whatever else is on it.
    path = (env.get("PYTHONPATH"), os.environ.get("PYTHONPATH"))
    return {**os.environ, **QUIET, **env, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _fork(request: bytes, answer: Path, log: IO[bytes], env: dict[str, str], preload: Preload) -> tuple[int, float]:
    asked = {"request": json.loads(request), "answer": str(answer), "log": log.name, "env": env, "cwd": str(Path.cwd())}
    return fork_server.run(asked, preload, QUIET, log)


def _run(request: bytes, answer: Path, log: IO[bytes], env: dict[str, str]) -> tuple[int, float]:
    process = subprocess.Popen(
        [sys.executable, "-m", "fieldlm_compiler.pipeline.step", str(answer), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
    )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(request)
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
    raise EngineError(f"could not {what} ({ended}): {_cause(text)}")


def _cause(text: str) -> str:
    """Return the line of a log that names the cause.

    That is what ggml asserted, before a debugger has its say; or the last line that is no progress bar, with its place
    where an exception has nothing else to tell.
    """
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    lines = [line for line in lines if line and "%|" not in line]
    asserted = next((line for line in lines if GGML_ASSERT.search(line)), None)
    if asserted or not lines:
        return asserted[:300] if asserted else "it printed nothing"
    places = [at for at, line in enumerate(lines) if TRACED.match(line)]
    if not BARE.fullmatch(lines[-1]) or not places:
        return lines[-1][:300]
    place = TRACED.match(lines[places[-1]])
    assert place is not None, "it matched before"
    said = lines[places[-1] + 1]
    return f"{lines[-1][:200]} at {Path(place[1]).name} line {place[2]}: {said[:200]}"
