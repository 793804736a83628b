"""Option types for argparse: a number in its range, a file or folder that is there, all before any work begins.

Each makes the `type=` of `add_argument`. What is refused is one line that names the option, the value and what is
wanted. Bounds that more than one place needs stand here, too.
"""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

THREADS = (1, 512)
"""What llama.cpp was built for; one more is an abort (GGML_MAX_N_THREADS in ggml.h)."""
CONTEXT = (128, 1_048_576)
"""Tokens."""
PARALLEL = (1, 64)
BATCH = (1, 65536)
"""Tokens of prompts in one step."""
SEED = (0, 2**64 - 1)
PORT = (0, 65535)
"""0 is any that is free."""
MANY = 2**31 - 1


def whole(least: int, most: int = MANY, *, zero: bool = False) -> Callable[[str], int]:
    """Make the type of a whole number from `least` to `most`; `zero` may be given, too."""

    def read(text: str) -> int:
        try:
            value = int(text) if len(text) <= 20 else most + 1
        except ValueError:
            value = most + 1
        if least <= value <= most or (zero and value == 0):
            return value
        raise ArgumentTypeError(f"{text!r}; want a whole number, {least}–{most}{', or 0' if zero else ''}")

    return read


def real(least: float, most: float = 1e12, *, above: bool = False) -> Callable[[str], float]:
    """Make the type of a number from `least` to `most`; with `above` it is more than `least`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if least <= value <= most and not (above and value == least):
            return value
        wanted = f"more than {least:g}, at most {most:g}" if above else f"{least:g}–{most:g}"
        raise ArgumentTypeError(f"{text!r}; want a number, {wanted}")

    return read


def existing_file(text: str) -> Path:
    """Return the path of a file that is there and can be read."""
    return _there(text, Path.is_file, "file")


def existing_folder(text: str) -> Path:
    return _there(text, Path.is_dir, "folder")


def existing(text: str) -> Path:
    """Return the path of a file or folder that is there."""
    return _there(text, Path.exists, "file or folder")


def new_folder(text: str) -> Path:
    """Return the path of a folder to write: it, or the nearest that is there above it, must be a folder."""
    path = Path(text)
    if "://" in text:
        raise ArgumentTypeError(f"{text!r} is a URL; want a folder on this machine")
    try:
        above = next(each for each in (path, *path.absolute().parents) if each.exists())
    except OSError as error:
        raise ArgumentTypeError(f"{text!r}: {error.strerror}") from error
    if not above.is_dir():
        raise ArgumentTypeError(f"{text!r}: {above} is no folder; name another place")
    return path


def new_file(text: str) -> Path:
    """Return the path of a file to write: no folder, and what is there above it must be a folder."""
    path = Path(text)
    new_folder(str(path.parent) if "://" not in text else text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text!r} is a folder; want a file to write")
    return path


def public_key(text: str) -> str:
    """Return the 64 hex digits of an Ed25519 public key, in small letters."""
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise ArgumentTypeError(f"{text!r}; want a public key, 64 hex digits")
    return text.lower()


def _there(text: str, is_right: Callable[[Path], bool], wanted: str) -> Path:
    path = Path(text)
    try:
        if is_right(path):
            if path.is_file():
                path.open("rb").close()
            return path
        is_there = path.exists()
    except OSError as error:
        raise ArgumentTypeError(f"{text!r}: {error.strerror}") from error
    raise ArgumentTypeError(f"{text!r} {'is no ' + wanted if is_there else 'does not exist'}")
