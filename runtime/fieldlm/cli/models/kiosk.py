"""`fieldlm kiosk`: check a kiosk file before it is served, and make what stands in it for an attendant's PIN."""

import sys
from collections.abc import Sequence
from pathlib import Path

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.formats.kiosk import load_kiosk
from fieldlm.network.pin import digest_pin


def main(argv: Sequence[str]) -> int:
    """Check the file; with --pin ask for a PIN instead, and print the line that stands for it."""
    parser = terminal.parser(
        "kiosk",
        "Check what makes the page a kiosk's: title, logo, colours, languages, PIN.",
        "fieldlm kiosk kiosk.toml",
        "fieldlm kiosk --pin",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a kiosk file, as the setting `kiosk` names it")
    parser.add_argument("--pin", action="store_true", help="ask for a PIN, and print the line for the file's top")
    args = parser.parse_args(argv)
    if args.pin == bool(args.file):
        raise InputError("give a FILE to check, or --pin alone to make the line of a PIN")
    if args.pin:
        line = f'pin = "{digest_pin(_asked())}"'
        terminal.show({"pin": line.split('"')[1]}, line, as_json=args.json)
        return 0
    kiosk = load_kiosk(Path(args.file))
    missing = {tag: names for tag, names in kiosk.missing().items() if names and tag != "en"}
    document = {
        "title": kiosk.title,
        "languages": sorted(kiosk.languages),
        "missing": missing,
        "logo": kiosk.logo[0] if kiosk.logo else None,
        "pin": bool(kiosk.pin),
    }
    said = [f"{args.file} is a kiosk file; languages: {', '.join(sorted({'en', *kiosk.languages}))}"]
    said += [f"{tag} has no {', '.join(names)}: said in English" for tag, names in missing.items()]
    terminal.show(document, "\n".join(said), as_json=args.json)
    return 0


def _asked() -> str:
    """Return the PIN: typed twice and unseen, or the first line of what is piped in."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    from getpass import getpass

    pin = getpass("PIN: ")
    if getpass("again: ") != pin:
        raise InputError("the two are not the same; nothing was made")
    return pin
