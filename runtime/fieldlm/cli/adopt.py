"""`fieldlm adopt`: become a device's owner, with the pairing code that its log shows."""

from collections.abc import Sequence

from fieldlm.control.remote import OWNER_KEY, add_arguments, connect
from fieldlm.core import options, terminal
from fieldlm.core.config import keys_folder
from fieldlm.core.files import read_text
from fieldlm.core.signing import load_or_create_key


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm adopt DEVICE --code CODE`."""
    parser = terminal.parser(
        "adopt", "Become the owner of a device: its log shows the pairing code.", "fieldlm adopt kiosk-7 --code 123456"
    )
    add_arguments(parser, needs_device=True)
    parser.add_argument("--code", default="", help="the pairing code; not needed by who owns the device already")
    parser.add_argument("--repository", default="", help="where it takes its updates from")
    parser.add_argument("--root", type=options.existing_file, help="root.json that vouches for that repository")
    parser.add_argument(
        "--owner",
        type=options.public_key,
        metavar="HEX",
        help="hand it on to this public key instead of one's own",
    )
    args = parser.parse_args(argv)
    root = read_text(args.root) if args.root else ""
    remote = connect(args)
    own = load_or_create_key(keys_folder(args.keys) / OWNER_KEY).public_key().public_bytes_raw().hex()
    given = {"owner": args.owner or own}
    if args.repository:
        given["repository"] = args.repository
    if root:
        given["root"] = root
    found = remote.do("adopt", given, code=args.code)
    terminal.show(found, f"{found['device']} ({found['profile']}) is yours", as_json=args.json)
    return 0
