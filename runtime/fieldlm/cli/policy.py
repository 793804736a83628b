"""`fieldlm policy`: sign what a fleet's devices may tell, and lay it at the broker, where each of them finds it."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.config import keys_folder
from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors, write_whole
from fieldlm.core.signing import key_id, load_or_create_key
from fieldlm.formats import topics
from fieldlm.formats.policy import Policy, sign_policy
from fieldlm.formats.record import WireError
from fieldlm.network.broker_identity import add_identity_options, identity_of
from fieldlm.network.mqtt import leave


def main(argv: Sequence[str]) -> int:
    """Sign a policy written as TOML; publish it, or write it to a file."""
    parser = terminal.parser(
        "policy",
        "Sign a fleet's policy (TOML), and publish it to its devices.",
        "fieldlm policy policy.toml --publish mqtt://broker.local",
        "fieldlm policy policy.toml --out policy.signed",
    )
    parser.add_argument(
        "policy", type=options.existing_file, help="TOML: fleet, version, telemetry, sample, patterns, daily_mb, …"
    )
    parser.add_argument("--key", type=Path, help="PEM of the signing key, made when it is not there")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--publish", metavar="URL", help="mqtt://HOST of the fleet's broker")
    where.add_argument("--out", type=options.new_file, help="file to write the signed policy to")
    add_identity_options(parser)
    args = parser.parse_args(argv)
    policy = _read(args.policy)
    if args.publish:
        topics.parse_broker(args.publish)
    identity = identity_of(args, broker=args.publish, option="--publish")
    key = load_or_create_key(args.key or keys_folder() / "policy.pem")
    try:
        message = sign_policy(policy, key)
    except WireError as error:
        raise InputError(f"{args.policy}: {error}") from error
    if args.out:
        write_whole(args.out, message)
    elif args.publish:
        leave(args.publish, topics.policy_topic(policy.fleet), message, identity=identity)
    signer = key_id(key.public_key())
    document = {"fleet": policy.fleet, "version": policy.version, "telemetry": policy.telemetry, "signer": signer}
    said = f"policy {policy.version} of fleet {policy.fleet}; devices take it with FIELDLM_POLICY_SIGNER={signer}"
    terminal.show(document, said, as_json=args.json)
    return 0


def _read(path: Path) -> Policy:
    with disk_errors(path):
        text = path.read_bytes()
    try:
        return msgspec.toml.decode(text, type=Policy)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is no policy: {error}") from error
