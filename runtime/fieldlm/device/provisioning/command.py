"""`fieldlm provision`: take a device's name, network, settings and keys from one file, once."""

from collections.abc import Sequence
from pathlib import Path

from fieldlm.core import options, terminal
from fieldlm.core.config import config_file
from fieldlm.device.provisioning import apply
from fieldlm.device.provisioning.provision_file import read_provision, said


def main(argv: Sequence[str]) -> int:
    """Check the file, and unless `--check` is given apply it and remove it."""
    parser = terminal.parser(
        "provision",
        "Give this device its name, network, settings and keys from a file, and remove that file.",
        "fieldlm provision fieldlm.toml --check",
        "fieldlm provision /boot/firmware/fieldlm.toml",
    )
    parser.add_argument("file", type=Path, help="TOML: name, ssh_keys, [wifi], [settings], [keys]")
    parser.add_argument("--check", action="store_true", help="only say what it says, or what is wrong with it")
    parser.add_argument(
        "--root", type=options.existing_folder, default=Path("/"), metavar="DIR", help="system to write to (default: /)"
    )
    args = parser.parse_args(argv)
    if args.check:
        told = said(read_provision(args.file, config_file()))
        line = f"{args.file}: {told}"
    else:
        told = apply.provision(args.file, args.root)
        line = f"{args.file}: taken in: {told}" if told else f"{args.file}: nothing to take in"
    terminal.show({"file": str(args.file), "says": told}, line, as_json=args.json)
    return 0
