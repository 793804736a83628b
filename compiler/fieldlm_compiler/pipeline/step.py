"""A step's own process: read the request, run the function it names, leave its JSON or the user's mistake.

`child.call` starts it, as a new interpreter or as a fork of one that has imported what takes long (`fork_server`).
"""

import ctypes
import errno
import json
import os
import signal
import sys
import traceback
from importlib import import_module
from inspect import signature
from pathlib import Path, PurePath
from typing import Any, get_type_hints

import msgspec

from fieldlm.core.errors import FieldlmError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PR_SET_PDEATHSIG = 1


def perform(request: dict[str, Any], answer: Path) -> int:
    """Run what `request` asks for and write to `answer` what came of it; returns the exit code."""
    module, name = request["target"]
    function = getattr(import_module(module), name)
    given, hints = signature(function).bind(*request["arguments"], **request["named"]), get_type_hints(function)
    for name in given.arguments.keys() & hints.keys():
        given.arguments[name] = msgspec.convert(given.arguments[name], hints[name], dec_hook=_made)
    try:
        told = {"value": function(*given.args, **given.kwargs)}
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


def _made(kind: type, value: object) -> Any:
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    raise TypeError(f"{value!r} is no {kind.__name__}")


def main(answer: Path, parent: int) -> int:
    """Be the child: read the request from stdin and run it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    return perform(json.load(sys.stdin), answer)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
