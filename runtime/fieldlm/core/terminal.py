"""Terminal output: results on stdout, progress on stderr.

Every command takes `--json`, which prints one JSON document on stdout and nothing else there; an error is one, too.
"""

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json
from fieldlm.core.tasks import PROCESS
from fieldlm.core.urls import shown
from fieldlm.core.wording import visible

EXAMPLES = "examples:"
TICK_S = 1.0


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says an option's default where there is one to say: no "(default: None)"; examples stand as they were written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(EXAMPLES):
            return text
        return super()._fill_text(text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_said = action.default not in (None, "", False, argparse.SUPPRESS) and action.default != []
        return super()._get_help_string(action) if is_said else action.help


_REQUIRED = "the following arguments are required: "


class _MissingError(InputError):
    """Carries the names of what is required and was not given."""

    def __init__(self, names: str) -> None:
        super().__init__(names)
        self.names = names.split(", ")


class Parser(argparse.ArgumentParser):
    """Raises InputError where argparse would print its usage and exit: one line, or one document with --json."""

    _is_probing = False

    def error(self, message: str) -> NoReturn:
        if self._is_probing and message.startswith(_REQUIRED):
            raise _MissingError(message.removeprefix(_REQUIRED))
        # It repeats what was typed, a URL with a password perhaps.
        told = " ".join(shown(word) if "://" in word else word for word in message.split(" "))
        raise InputError(f"{told}{self._meant(message)}; see: {self.prog} --help")

    def _meant(self, message: str) -> str:
        """Return which flag was meant where one is not known."""
        _, is_unknown, given = message.partition("unrecognized arguments: ")
        flags = [word.partition("=")[0] for word in given.split() if is_unknown and word.startswith("-")]
        return "".join(did_you_mean(flag, self._option_string_actions) for flag in flags[:1])

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Options may stand before, between and behind the other arguments; all that is missing is said at once."""
        self._is_probing = True
        try:
            return self.parse_intermixed_args(*args, **kwargs)
        except _MissingError as missing:
            names = [*missing.names, *self._missing_beside(missing.names, *args, **kwargs)]
        finally:
            self._is_probing = False
        return self.error(_REQUIRED + ", ".join(map(self._with_choices, names)))

    def _missing_beside(self, names: Sequence[str], *args: Any, **kwargs: Any) -> list[str]:
        """Return what else is missing: argparse looks at options first, and at other arguments only then."""
        options = [each for each in self._actions if each.required and each.option_strings]
        for each in options:
            each.required = False
        try:
            self.parse_intermixed_args(*args, **kwargs)
        except _MissingError as missing:
            return [name for name in missing.names if name not in names]
        except InputError:
            pass  # what else is wrong is told when nothing is missing
        finally:
            for each in options:
                each.required = True
        return []

    def _with_choices(self, name: str) -> str:
        """Return an argument's name, and what it may be where that is one of a few words."""
        for each in self._actions:
            if each.choices and not each.metavar and name in (each.dest, "/".join(each.option_strings)):
                return f"{name} (one of {' '.join(map(str, each.choices))})"
        return name

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        if _only_built.get():
            raise _Built(self)
        return super().parse_known_args(*args, **kwargs)


_only_built: ContextVar[bool] = ContextVar("only_built", default=False)


class _Built(Exception):
    """Carries a parser out of a command that was asked for nothing else."""

    def __init__(self, made: Parser) -> None:
        self.made = made


def parser_of(command: Callable[[Sequence[str]], int]) -> Parser:
    """Return the parser of a command's `main`, which gets no further than that: for completion and its like."""
    token = _only_built.set(True)
    try:
        command([])
    except _Built as built:
        return built.made
    finally:
        _only_built.reset(token)
    raise AssertionError(f"{command} parses nothing")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the nearest of `known`, or nothing."""
    from difflib import get_close_matches

    return "".join(f", did you mean '{near}'?" for near in get_close_matches(word, known, 1))


def parser(command: str, description: str, *examples: str) -> Parser:
    """Make the argument parser of `fieldlm COMMAND`, with `--json` already in it; `examples` end its help.

    A flag is written in full: an abbreviation would mean something else when a flag is added.
    """
    made = Parser(
        prog=f"fieldlm {command}",
        description=description,
        epilog="\n".join([EXAMPLES, *(f"  {each}" for each in examples)]) if examples else None,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    made.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return made


def show(document: Any, text: str, *, as_json: bool) -> None:
    """Print `document` as JSON or `text` for people."""
    sys.stdout.write(canonical_json(document).decode() if as_json else visible(text.rstrip("\n")) + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Lay out `rows` under `header`; columns that hold only numbers are aligned to the right."""
    cells = [[visible(str(cell), keep="") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["─" * w for w in widths]), *(line(row) for row in cells)])


def _is_number(text: str) -> bool:
    return (
        text in ("", "–")
        or text.replace(",", "").lstrip("+-−").split(" ")[0].rstrip("%×").replace(".", "", 1).isdigit()
    )


class Progress:
    """One line on stderr that says what runs, how far it is and how long the rest will take.

    On a terminal the line is redrawn in place, each second; elsewhere a line is written at the start of each step,
    every 15 seconds and at its end, so that a log stays readable. What runs need not say anything meanwhile.
    """

    def __init__(self, name: str, total: int | None = None) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.has_failed = False
        """Whether what ran ended, and not as it should: said by who knows it, before the block ends."""
        self.note = self.unit = ""
        self.begun = 0
        """How much of it an earlier run did: this one's pace says nothing of that."""
        self.started_s = time.monotonic()
        self.is_tty = sys.stderr.isatty()
        self._drawn_s = 0.0 if sys.stderr.isatty() else self.started_s
        self._drawing = threading.Lock()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of `total` is behind us; `note` stands at the end of the line."""
        self.done, self.note = done, note
        self.tick(0.1)

    def tick(self, least_s: float) -> None:
        """Draw the line again, unless it was drawn less than `least_s`, or in a log 15 seconds, ago."""
        now = time.monotonic()
        with self._drawing:
            if now - self._drawn_s < (least_s if self.is_tty else 15.0):
                return
            self._drawn_s = now
            if self.is_tty:
                self.draw(self._line(now))
            else:
                print(self._line(now).rstrip(), file=sys.stderr, flush=True)

    def advance(self, note: str = "") -> None:
        self.update(self.done + 1, note)

    def show_bytes(self, done: int, total: int) -> None:
        """Say that `done` of `total` bytes are here, in megabytes (1e6 bytes)."""
        self.total, self.unit = max(1, -(-total // 1_000_000)), " MB"
        self.update(done // 1_000_000)

    def _line(self, now: float) -> str:
        spent_s = now - self.started_s
        if not self.total:
            return f"  {self.name} … {spent_s:.0f} s {self.note}"
        filled = 20 * self.done // self.total
        own = self.done - self.begun
        rest = f", {spent_s / own * (self.total - self.done):.0f} s left" if own > 0 else ""
        return (
            f"  {self.name} {'━' * filled}{'─' * (20 - filled)} {self.done}/{self.total}{self.unit}{rest} {self.note}"
        )

    def draw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns
        sys.stderr.write("\r\x1b[K" + line[: width - 1])
        sys.stderr.flush()


def _tick(line: Progress, is_over: threading.Event) -> None:
    while not is_over.wait(TICK_S):
        line.tick(TICK_S)


@contextmanager
def progress(name: str, total: int | None = None) -> Generator[Progress]:
    """Show that `name` runs until the block ends; the last line says how long it took."""
    line = Progress(name, total)
    if line.is_tty:
        line.update(0)
    else:
        print(f"  {name} …", file=sys.stderr, flush=True)
    is_over = threading.Event()
    clock = PROCESS.start("progress", lambda: _tick(line, is_over))
    outcome = "stopped"
    try:
        yield line
        outcome = "failed" if line.has_failed else "done"
    finally:
        is_over.set()
        clock.join()
        spent = f"{time.monotonic() - line.started_s:.1f} s"
        mark = {"done": "✓", "failed": "✗", "stopped": "✗"}[outcome]
        text = f"  {mark} {name}  {spent}  {line.note}".rstrip()
        if line.is_tty:
            line.draw(text)
            sys.stderr.write("\n")
        else:
            print(text, file=sys.stderr, flush=True)
