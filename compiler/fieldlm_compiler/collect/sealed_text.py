"""Sealed text: what people said, encrypted before it is stored, for one key that the collector does not have.

A collector that is given a public key (X25519) seals every prompt, answer and correction with AES-GCM under a key of
its own for each batch, agreed upon with an ephemeral key (ECIES: HKDF-SHA256), and bound to the place of its record.
Figures stay readable for whoever reads the store; text needs the private key, and every query with it is written down
beside that key before it runs. Parquet's own encryption of columns is not used: DuckDB cannot read what it leaves, and
the journal, a Delta Lake and Kafka would not have it.
"""

import base64
import binascii
import getpass
import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors, make_private
from fieldlm.formats import block as wire
from fieldlm.formats.block import Block
from fieldlm.formats.record import Record, WireError

if TYPE_CHECKING:
    import duckdb

TEXT = ("prompt", "answer", "correction")
MARK = "sealed1:"
VARIABLE = "FIELDLM_TEXT_KEY"
READS = ".reads.jsonl"
MOST_PLAIN_BYTES = wire.MAX_BODY_BYTES // 2
_BETWEEN = "/"
"""In a cell's place; no device and no stream has one in its name."""
_KEY_BYTES, _NONCE_BYTES = 32, 12


class TextSealer:
    """Seals the text of blocks for the holder of a private key."""

    def __init__(self, public: X25519PublicKey) -> None:
        self._public = public

    def seal(self, blocks: Sequence[Block]) -> list[Block]:
        """Return the blocks with their text sealed; one that nobody can read yet stays as it came."""
        ephemeral = X25519PrivateKey.generate()
        head = ephemeral.public_key().public_bytes_raw()
        cipher = _cipher(ephemeral.exchange(self._public), head, self._public.public_bytes_raw())
        return [sealed for block in blocks for sealed in _sealed(block, cipher, head)]


class TextReader:
    """Reads what was sealed for the private key in a file, and writes every query down beside it."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where the file holds no such key."""
        self.path = path
        self._key = _private(path)
        self._public = self._key.public_key().public_bytes_raw()
        self._ciphers: dict[bytes, AESGCM] = {}

    def note(self, store: str, sql: str) -> None:
        """Write down who reads what; raises InputError where that cannot be written, and nothing is read then."""
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "user": getpass.getuser(), "uid": os.getuid(),
            "host": socket.gethostname(), "store": store, "sql": " ".join(sql.split()),
        }  # fmt: skip
        path = self.path.with_name(self.path.name + READS)
        with disk_errors(path):
            make_private(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def unseal(self, cell: str, place: str) -> str:
        """Return the text of a sealed cell; raises InputError where it was sealed for another key, or was changed."""
        try:
            raw = base64.b64decode(cell.removeprefix(MARK), validate=True)
            head, rest = raw[:_KEY_BYTES], raw[_KEY_BYTES:]
            nonce, body = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
            if head not in self._ciphers:
                shared = self._key.exchange(X25519PublicKey.from_public_bytes(head))
                self._ciphers[head] = _cipher(shared, head, self._public)
            return self._ciphers[head].decrypt(nonce, body, place.encode()).decode()
        except (InvalidTag, ValueError, binascii.Error) as error:
            where = " ".join(place.split(_BETWEEN))
            raise InputError(f"the text of {where} was not sealed for {self.path}, or was changed") from error


def reader_of_environment() -> TextReader | None:
    """Return the reader whose key's file the environment names."""
    path = os.environ.get(VARIABLE)
    return TextReader(Path(path)) if path else None


def sealer_of(path: Path) -> TextSealer:
    """Return the sealer for a file with an X25519 key, public or private, in PEM; raises InputError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if b"PRIVATE KEY" in text:
        return TextSealer(_private(path).public_key())
    try:
        key = load_pem_public_key(text)
    except ValueError as error:
        raise InputError(_wanted(path)) from error
    if not isinstance(key, X25519PublicKey):
        raise InputError(_wanted(path))
    return TextSealer(key)


def show_text(duck: "duckdb.DuckDBPyConnection", reader: TextReader | None) -> None:
    """Make of the view `records` one whose text can be read; without a key sealed text is empty."""
    duck.execute("ALTER VIEW records RENAME TO as_stored")
    shown = "''"
    if reader is not None:
        duck.create_function("unsealed", reader.unseal, ["VARCHAR", "VARCHAR"], "VARCHAR")  # pyright: ignore[reportArgumentType]
    changes: list[str] = []
    for name in TEXT:
        if reader is not None:
            shown = f"unsealed({name}, concat_ws('{_BETWEEN}', device, epoch, stream, seq, '{name}'))"
        changes.append(f"CASE WHEN starts_with({name}, '{MARK}') THEN {shown} ELSE {name} END AS {name}")
    duck.execute(f"CREATE VIEW records AS SELECT * REPLACE ({', '.join(changes)}) FROM as_stored")


def _sealed(block: Block, cipher: AESGCM, head: bytes) -> list[Block]:
    try:
        records = block.records()
    except WireError:
        return [block]
    if not any(getattr(record, name) for record in records for name in TEXT):
        return [block]
    return _encoded([_sealed_record(record, cipher, head) for record in records], block.first)


def _encoded(records: Sequence[Record], first: int) -> list[Block]:
    """Return sealed records as one block, or as several where it would be too large: what is sealed does not shrink."""
    size = sum(len(getattr(record, name)) for record in records for name in TEXT)
    if size > MOST_PLAIN_BYTES and len(records) > 1:
        half = len(records) // 2
        return [*_encoded(records[:half], first), *_encoded(records[half:], records[half - 1].seq + 1)]
    return [msgspec.msgpack.decode(wire.encode(records, first=first), type=Block)]


def _sealed_record(record: Record, cipher: AESGCM, head: bytes) -> Record:
    def cell(name: str) -> str:
        text = str(getattr(record, name))
        if not text:
            return text
        nonce = os.urandom(_NONCE_BYTES)
        place = _BETWEEN.join((record.device, str(record.epoch), record.stream, str(record.seq), name))
        return MARK + base64.b64encode(head + nonce + cipher.encrypt(nonce, text.encode(), place.encode())).decode()

    return msgspec.structs.replace(record, **{name: cell(name) for name in TEXT})


def _cipher(shared: bytes, head: bytes, public: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, salt=head + public, info=b"fieldlm text").derive(shared))


def _private(path: Path) -> X25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InputError(_wanted(path)) from error
    if not isinstance(key, X25519PrivateKey):
        raise InputError(_wanted(path))
    return key


def _wanted(path: Path) -> str:
    return f"{path} holds no X25519 key in PEM; make one with: openssl genpkey -algorithm X25519 -out {path}"
