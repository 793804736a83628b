"""`python -m fieldlm`, and what the `fieldlm` script runs: Ctrl-C ends it quietly, from its first moment.

While modules are imported an exception is not safe: a library may catch every one, and where none does, the reader gets
a traceback. So the process ends there itself, before anything has begun.
"""

import os
import signal
from types import FrameType

INTERRUPTED = 130


def leave(number: int, frame: FrameType | None) -> None:
    """End now, with what a shell expects of a program that Ctrl-C ended."""
    os._exit(INTERRUPTED)


signal.signal(signal.SIGINT, leave)


def main() -> int:
    """Run the command; what it imports before it begins may be interrupted, too."""
    from fieldlm.cli.main import main as command

    return command(on_loaded=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


if __name__ == "__main__":
    raise SystemExit(main())
