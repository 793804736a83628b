"""The MQTT wire: who publishes what where, and the small JSON messages beside the blocks.

    fieldlm/1/{fleet}/{shard}/{device}/t/{stream}   up    block of records, QoS 1
    fieldlm/1/{fleet}/{shard}/{device}/hello        up    Hello: what the device still holds
    fieldlm/1/{fleet}/{shard}/{device}/state        up    presence, retained; the last will says "lost"
    fieldlm/1/{fleet}/{shard}/{device}/res/{id}     up    a command's result
    fieldlm/1/{fleet}/{device}/d/ack                down  Ack: what the collector has committed
    fieldlm/1/{fleet}/{device}/d/cmd                down  a command, with a short expiry
    fieldlm/1/{fleet}/p/{profile}/release           down  the newest release of a profile, retained
    fieldlm/1/{fleet}/policy                        down  what the fleet's devices may tell, signed, retained

The shard stands in the topic so that several collectors can split a fleet on any broker with plain subscriptions.
A PUBACK says that a broker has the bytes in its memory; only an Ack says that they are stored.
"""

import re
import zlib
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.urls import shown
from fieldlm.formats.growth import Growing, check_understood
from fieldlm.formats.record import STREAMS, WireError

ROOT = "fieldlm/1"
SHARDS = 256
CONTENT_TYPE = "application/vnd.fieldlm.block+zstd"
MAX_MESSAGE_BYTES = 16 << 10
MAX_STATE_BYTES = 4 << 10
MAX_SEQ = 1 << 48
"""A thousand records a second take nine thousand years to get there: what claims more is made up."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a broker is, from a URL like mqtt://user:password@host:1883 or mqtts://host."""

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Hello(Growing, frozen=True, kw_only=True):
    """A device says, per stream, the first seq it still holds and the last it has given out.

    It has nothing before `first` and never will; `nonce` comes back in the Ack.
    """

    v: int = 1
    device: str
    epoch: int
    first: dict[str, int]
    last: dict[str, int]
    nonce: str = ""


class Ack(Growing, frozen=True, kw_only=True):
    """The collector has committed every seq up to `upto[stream]`: the device may delete them."""

    v: int = 1
    epoch: int
    upto: dict[str, int]
    nonce: str = ""


Message = TypeVar("Message", Hello, Ack)


class TopicSource(msgspec.Struct, frozen=True, kw_only=True):
    """What the topic of an upward message says: who sent it, and which part ("t/gen", "hello", "state") it is."""

    fleet: str
    device: str
    part: str

    @property
    def stream(self) -> str:
        """The stream of a block, or an empty string."""
        return self.part[2:] if self.part.startswith("t/") else ""


def parse_broker(url: str) -> Address:
    """Read a broker's URL; raises InputError, which never repeats a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        hint = "write mqtt://HOST:PORT, and in a password %2F for / and %40 for @"
        raise InputError(f"the broker's URL {shown(url)!r} cannot be read; {hint}") from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
        raise InputError(
            f"{parts.scheme}://{parts.hostname or ''} is no broker; write mqtt://HOST:PORT or mqtts://HOST"
        )
    tls = parts.scheme == "mqtts"
    return Address(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        tls=tls,
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )


def check_name(name: str, what: str) -> str:
    """Return `name` if it may stand in a topic, else raise InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{what} {name[:80]!r} cannot stand in a topic; use 1 to 64 of A–Z a–z 0–9 . _ -")
    return name


def shard(device: str) -> int:
    return zlib.crc32(device.encode()) % SHARDS


def up(fleet: str, device: str, part: str) -> str:
    """Return the topic on which `device` publishes `part`."""
    return f"{ROOT}/{check_name(fleet, 'fleet')}/{shard(device)}/{check_name(device, 'device')}/{part}"


def block_topic(fleet: str, device: str, stream: str) -> str:
    return up(fleet, device, f"t/{stream}")


def hello_topic(fleet: str, device: str) -> str:
    return up(fleet, device, "hello")


def state_topic(fleet: str, device: str) -> str:
    return up(fleet, device, "state")


def ack_topic(fleet: str, device: str) -> str:
    return f"{ROOT}/{check_name(fleet, 'fleet')}/{check_name(device, 'device')}/d/ack"


def command_topic(fleet: str, device: str) -> str:
    return f"{ROOT}/{check_name(fleet, 'fleet')}/{check_name(device, 'device')}/d/cmd"


def release_topic(fleet: str, profile: str) -> str:
    return f"{ROOT}/{check_name(fleet, 'fleet')}/p/{check_name(profile, 'profile')}/release"


def policy_topic(fleet: str) -> str:
    return f"{ROOT}/{check_name(fleet, 'fleet')}/policy"


def collector_filters(fleet: str, shards: range) -> list[str]:
    """Return the subscriptions of a collector that owns `shards`."""
    owned = ["+"] if len(shards) == SHARDS else [str(number) for number in shards]
    parts = ("t/+", "hello", "state")
    return [f"{ROOT}/{check_name(fleet, 'fleet')}/{number}/+/{part}" for number in owned for part in parts]


def parse_up(topic: str) -> TopicSource:
    """Read an upward topic; raises WireError when it is none or names a shard that is not its device's."""
    pieces = topic.split("/", 5)
    if len(pieces) != 6 or "/".join(pieces[:2]) != ROOT:
        raise WireError(f"not a device's topic: {topic[:120]!r}")
    _, _, fleet, number, device, part = pieces
    if not _NAME.fullmatch(fleet) or not _NAME.fullmatch(device):
        raise WireError(f"not a device's topic: {topic[:120]!r}")
    if number != str(shard(device)):
        raise WireError(f"{device} belongs to shard {shard(device)}, its message came on shard {number[:8]!r}")
    return TopicSource(fleet=fleet, device=device, part=part)


def parse_hello(message: bytes) -> Hello:
    """Read a Hello, without the streams that this version does not know; raises WireError."""
    hello = _parse(message, Hello)
    first, last = ({s: seq for s, seq in part.items() if s in STREAMS} for part in (hello.first, hello.last))
    spans = ((seq, last.get(stream, seq - 1)) for stream, seq in first.items())
    if not 0 <= hello.epoch < 1 << 63 or not all(1 <= a <= b + 1 <= MAX_SEQ for a, b in spans):
        raise WireError(f"impossible hello of {hello.device[:80]!r}")
    return msgspec.structs.replace(hello, first=first, last=last)


def parse_state(message: bytes) -> str:
    """Return a presence as JSON text; raises WireError for what is no object, or a long one."""
    if len(message) > MAX_STATE_BYTES:
        raise WireError(f"a presence of {len(message)} bytes; the limit is {MAX_STATE_BYTES}")
    try:
        made = msgspec.json.decode(message, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a presence: {error}") from error
    return msgspec.json.encode(made).decode()


def parse_ack(message: bytes) -> Ack:
    """Read an Ack; raises WireError."""
    ack = _parse(message, Ack)
    if not 0 <= ack.epoch < 1 << 63 or any(not 0 <= seq < 1 << 63 for seq in ack.upto.values()):
        raise WireError("impossible acknowledgement: a number does not fit in 63 bits")
    return ack


def _parse(message: bytes, kind: type[Message]) -> Message:
    if len(message) > MAX_MESSAGE_BYTES:
        raise WireError(f"a {kind.__name__} of {len(message)} bytes; the limit is {MAX_MESSAGE_BYTES}")
    try:
        made = msgspec.json.decode(message, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a {kind.__name__}: {error}") from error
    if made.v != 1:
        raise WireError(f"{kind.__name__} of version {made.v}, known: 1")
    check_understood(made, what=f"the {kind.__name__}", error=WireError)
    return made
