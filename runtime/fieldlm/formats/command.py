"""Remote commands on the wire, what an owner tells a device to do: signed, for one device, once, and within minutes.

    owner → device   Question   {"question": ID}
    device → owner   Answer     {"id": ID, "ok": true, "data": {"nonce": …, "owner": …}}
    owner → device   Envelope   {"command": "{…}", "signature": {…}}
    device → owner   Answer

The nonce is the device's own, good for one command and a short while by its own monotonic clock, so that no command can
be played again or come late, whatever the clocks on the wall say. The same messages go over HTTP and MQTT.
"""

import hashlib
import hmac
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.files import canonical_json
from fieldlm.core.signing import Signature, check_signature, sign
from fieldlm.formats.growth import Growing, check_understood
from fieldlm.formats.record import WireError

Verb = Literal["adopt", "status", "update", "slots", "rollback", "logs"]
MAX_BYTES = 64 << 10
PATH = "/v1/fieldlm/command"
"""Where a device takes them over HTTP."""
LOCAL_KEY = "local.pem"
"""In the state folder: who can read it may command the device."""
Id = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9]{1,64}$")]
"""What can be a level of a topic."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a nonce; the answer carries the same `question` as its id."""

    question: Id


class Command(Growing, frozen=True, kw_only=True):
    """What to do. `id` names the answer."""

    v: int = 1
    id: Id
    device: str
    nonce: str
    do: Verb
    args: dict[str, str] = msgspec.field(default_factory=dict[str, str])


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A command as the bytes that were signed, and the signature."""

    command: str
    signature: Signature


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it came out: `reason` is a word for programs when it is not `ok`, `data` a document when it is."""

    id: str
    ok: bool
    reason: str = ""
    detail: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


def seal(command: Command, key: Ed25519PrivateKey) -> bytes:
    """Return the signed command as it travels."""
    data = canonical_json(command)
    return msgspec.json.encode(Envelope(command=data.decode(), signature=sign(data, key)))


def parse(message: bytes) -> Question | tuple[Command, Envelope]:
    """Read what came from anywhere; raises WireError. Nothing is checked yet but the form."""
    if len(message) > MAX_BYTES:
        raise WireError(f"a command of {len(message)} bytes; the limit is {MAX_BYTES}")
    try:
        if b'"question"' in message[:16]:
            return msgspec.json.decode(message, type=Question)
        envelope = msgspec.json.decode(message, type=Envelope)
        command = msgspec.json.decode(envelope.command, type=Command)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a command: {error}") from error
    if command.v != 1:
        raise WireError(f"a command of version {command.v}, known: 1")
    check_understood(command, what="the command", error=WireError)
    return command, envelope


def check(envelope: Envelope, *, trusted: frozenset[str]) -> None:
    """Raise TrustError unless the command is signed by one of the `trusted` key ids; empty trusts any."""
    check_signature(envelope.command.encode(), envelope.signature, trusted=trusted, what="the command")


def proof(code: str, nonce: str, public: str) -> str:
    """Return what shows that one knows a device's pairing code without saying it."""
    plain = code.replace("-", "").upper()
    return hmac.new(plain.encode(), f"{nonce}\0{public}".encode(), hashlib.sha256).hexdigest()
