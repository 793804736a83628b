"""The `fieldlm` command: a table of subcommands, one line each; the one that is asked for is imported and run.

With `--json` whatever fails is a document, too, on stdout: {"error": {"kind", "message", "exit_code"}}. The line for
people stands on stderr with and without it.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from fieldlm.core.errors import FieldlmError, InputError, MissingDependencyError

WORKSHOP = "fieldlm_compiler"


# Group → subcommand → the module whose `main(argv)` returns the exit code, and what it does.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "make": {
        "compile": ("fieldlm_compiler.compile.build", "make a signed bundle for one kind of device out of a model"),
        "explain": ("fieldlm_compiler.compile.explain", "write a page on how a bundle's types were chosen"),
        "unpack": ("fieldlm_compiler.compile.unpack", "write a model, or a bundle's base, as a folder to tune"),
        "verify": ("fieldlm.cli.verify", "check a bundle's bytes, signature and answers"),
        "bench": ("fieldlm.cli.bench", "measure how fast a model is on this machine"),
        "publish": ("fieldlm_compiler.repository.publish", "offer a bundle to the devices of its profile"),
        "release": ("fieldlm_compiler.repository.offers", "show, widen, pause or pull what a repository offers"),
        "keys": ("fieldlm_compiler.repository.keys", "make, rotate and revoke a publisher's keys"),
    },
    "serve": {
        "serve": ("fieldlm.device.serve", "serve a model on this device: API, telemetry, updates"),
        "run": ("fieldlm.cli.run", "answer one prompt, in this process"),
        "chat": ("fieldlm.cli.chat", "converse with a model or a running server"),
        "pull": ("fieldlm.cli.models.pull", "fetch a model by its name"),
        "list": ("fieldlm.cli.models.list", "list the models that can be run by name"),
        "rm": ("fieldlm.cli.models.rm", "remove fetched models"),
        "ps": ("fieldlm.cli.ps", "show what a running server serves"),
        "ledger": ("fieldlm.cli.models.ledger", "show who answered, the small or the large model, and what it cost"),
        "kiosk": ("fieldlm.cli.models.kiosk", "check what makes the page a kiosk's; make the line of a PIN"),
        "doctor": ("fieldlm.cli.doctor", "say what is wrong with this device, and what to do"),
        "config": ("fieldlm.cli.config", "show every setting and where it comes from"),
    },
    "devices": {
        "detect": ("fieldlm.cli.detect", "name the profile that fits this machine"),
        "provision": ("fieldlm.device.provisioning.command", "give this device its name, network and keys from a file"),
        "profiles": ("fieldlm.cli.profiles", "list the device profiles, show one, or check it"),
        "devices": ("fieldlm.cli.devices", "find the devices on the local network"),
        "adopt": ("fieldlm.cli.adopt", "become the owner of a device"),
        "update": ("fieldlm.cli.update", "let a device take the newest release"),
        "slots": ("fieldlm.cli.slots", "show which generations a device holds"),
        "rollback": ("fieldlm.cli.rollback", "let a device go back to the generation before"),
        "logs": ("fieldlm.cli.logs", "show what a device logged last"),
    },
    "fleet": {
        "fleet": ("fieldlm_compiler.fleet.command", "show what all devices are doing"),
        "rollout": ("fieldlm_compiler.fleet.rollout", "bring a release to a fleet in waves"),
        "policy": ("fieldlm.cli.policy", "sign what a fleet's devices may tell"),
        "broker": ("fieldlm.cli.broker", "run an MQTT broker for a bench or one site"),
    },
    "learn": {
        "collect": ("fieldlm_compiler.collect.collect", "fill a store with a fleet's records"),
        "curate": ("fieldlm_compiler.learn.curate", "make examples of records: join, drop, dedupe, split"),
        "cluster": ("fieldlm_compiler.learn.cluster", "find the recurring tasks in examples"),
        "tasks": ("fieldlm_compiler.rounds.task_command", "look at the tasks; rename, merge, split, leave out"),
        "dataset": ("fieldlm_compiler.learn.dataset", "turn examples into a dataset"),
        "tainted": ("fieldlm_compiler.learn.tainted", "list, or rebuild, what was made of forgotten people's words"),
        "tune": ("fieldlm_compiler.learn.tune", "fine-tune a checkpoint; writes a LoRA adapter"),
        "evaluate": ("fieldlm_compiler.learn.evaluate", "ask a server a dataset's questions and count right answers"),
        "round": ("fieldlm_compiler.rounds.command", "make the next generation of what came home, if it is better"),
        "rounds": ("fieldlm_compiler.rounds.overview", "list the rounds, and say whether the next one is due"),
        "demo": ("fieldlm_compiler.demo.command", "run the whole circle once, on this machine"),
    },
    "about": {
        "version": ("fieldlm.cli.about.version", "print the version of fieldlm and of Python"),
        "completion": ("fieldlm.cli.about.completion", "print a script for the Tab key: bash, zsh, fish"),
    },
}
RESUMED = ("compile", "pull", "round", "tune", "update")
"""Commands that go on where they were stopped."""
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: Sequence[str] | None = None, *, on_loaded: Callable[[], object] = lambda: None) -> int:
    """Run one subcommand and return the exit code: 0 done, 1 the answer is no, 2 wrong use or input, 75 no answer now.

    `on_loaded` is called when its modules are imported and its work begins.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"fieldlm {version('fieldlm')}")
        return 0
    from fieldlm.core import logs
    from fieldlm.core.imports import no_garbage
    from fieldlm.hardware.processor import check_least

    logs.to_terminal()
    try:
        check_least()
        with no_garbage():
            command = load(args[0])
        on_loaded()
        return command(args[1:])
    except FieldlmError as error:
        return _fail(args, type(error).__name__, str(error), error.exit_code)
    except BrokenPipeError:
        # The reader (head, less) has gone; point stdout elsewhere so that the interpreter's last flush is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Exception) as error:
        if not _is_interrupt(error):
            raise
        return _fail(args, "Interrupted", stopped(args[0]), 130)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether `error` is Ctrl-C, or what failed while that was handled, as argparse's intermixed parser does."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__context__))


def stopped(command: str) -> str:
    """Return what is said of a command that Ctrl-C ended."""
    return "stopped; run the same command again to go on" if command in RESUMED else "stopped"


def usage() -> str:
    """Return the list of all commands; imports none of them."""
    lines = ["usage: fieldlm COMMAND [ARGUMENTS]      fieldlm COMMAND --help says more"]
    for group, commands in GROUPS.items():
        lines += ["", group]
        lines += [f"  {name:<10}{' ' if is_here(module) else '*'} {text}" for name, (module, text) in commands.items()]
    if not is_here(WORKSHOP):
        lines += [
            "",
            "* comes with the workshop half; in a checkout: make setup, or pip install ./compiler",
        ]
    return "\n".join(lines) + "\n"


def load(name: str) -> Callable[[Sequence[str]], int]:
    """Return the subcommand's `main`; raises InputError for an unknown one, MissingDependencyError without its half."""
    if name not in COMMANDS:
        from fieldlm.core.terminal import did_you_mean

        near = did_you_mean(name, COMMANDS)
        raise InputError(f"there is no command '{name}'{near or ';'} see: fieldlm --help")
    module, _ = COMMANDS[name]
    if not is_here(module):
        raise MissingDependencyError(
            f"'{name}' comes with the workshop half; in a checkout: make setup, or pip install ./compiler"
        )
    return import_module(module).main


@cache
def is_here(module: str) -> bool:
    """Whether the half that `module` belongs to is installed."""
    return find_spec(module.partition(".")[0]) is not None


def _fail(args: Sequence[str], kind: str, message: str, exit_code: int) -> int:
    from fieldlm.core import terminal
    from fieldlm.core.urls import shown_in
    from fieldlm.core.wording import visible

    # What a foreign library says may have several lines, and a password in a URL that it was given.
    message = shown_in(" ".join(line.strip() for line in message.splitlines() if line.strip()))
    if "--json" in args:
        terminal.show({"error": {"kind": kind, "message": message, "exit_code": exit_code}}, "", as_json=True)
    print(visible(f"fieldlm {args[0]}: {message}"), file=sys.stderr)
    return exit_code
