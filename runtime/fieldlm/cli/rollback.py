"""`fieldlm rollback`: let a device go back to the generation before."""

from collections.abc import Sequence

from fieldlm.control.remote import add_arguments, connect
from fieldlm.core import terminal


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm rollback`."""
    parser = terminal.parser(
        "rollback",
        "Let a device go back to the generation before; not below its floor.",
        "fieldlm rollback",
        "fieldlm rollback kiosk-7",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    found = connect(args).do("rollback")
    terminal.show(found, f"back at generation {found['generation']}", as_json=args.json)
    return 0
