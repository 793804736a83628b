"""`fieldlm devices`: who announces itself on the local network."""

from collections.abc import Sequence

from fieldlm.core import options, terminal
from fieldlm.network.discovery import browse


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm devices`; exit code 1 when nobody answers."""
    parser = terminal.parser(
        "devices", "Find the devices on the local network.", "fieldlm devices", "fieldlm devices --timeout 10"
    )
    parser.add_argument(
        "--timeout", type=options.real(0, 3600, above=True), default=2.0, metavar="SECONDS", help="how long to listen"
    )
    args = parser.parse_args(argv)
    devices = browse(args.timeout)
    rows = [(d.name, d.profile, d.model, d.generation, d.state, d.url) for d in devices]
    header = ("device", "profile", "model", "generation", "state", "url")
    text = terminal.table(rows, header) if rows else f"no device announced itself in {args.timeout:g} s"
    terminal.show(devices, text, as_json=args.json)
    return 0 if devices else 1
