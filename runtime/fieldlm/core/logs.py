"""Logging: every module logs under `fieldlm`; who embeds `Model` routes that as ever, the command line prints it.

No prompt, no answer and nothing else that a user wrote is ever logged.
"""

import logging
import os
import sys
import time
from collections import deque
from typing import TextIO

from fieldlm.core.wording import visible

TREE = logging.getLogger("fieldlm")
# Without any handler Python would print warnings on the stderr of a program that asked for none.
TREE.addHandler(logging.NullHandler())
MOST_LINES = 1000


def logger(module: str) -> logging.Logger:
    """Return the logger of the module with that `__name__`; the workshop's lie under `fieldlm.compiler`."""
    return logging.getLogger(module.replace("fieldlm_compiler", "fieldlm.compiler", 1))


class RecentLines(logging.Handler):
    """Keeps what was logged last, each line with the time that the clock said, for `fieldlm logs`."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=MOST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(self.format(record))}")

    def last(self, lines: str) -> list[str]:
        """Return the last `lines` that were logged, oldest first; what is no number counts as all."""
        kept = list(self._lines)
        return kept[-int(lines) :] if lines.isdecimal() and int(lines) else kept


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Prints lines on stderr: bare for people, with their priority for the journal."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # a test, or who redirects it, puts another one there
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        text = visible(super().format(record))
        if not _is_journal(self.stream):
            return text
        # sd-daemon(3): each line may begin with its syslog priority.
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
RECENT = RecentLines()


def to_terminal() -> None:
    """Print what is logged from now on, and keep the last of it in RECENT; once more does nothing."""
    if RECENT not in TREE.handlers:
        TREE.setLevel(logging.INFO)
        TREE.propagate = False  # a library that calls logging.basicConfig must not print our lines once more
        TREE.addHandler(TerminalHandler())
        TREE.addHandler(RECENT)


def _is_journal(stream: TextIO) -> bool:
    """Say whether `stream` is what systemd connected to the journal; see systemd.exec(5) on JOURNAL_STREAM."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
