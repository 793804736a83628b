"""Remote commands: from this device's owner, signed, over HTTP or MQTT, or from whoever can read its state folder.

A device without an owner shows a pairing code in its log; who knows the code becomes the owner, once. The owner may
hand it on. Knowing the code is shown without saying it, and five wrong guesses make a new one.
"""

import base64
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.core.errors import FieldlmError, InputError, TrustError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.signing import key_id, load_or_create_key
from fieldlm.formats import command as wire
from fieldlm.formats.command import Command, CommandResult, Envelope, Question
from fieldlm.formats.record import WireError
from fieldlm.network.json_api import as_json, read_body

log = logger(__name__)

OWNER = "owner.json"
NONCE_S = 120.0
MOST_NONCES = 64
MOST_GUESSES = 5

Action = Callable[[dict[str, str]], Any]


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """STATE/owner.json: the raw public key, in hex, of who may command this device, and where its updates are."""

    public: str
    repository: str = ""

    @property
    def id(self) -> str:
        return key_id(Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public)))


class Commands:
    """Checks what comes and does it. Safe from any thread; an action runs in the thread that brought its command."""

    def __init__(
        self, state: Path, device: str, actions: dict[str, Action], *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.device = device
        self.code = _code()
        self._path = state / OWNER
        self._actions = actions
        self._now_s = now_s
        self._lock = threading.Lock()
        self._nonces: dict[str, float] = {}
        self._guesses = 0
        self._local = key_id(load_or_create_key(state / wire.LOCAL_KEY).public_key())
        self.owner = read_owner(state)

    def hear(self, message: bytes) -> CommandResult:
        """Answer one message, whatever is in it. Never raises."""
        name = ""
        try:
            asked = wire.parse(message)
            if isinstance(asked, Question):
                return self._nonce(asked)
            command, envelope = asked
            name = command.id
            self._check(command, envelope)
            data = self._adopt(command) if command.do == "adopt" else self._actions[command.do](command.args)
            return CommandResult(id=name, ok=True, data=msgspec.Raw(msgspec.json.encode(data)))
        except (TrustError, WireError) as error:
            reason = "trust" if isinstance(error, TrustError) else "wire"
            log.warning(f"a command was refused: {error}")
            return CommandResult(id=name, ok=False, reason=reason, detail=str(error))
        except (FieldlmError, OSError) as error:
            return CommandResult(id=name, ok=False, reason="failed", detail=str(error))

    def _nonce(self, asked: Question) -> CommandResult:
        nonce = secrets.token_hex(16)
        with self._lock:
            self._nonces[nonce] = self._now_s() + NONCE_S
            while len(self._nonces) > MOST_NONCES:
                del self._nonces[next(iter(self._nonces))]
        data = {"device": self.device, "nonce": nonce, "owner": self.owner.id if self.owner else ""}
        return CommandResult(id=asked.question, ok=True, data=msgspec.Raw(msgspec.json.encode(data)))

    def _check(self, command: Command, envelope: Envelope) -> None:
        """Raise TrustError unless this command may be done here and now; its nonce is used up then."""
        if command.device != self.device:
            raise TrustError(f"the command is for {command.device[:64]!r}, this is {self.device}")
        trusted = {self._local} | ({self.owner.id} if self.owner else set())
        is_first = command.do == "adopt" and self.owner is None
        wire.check(envelope, trusted=frozenset() if is_first else frozenset(trusted))
        with self._lock:
            end_s = self._nonces.pop(command.nonce, 0.0)
        if end_s < self._now_s():
            raise TrustError("the command came too late, or a second time; send it again")
        if is_first and envelope.signature.keyid != self._local:
            self._check_proof(command, envelope)

    def _check_proof(self, command: Command, envelope: Envelope) -> None:
        want = wire.proof(self.code, command.nonce, envelope.signature.public)
        if hmac.compare_digest(want, command.args.get("proof", "")):
            return
        self._guesses += 1
        if self._guesses >= MOST_GUESSES:
            self._guesses, self.code = 0, _code()
            log.warning(f"too many wrong pairing codes; the new one is {self.code}")
        raise TrustError("that is not this device's pairing code; its log shows it")

    def _adopt(self, command: Command) -> Any:
        repository = command.args.get("repository") or (self.owner.repository if self.owner else "")
        owner = Owner(public=command.args.get("owner", ""), repository=repository)
        try:
            named = owner.id
        except ValueError as error:
            raise InputError(f"the owner's key is no Ed25519 public key: {error}") from error
        data = self._actions["adopt"](command.args)
        write_whole(self._path, canonical_json(owner))
        self.owner = owner
        log.info(f"this device is owned by key {named}")
        return data


def command_route(commands: Commands) -> Route:
    """Return `POST /v1/fieldlm/command`. It asks for no API key: a command is signed by who may give it."""

    async def take(request: Request) -> Response:
        return as_json(await run_in_threadpool(commands.hear, await read_body(request)))

    return Route(wire.PATH, take, methods=["POST"])


def read_owner(state: Path) -> Owner | None:
    """Return who owns the device whose state folder this is; None where it is nobody's."""
    path = state / OWNER
    if not path.exists():
        return None
    try:
        owner = msgspec.json.decode(path.read_bytes(), type=Owner)
        return owner if owner.id else None
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise InputError(f"{path} should hold the owner's public key: {error}; correct or remove it") from error


def _code() -> str:
    letters = base64.b32encode(secrets.token_bytes(5)).decode()
    return f"{letters[:4]}-{letters[4:]}"
