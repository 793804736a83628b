"""`fieldlm adopt`: become a device's owner, with the pairing code that its log shows."""

from collections.abc import Sequence
from pathlib import Path

from fieldlm.control.remote import OWNER_KEY, add_arguments, connect
from fieldlm.core import terminal
from fieldlm.core.config import keys_folder
from fieldlm.core.errors import InputError
from fieldlm.core.signing import load_or_create_key


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm adopt DEVICE --code CODE`."""
    parser = terminal.parser("adopt", "Become the owner of a device: its log shows the pairing code.")
    add_arguments(parser, needs_device=True)
    parser.add_argument("--code", default="", help="the pairing code; not needed by who owns the device already")
    parser.add_argument("--repository", default="", help="where it takes its updates from")
    parser.add_argument("--root", type=Path, help="root.json that vouches for that repository")
    parser.add_argument("--owner", default="", metavar="HEX", help="hand it on to this public key instead of one's own")
    args = parser.parse_args(argv)
    remote = connect(args)
    own = load_or_create_key(keys_folder(args.keys) / OWNER_KEY).public_key().public_bytes_raw().hex()
    given = {"owner": args.owner or own}
    if args.repository:
        given["repository"] = args.repository
    if args.root:
        given["root"] = _read_root(args.root)
    found = remote.do("adopt", given, code=args.code)
    terminal.show(found, f"{found['device']} ({found['profile']}) is yours", as_json=args.json)
    return 0


def _read_root(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
