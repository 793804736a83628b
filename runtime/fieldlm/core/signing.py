"""Signing: Ed25519 signatures. A key id is the first 16 hex digits of the SHA-256 of the raw public key."""

import os
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fieldlm.core.errors import InputError, TrustError
from fieldlm.core.files import disk_errors, sha256_bytes, sync_folder


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A detached signature: who signed, with which public key, and the 64 signature bytes in hex."""

    keyid: str
    public: str
    sig: str


def key_id(public: Ed25519PublicKey) -> str:
    return sha256_bytes(public.public_bytes_raw())[:16]


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Read the PEM private key at `path`, or make one there that only its owner can read."""
    with disk_errors(path):
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            part.unlink(missing_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
    return load_key(path)


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read the PEM private key at `path`."""
    with disk_errors(path):
        data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except ValueError as error:
        raise InputError(f"{path} is not a PEM private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is not an Ed25519 key")
    return key


def sign(data: bytes, key: Ed25519PrivateKey) -> Signature:
    public = key.public_key()
    return Signature(keyid=key_id(public), public=public.public_bytes_raw().hex(), sig=key.sign(data).hex())


def check_signature(data: bytes, signature: Signature, *, trusted: frozenset[str], what: str) -> None:
    """Raise TrustError unless `signature` over `data` is valid and by one of the `trusted` key ids.

    An empty `trusted` accepts any valid signature: the bytes are then whole, but nobody vouches for them.
    """
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public))
        public.verify(bytes.fromhex(signature.sig), data)
    except (ValueError, InvalidSignature) as error:
        raise TrustError(f"the signature of {what} does not match its bytes; fetch or compile it again") from error
    if key_id(public) != signature.keyid or (trusted and signature.keyid not in trusted):
        raise TrustError(
            f"{what} is signed by key {key_id(public)}, not trusted here; trusted: {', '.join(sorted(trusted))}"
        )
