"""Remote control: tell a device what to do, from elsewhere: over its HTTP API on the LAN, or through a broker.

A device is named by its URL, by the name it announces on the network, or, with `--broker`, by its id.
"""

import argparse
import queue
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.config import Config, load_config
from fieldlm.core.errors import FieldlmError, InputError, TrustError, UnavailableError
from fieldlm.core.signing import load_or_create_key
from fieldlm.core.urls import shown
from fieldlm.formats import command as wire
from fieldlm.formats import topics
from fieldlm.formats.command import Command, CommandResult, Verb
from fieldlm.network.broker_identity import Identity, add_identity_options, identity_of, refuse_for_nothing
from fieldlm.network.http_client import HttpClient, own_server

if TYPE_CHECKING:
    from fieldlm.network.mqtt import Inbox

ANSWER_S = 60.0
ANSWER_BYTES = 1 << 20  # a thousand lines of log
COMMAND_EXPIRY_S = 120
OWNER_KEY = "owner.pem"

Post = Callable[[bytes], CommandResult]
"""Sends one message to a device and returns its answer; raises UnavailableError when none comes."""


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
        try:
            return _data(self._post(wire.seal(command, self.key)))
        except TrustError as error:
            if verb == "adopt" or "not trusted" not in str(error):
                raise
            own = f"fieldlm adopt {asked['device']} --code CODE"
            raise TrustError(
                f"{error}; its owner may command it; to become it, with the code in its log: {own}"
            ) from error


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
    add_identity_options(parser)
    parser.add_argument("--keys", help="folder of the owner's key; default: as configured")
    if has_state:
        parser.add_argument("--state", help="state folder of the device on this machine")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError for options that would do nothing."""
    if args.broker and not args.device:
        raise InputError(f"--broker {shown(args.broker)} reaches a device by its id, and none is named; name it, too")
    refuse_for_nothing(args, broker=args.broker)


def connect(args: argparse.Namespace) -> Remote:
    """Return the device that the arguments name.

    Raises UnavailableError when it is not found. Without a name it is the one on this machine, with its own key.
    """
    config = load_config({"keys": args.keys, "state": args.state})
    check_arguments(args)
    if not args.device:
        return _local(config, args.url)
    if args.broker:
        topics.parse_broker(args.broker)
        post = _over_mqtt(args.broker, args.fleet, args.device, identity_of(args, broker=args.broker))
    elif "://" in args.device or args.device.startswith("unix:"):
        post = _over_http(_client(args.device))
    else:
        post = _found(args.device)
    return Remote(post, load_or_create_key(config.keys / OWNER_KEY))


def _local(config: Config, url: str) -> Remote:
    path = config.state / wire.LOCAL_KEY
    if not path.is_file() and url:
        raise InputError(
            f"{config.state} holds no key of the device at {shown(url)}; give "
            "the --state that it was started with, or, as its "
            f"owner, {shown(url)} without --url"
        )
    if not path.is_file():
        raise InputError(f"{config.state} belongs to no running device; give --state, or name one of: fieldlm devices")
    client = _client(url) if url else own_server(config, key="", timeout_s=ANSWER_S)
    return Remote(_over_http(client), load_or_create_key(path))


def _found(name: str) -> Post:
    from fieldlm.network.discovery import browse

    devices = [each for each in browse() if name in (each.id, each.name)]
    if not devices:
        raise UnavailableError(
            f"no device {name!r} announces itself here; see: fieldlm devices, or give its URL or --broker"
        )
    if len(devices) > 1:
        names = ", ".join(each.name for each in devices)
        raise InputError(f"several devices call themselves {name!r}; say which: {names}")
    return _over_http(_client(devices[0].url, devices[0].fingerprint))


def _client(url: str, fingerprint: str = "") -> HttpClient:
    # Commands are signed: no key goes to somebody who only says that he is the device.
    return HttpClient(url, fingerprint=fingerprint, key="", timeout_s=ANSWER_S)


def _over_http(client: HttpClient) -> Post:
    def post(message: bytes) -> CommandResult:
        status, answer = client.request("POST", wire.PATH, message)
        try:
            return msgspec.json.decode(answer, type=CommandResult)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UnavailableError(
                f"{client.url} answers {status}, but is no fieldlm device of this version: {error}"
            ) from error

    return post


def _over_mqtt(broker: str, fleet: str, device: str, identity: Identity) -> Post:
    from fieldlm.network.mqtt import Inbox, Link

    def post(message: bytes) -> CommandResult:
        inbox: Inbox = queue.SimpleQueue()
        client = f"fieldlm-owner-{secrets.token_hex(4)}"
        with Link(
            broker, client_id=client, session_expiry_s=0, inbox=inbox, most_bytes=ANSWER_BYTES, identity=identity
        ) as link:
            link.subscribe([topics.up(fleet, device, "res/+")])
            link.publish(topics.command_topic(fleet, device), message, expiry_s=COMMAND_EXPIRY_S)
            return _await(inbox, _name(message), f"{device} on {topics.parse_broker(broker)}")

    return post


def _await(inbox: "Inbox", name: str, what: str) -> CommandResult:
    from fieldlm.network.mqtt import Closed

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
