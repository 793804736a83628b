"""Shell completion: `fieldlm completion bash|zsh|fish` prints a script that completes commands, options and files.

The script holds all names itself; at the Tab key no Python runs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fieldlm.cli.main import COMMANDS, is_here, load
from fieldlm.core import options, terminal
from fieldlm.formats.profile import profile_names

SHELLS = ("bash", "zsh", "fish")
FILES = (Path, options.existing, options.existing_file, options.new_file)
FOLDERS = (options.existing_folder, options.new_folder)


def main(argv: Sequence[str]) -> int:
    """Print the script."""
    parser = terminal.parser(
        "completion",
        "Print a script that completes fieldlm's commands and options at the Tab key.",
        "fieldlm completion bash > ~/.local/share/bash-completion/completions/fieldlm",
        "fieldlm completion zsh > ~/.zfunc/_fieldlm      # a folder of your $fpath",
        "fieldlm completion fish > ~/.config/fish/completions/fieldlm.fish",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read it")
    args = parser.parse_args(argv)
    import shtab

    text = shtab.complete(_everything(), args.shell)
    terminal.show({"shell": args.shell, "script": text}, text, as_json=args.json)
    return 0


def _everything() -> argparse.ArgumentParser:
    """Return one parser of all commands that are installed, with what each argument is completed by."""
    import shtab

    root = argparse.ArgumentParser(prog="fieldlm")
    root.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    for name, (module, text) in COMMANDS.items():
        if not is_here(module):
            continue
        parser = terminal.parser_of(load(name))
        made = commands.add_parser(name, help=text, parents=[parser], add_help=False)
        for action in made._actions:  # pyright: ignore[reportPrivateUsage] - shtab reads them, too
            if action.dest == "profile":
                action.choices = profile_names()
            elif action.type in FILES or action.metavar == "MODEL":
                action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
            elif action.type in FOLDERS:
                action.complete = shtab.DIRECTORY  # pyright: ignore[reportAttributeAccessIssue]
    return root
