"""`fieldlm tune --processes N`: the same command in N processes of this machine, a GPU for each where there are any.

They meet by a file, so no port has to be free. The first one speaks, to where this command would; what the others say
is kept for the one line that is said when one ends.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fieldlm.core.errors import UnavailableError
from fieldlm_compiler.learn.tuning.processes.team import LAUNCHER, MEETING, LostError

COMMAND = "tune"
LOST = 76
"""What a process returns that has nothing to say but that another one has ended."""
GRACE_S = 20.0
"""How long the others may take to say themselves why they end."""
LOOK_S = 0.1
AGAIN = "run the same command again to go on where it was"
Started = Sequence["subprocess.Popen[bytes]"]


def launch(argv: Sequence[str], count: int) -> int:
    """Run `fieldlm tune` with `argv` in `count` processes and return the exit code of the first.

    Raises UnavailableError when one of them ends before its time, and ends the others.
    """
    with tempfile.TemporaryDirectory(prefix="fieldlm-tune-") as name:
        folder = Path(name)
        started: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(count):
                started.append(_start(argv, rank, count, folder))
            return _watch(started, folder)
        finally:
            _end(started)


@contextmanager
def taking_part() -> Generator[None]:
    """Let a process that `launch` started end without a word where another one has ended: that one has the reason."""
    try:
        yield
    except LostError as error:
        if MEETING not in os.environ:
            raise
        raise SystemExit(LOST) from error


def _start(argv: Sequence[str], rank: int, count: int, folder: Path) -> "subprocess.Popen[bytes]":
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    # All are on this machine; its name need not lead to it.
    environment = {"GLOO_SOCKET_IFNAME": "lo"} | os.environ | {name: str(each) for name, each in numbers.items()}
    command = [sys.executable, "-m", "fieldlm", COMMAND, *argv]
    with _said(folder, rank).open("wb") as said:
        return subprocess.Popen(
            command,
            env=environment | {MEETING: f"file://{folder / 'meeting'}", LAUNCHER: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=said if rank else None,
            stderr=said if rank else None,
            start_new_session=True,  # Ctrl-C comes here alone, and is said once
        )


def _said(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.log"


def _watch(started: Started, folder: Path) -> int:
    while True:
        codes = [each.poll() for each in started]
        if any(codes):
            return _ended(started, folder)
        if None not in codes:
            return 0
        time.sleep(LOOK_S)


def _ended(started: Started, folder: Path) -> int:
    """Return the code of the first process where it has done its work, or said itself why not; raise for another's."""
    until_s = time.monotonic() + GRACE_S
    while time.monotonic() < until_s and any(each.poll() is None for each in started):
        time.sleep(LOOK_S)
    codes = [each.poll() for each in started]
    # The first one ends well only after the last step of all, with the adapter written.
    if codes[0] is not None and codes[0] >= 0 and codes[0] != LOST:
        return codes[0]
    rank = next((rank for rank, code in enumerate(codes) if code and code != LOST), None)
    if rank is None:
        raise UnavailableError(f"the processes of this tuning lost each other; {AGAIN}")
    which, code = f"process {rank + 1} of {len(started)}", codes[rank] or 0
    if code < 0:
        raise UnavailableError(f"{which} was ended by {_name_of(-code)}; {AGAIN}")
    lines = _said(folder, rank).read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
    raise UnavailableError(f"{which} ended: {last.removeprefix(f'fieldlm {COMMAND}: ')}")


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(started: Started) -> None:
    """End what still runs: what a tuning has kept is whole at any moment."""
    for each in started:
        if each.poll() is None:
            each.kill()
    for each in started:
        each.wait()
