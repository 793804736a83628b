"""`python -m fieldlm`, and what the `fieldlm` script runs: Ctrl-C ends it quietly, from its first moment.

While modules are imported an exception is not safe: a library may catch every one, and where none does, the reader gets
a traceback. So the process ends there itself: nothing that a kill would harm is under way.
"""

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
IMPORTING = "<frozen importlib._bootstrap>"


def leave(number: int, frame: FrameType | None) -> None:
    """End now, with what a shell expects of a program that Ctrl-C ended."""
    os._exit(INTERRUPTED)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but end now where a command imports what it needs for its work."""
    at = frame
    while at is not None:
        if at.f_code.co_filename == IMPORTING:
            _tell()
            leave(number, frame)
        at = at.f_back
    raise KeyboardInterrupt


def _tell() -> None:
    """Say what the command would have said, with nothing that may be in the middle of its work."""
    from fieldlm.cli.main import stopped

    if len(sys.argv) < 2:
        return
    with contextlib.suppress(OSError):
        os.write(2, f"fieldlm {sys.argv[1]}: {stopped(sys.argv[1])}\n".encode())


def heed_interrupts() -> None:
    """Let Ctrl-C stop the command from here on, also where its exception is lost: in what C calls, and in `__del__`."""
    usual = sys.unraisablehook

    def lost(what: "sys.UnraisableHookArgs") -> None:
        if what.exc_type is KeyboardInterrupt:
            leave(signal.SIGINT, None)
        usual(what)

    sys.unraisablehook = lost
    signal.signal(signal.SIGINT, interrupt)


signal.signal(signal.SIGINT, leave)


def main() -> int:
    """Run the command; what it imports before it begins may be interrupted, too."""
    from fieldlm.cli.main import main as command

    try:
        code = command(on_loaded=heed_interrupts)
        _end_quietly(code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        # Large libraries take seconds to tear down, and wait for their threads.
        _end(code)
    return code


def _end_quietly(code: int) -> None:
    """Let Ctrl-C only hasten the end from here on: the work is done, and `code` says how it went."""
    signal.signal(signal.SIGINT, lambda number, frame: _end(code))
    # At its very end the interpreter puts the system's handlers back, which kill; one that ignores stays.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _end(code: int) -> None:
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a flush is under way
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    raise SystemExit(main())
