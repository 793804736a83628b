"""`fieldlm logs`: what a device logged last."""

from collections.abc import Sequence

from fieldlm.control.remote import add_arguments, connect
from fieldlm.core import options, terminal


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm logs`."""
    parser = terminal.parser(
        "logs",
        "Show what a device logged last. No prompt and no answer is ever in it.",
        "fieldlm logs",
        "fieldlm logs kiosk-7 --lines 200",
    )
    add_arguments(parser)
    parser.add_argument("--lines", type=options.whole(1), default=50, help="how many lines")
    args = parser.parse_args(argv)
    lines = connect(args).do("logs", {"lines": str(args.lines)})
    terminal.show(lines, "\n".join(lines) or "nothing was logged", as_json=args.json)
    return 0
