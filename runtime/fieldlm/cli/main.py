"""The `fieldlm` command: find the subcommand among the installed entry points, load only that one, run it."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points, version

from fieldlm.core.errors import FieldlmError

GROUP = "fieldlm.commands"
COMPILER_COMMANDS = {
    "cluster", "collect", "compile", "curate", "dataset", "demo", "evaluate", "fleet", "keys", "publish",
    "release", "rollout", "tune",
}  # fmt: skip
USAGE = """\
usage: fieldlm COMMAND [ARGUMENTS]      fieldlm COMMAND --help says more

  make       compile  verify  publish  release  keys
  serve      serve  run  chat  ps  doctor
  devices    detect  profiles  bench  devices  update  slots  adopt  rollback  logs  rollout
  learn      broker  collect  fleet  curate  cluster  dataset  tune  evaluate
  settings   config
  story      demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code: 0 done, 1 the answer is no, 2 wrong use or input."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"fieldlm {version('fieldlm')}")
        return 0
    try:
        return _command(args[0])(args[1:])
    except FieldlmError as error:
        print(f"fieldlm {args[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"fieldlm {args[0]}: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; point stdout elsewhere so that the interpreter's last flush is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command(name: str) -> Callable[[Sequence[str]], int]:
    points = entry_points(group=GROUP, name=name)
    if points:
        return next(iter(points)).load()
    if name in COMPILER_COMMANDS:
        raise FieldlmError(f"'{name}' comes with the compiler half; run: pip install fieldlm-compiler")
    known = ", ".join(sorted({point.name for point in entry_points(group=GROUP)}))
    raise FieldlmError(f"there is no command '{name}'; commands: {known}")
