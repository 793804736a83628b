"""Remote control: tell a device what to do, from elsewhere: over its HTTP API on the LAN, or through a broker.

A device is named by its URL, by the name it announces on the network, or, with `--broker`, by its id.
"""

import argparse
import hashlib
import queue
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import urllib3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.control.owner_commands import LOCAL_KEY, PATH
from fieldlm.core import terminal
from fieldlm.core.config import Config, load_config
from fieldlm.core.errors import FieldlmError, InputError, TrustError, UnavailableError
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats import command as wire
from fieldlm.formats import topics
from fieldlm.formats.command import Command, CommandResult, Verb
from fieldlm.network.discovery import browse
from fieldlm.network.mqtt import Closed, Inbox, Link

ANSWER_S = 60.0
COMMAND_EXPIRY_S = 120
OWNER_KEY = "owner.pem"

Post = Callable[[bytes], CommandResult]
"""Sends one message to a device and returns its answer; raises LinkError when none comes."""


class Remote:
    """One device, and the key that commands it."""

    def __init__(self, post: Post, key: Ed25519PrivateKey) -> None:
        self._post = post
        self.key = key

    def do(self, verb: Verb, args: dict[str, str] | None = None, *, code: str = "") -> Any:
        """Have the device do it and return what it answers; raises TrustError or InputError when it does not."""
        asked = _data(self._post(msgspec.json.encode(wire.Question(question=secrets.token_hex(4)))))
        public = self.key.public_key().public_bytes_raw().hex()
        given = dict(args or {})
        if code:
            given["proof"] = wire.proof(code, asked["nonce"], public)
        command = Command(id=secrets.token_hex(8), device=asked["device"], nonce=asked["nonce"], do=verb, args=given)
        return _data(self._post(wire.seal(command, self.key)))


def _data(answer: CommandResult) -> Any:
    if not answer.ok:
        kind: type[FieldlmError] = TrustError if answer.reason == "trust" else InputError
        raise kind(answer.detail)
    return msgspec.json.decode(answer.data)


def add_arguments(parser: argparse.ArgumentParser, *, needs_device: bool = False, has_state: bool = True) -> None:
    """Add how a device is named and reached."""
    parser.add_argument(
        "device",
        nargs=None if needs_device else "?",
        default="",
        help="name, id or URL; default: the one on this machine",
    )
    parser.add_argument("--url", default="", help="where the device on this machine listens; default: as configured")
    parser.add_argument("--broker", default="", help="reach it through this broker: mqtt://HOST")
    parser.add_argument("--fleet", default="default", help="its fleet on that broker")
    parser.add_argument("--keys", help="folder of the owner's key; default: as configured")
    if has_state:
        parser.add_argument("--state", help="state folder of the device on this machine")


def connect(args: argparse.Namespace) -> Remote:
    """Return the device that the arguments name.

    Raises LinkError when it is not found. Without a name it is the one that runs on this machine, with its own key.
    """
    config = load_config({"keys": args.keys, "state": args.state})
    if not args.device:
        return _local(config, args.url)
    key = load_or_create_key(config.keys / OWNER_KEY)
    if args.broker:
        return Remote(_over_mqtt(args.broker, args.fleet, args.device), key)
    if "://" in args.device:
        return Remote(_over_http(args.device), key)
    return Remote(_found(args.device), key)


def _local(config: Config, url: str) -> Remote:
    path = config.state / LOCAL_KEY
    if not path.is_file():
        raise InputError(f"{config.state} belongs to no running device; name one, or give --state")
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::", "none") else config.host
    return Remote(_over_http(url or f"http://{host}:{config.port}"), load_or_create_key(path))


def _found(name: str) -> Post:
    devices = [each for each in browse() if name in (each.id, each.name)]
    if not devices:
        raise UnavailableError(
            f"no device {name!r} announces itself here; see: fieldlm devices, or give its URL or --broker"
        )
    if len(devices) > 1:
        names = ", ".join(each.name for each in devices)
        raise InputError(f"several devices call themselves {name!r}; say which: {names}")
    return _over_http(devices[0].url, fingerprint=devices[0].fingerprint)


def _over_http(url: str, *, fingerprint: str = "") -> Post:
    parts = urlsplit(url)
    address = f"{parts.scheme}://{parts.netloc}{PATH}"
    pool = urllib3.PoolManager(retries=False, timeout=ANSWER_S)
    if fingerprint:
        pinned = pin(parts.hostname or "", parts.port or 443, fingerprint)
        pool = urllib3.PoolManager(retries=False, timeout=ANSWER_S, assert_fingerprint=pinned, cert_reqs="CERT_NONE")

    def post(message: bytes) -> CommandResult:
        try:
            response = pool.request("POST", address, body=message, headers={"content-type": "application/json"})
            return msgspec.json.decode(response.data, type=CommandResult)
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(f"{url} does not answer: {error}") from error
        except msgspec.MsgspecError as error:
            raise UnavailableError(f"{url} answers, but is no fieldlm device of this version: {error}") from error

    return post


def pin(host: str, port: int, fingerprint: str) -> str:
    """Return the whole SHA-256 of the certificate at that address; raises TrustError when it begins otherwise."""
    try:
        pem = ssl.get_server_certificate((host, port), timeout=10)
    except OSError as error:
        raise UnavailableError(f"{host}:{port} does not answer: {error}") from error
    whole = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    if not whole.startswith(fingerprint):
        raise TrustError(f"the certificate of {host}:{port} is {whole[:16]}, the device announced {fingerprint}")
    return whole


def _over_mqtt(broker: str, fleet: str, device: str) -> Post:
    def post(message: bytes) -> CommandResult:
        inbox: Inbox = queue.SimpleQueue()
        client = f"fieldlm-owner-{secrets.token_hex(4)}"
        with Link(broker, client_id=client, session_expiry_s=0, inbox=inbox) as link:
            link.subscribe([topics.up(fleet, device, "res/+")])
            link.publish(topics.command_topic(fleet, device), message, expiry_s=COMMAND_EXPIRY_S)
            return _await(inbox, _name(message), f"{device} on {broker}")

    return post


def _await(inbox: Inbox, name: str, what: str) -> CommandResult:
    end_s = time.monotonic() + ANSWER_S
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            event = inbox.get(timeout=left_s)
        except queue.Empty:
            break
        if isinstance(event, Closed):
            raise UnavailableError(f"the broker closed the connection to {what}: {event.reason}")
        if event and event.topic.endswith(f"/res/{name}"):
            return msgspec.json.decode(event.payload, type=CommandResult)
    raise UnavailableError(f"{what} does not answer within {ANSWER_S:.0f} s")


def _name(message: bytes) -> str:
    asked = wire.parse(message)
    return asked.question if isinstance(asked, wire.Question) else asked[0].id


def adopt_main(argv: Sequence[str]) -> int:
    """Run `fieldlm adopt DEVICE --code CODE`."""
    parser = terminal.parser("adopt", "Become the owner of a device: its log shows the pairing code.")
    add_arguments(parser, needs_device=True)
    parser.add_argument("--code", default="", help="the pairing code; not needed by who owns the device already")
    parser.add_argument("--repository", default="", help="where it takes its updates from")
    parser.add_argument("--root", type=Path, help="root.json that vouches for that repository")
    parser.add_argument("--owner", default="", metavar="HEX", help="hand it on to this public key instead of one's own")
    args = parser.parse_args(argv)
    remote = connect(args)
    own = load_or_create_key(load_config({"keys": args.keys}).keys / OWNER_KEY).public_key().public_bytes_raw().hex()
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


def rollback_main(argv: Sequence[str]) -> int:
    """Run `fieldlm rollback`."""
    parser = terminal.parser("rollback", "Let a device go back to the generation before; not below its floor.")
    add_arguments(parser)
    args = parser.parse_args(argv)
    found = connect(args).do("rollback")
    terminal.show(found, f"back at generation {found['generation']}", as_json=args.json)
    return 0


def logs_main(argv: Sequence[str]) -> int:
    """Run `fieldlm logs`."""
    parser = terminal.parser("logs", "Show what a device logged last. No prompt and no answer is ever in it.")
    add_arguments(parser)
    parser.add_argument("--lines", type=int, default=50, help="how many lines")
    args = parser.parse_args(argv)
    lines = connect(args).do("logs", {"lines": str(args.lines)})
    terminal.show(lines, "\n".join(lines) or "nothing was logged", as_json=args.json)
    return 0
