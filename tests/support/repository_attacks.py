"""What an attacker, a broken disk or a confused publisher may do to a repository: `test_trust.py` tries it all."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner  # pyright: ignore[reportPrivateImportUsage]
from tuf.api.metadata import Metadata

from fieldlm.core.files import canonical_json, sha256_bytes
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.release import (
    ENTRY_BYTES,
    Blob,
    Offer,
    Release,
    ReleaseFile,
    blob_path,
    describe_blob,
)
from fieldlm_compiler.repository import keys
from fieldlm_compiler.repository.metadata import Keyring, RepositoryMetadata
from fieldlm_compiler.repository.publish import describe_release, publish
from tests.support.update_simulators import small_bundle

BASE_BYTES = 5_000
FLIPS = 12


class Prey(NamedTuple):
    """A published repository, with what an attack may want to know about it."""

    repository: Path
    keys: Path
    bundle: Bundle
    release: Release

    def metadata(self, role: str) -> Path:
        if role == "timestamp":
            return self.repository / "tuf" / "timestamp.json"
        return max((self.repository / "tuf").glob(f"*.{role}.json"), key=lambda path: int(path.name.partition(".")[0]))

    def blob(self, role: str) -> Path:
        named = {"manifest": self.release.manifest, "signature": self.release.signature}
        blob = named.get(role) or next(file for file in self.release.files if file.role == role)
        return self.repository / blob_path(blob.sha256)

    def release_file(self) -> Path:
        return self.repository / "releases" / "test" / "1.json"

    def sign_release(self, release: Release | dict[str, Any]) -> None:
        """Offer `release` with the publisher's own keys, unchecked."""
        book = RepositoryMetadata(self.repository, Keyring(self.keys))
        data = canonical_json(release)
        self.release_file().write_bytes(data)
        book.add("test", "test/1.json", data)
        book.write()


Attack = Callable[[Prey], None]


def edited(role: str, edit: Callable[[dict[str, Any]], object]) -> Attack:
    def attack(prey: Prey) -> None:
        path = prey.metadata(role)
        document = json.loads(path.read_bytes())
        edit(document)
        path.write_text(json.dumps(document))

    return attack


def resigned(role: str, *, under_real_key_id: bool) -> Attack:
    def attack(prey: Prey) -> None:
        path = prey.metadata(role)
        metadata = Metadata.from_file(str(path))
        (real_key_id,) = metadata.signatures
        signer = CryptoSigner(Ed25519PrivateKey.generate())
        if under_real_key_id:
            signer.public_key.keyid = real_key_id
        metadata.sign(signer)
        path.write_bytes(metadata.to_bytes())

    return attack


def written(path: Callable[[Prey], Path], change: Callable[[bytes], bytes]) -> Attack:
    def attack(prey: Prey) -> None:
        target = path(prey)
        data = change(target.read_bytes())
        target.unlink()
        target.write_bytes(data)

    return attack


def replaced(path: Callable[[Prey], Path], by: Callable[[Prey], Path]) -> Attack:
    def attack(prey: Prey) -> None:
        shutil.copy(by(prey), path(prey))

    return attack


def removed(path: Callable[[Prey], Path]) -> Attack:
    return lambda prey: path(prey).unlink()


def flip(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def metadata_attacks() -> Iterator[tuple[str, Attack]]:
    swaps = {"timestamp": "snapshot", "snapshot": "targets", "targets": "timestamp", "profile-test": "targets"}
    for role, other in swaps.items():
        at = partial(Prey.metadata, role=role)
        yield f"{role}: signature flipped", edited(role, lambda d: d["signatures"][0].update(sig="00" * 64))
        yield f"{role}: signature dropped", edited(role, lambda d: d["signatures"].clear())
        yield f"{role}: signature doubled", edited(role, lambda d: d["signatures"].append(d["signatures"][0]))
        yield f"{role}: version raised", edited(role, lambda d: d["signed"].update(version=99))
        yield f"{role}: version zero", edited(role, lambda d: d["signed"].update(version=0))
        yield f"{role}: expiry moved", edited(role, lambda d: d["signed"].update(expires="2999-01-01T00:00:00Z"))
        yield f"{role}: field added", edited(role, lambda d: d["signed"].update(surprise=1))
        yield f"{role}: signed by a stranger", resigned(role, under_real_key_id=False)
        yield f"{role}: signed by a stranger under our key id", resigned(role, under_real_key_id=True)
        yield f"{role}: truncated", written(at, lambda data: data[: len(data) // 2])
        yield f"{role}: empty", written(at, lambda data: b"")
        yield f"{role}: not JSON", written(at, lambda data: b"\xff" * 100)
        yield f"{role}: six megabytes", written(at, lambda data: data + b" " * 6_000_000)
        yield f"{role}: nested a hundred thousand times", written(at, lambda data: b"[" * 100_000)
        yield f"{role}: {other} in its place", replaced(at, partial(Prey.metadata, role=other))
        yield f"{role}: missing", removed(at)


def blob_attacks() -> Iterator[tuple[str, Attack]]:
    for role in ("manifest", "signature", "base", "adapter", "template"):
        at = partial(Prey.blob, role=role)
        yield f"{role}: first bit flipped", written(at, lambda data: flip(data, 0))
        yield f"{role}: last bit flipped", written(at, lambda data: flip(data, -1))
        yield f"{role}: truncated", written(at, lambda data: data[:-1])
        yield f"{role}: empty", written(at, lambda data: b"")
        yield f"{role}: zeros of the same size", written(at, lambda data: bytes(len(data)))
        yield f"{role}: missing", removed(at)


def flip_attacks() -> Iterator[tuple[str, Attack]]:
    """One bit, in every part of everything that travels."""
    places: dict[str, Callable[[Prey], Path]] = {
        **{role: partial(Prey.metadata, role=role) for role in ("timestamp", "snapshot", "targets", "profile-test")},
        **{role: partial(Prey.blob, role=role) for role in ("manifest", "signature", "base", "adapter")},
        "release": Prey.release_file,
    }
    for what, at in places.items():
        for part in range(FLIPS):
            yield f"{what}: bit flipped in part {part}", written(at, partial(flip_in, part=part))


def flip_in(data: bytes, part: int) -> bytes:
    return flip(data, len(data) * part // FLIPS + len(data) // (2 * FLIPS))


def release_attacks() -> Iterator[tuple[str, Attack]]:
    yield "release: bit flipped", written(Prey.release_file, lambda data: flip(data, 40))
    yield "release: truncated", written(Prey.release_file, lambda data: data[:-10])
    yield "release: oversized", written(Prey.release_file, lambda data: data + b" " * 1_000_000)
    yield "release: missing", removed(Prey.release_file)
    changes: dict[str, dict[str, Any]] = {
        "of a later format": {"format": "fieldlm.release/2"},
        "for another profile": {"profile": "other"},
        "with a profile that is a path": {"profile": "../test"},
        "with another number": {"seq": 7},
        "with number zero": {"seq": 0},
        "with a number past 64 bits": {"seq": 2**64},
        "that asks for more than itself": {"min_seq": 2},
        "naming another bundle": {"bundle": "0" * 64},
        "signed by a stranger, it says": {"signer": "0" * 16},
        "without files": {"files": []},
    }
    for what, change in changes.items():
        yield f"release {what}", lambda prey, change=change: prey.sign_release(_document(prey) | change)


def file_attacks() -> Iterator[tuple[str, Attack]]:
    changes: dict[str, dict[str, Any]] = {
        "climbs out": {"path": "../../../escaped"},
        "climbs out inside": {"path": "a/../../escaped"},
        "is absolute": {"path": "/tmp/escaped"},
        "has no name": {"path": ""},
        "has a backslash": {"path": "..\\escaped"},
        "has a null": {"path": "model\0.gguf"},
        "has the manifest's name": {"path": "manifest.json"},
        "has its neighbour's name": {"path": "template.jinja"},
        "has a negative size": {"size": -1},
        "is larger than it is": {"size": 1 << 40},
        "has a digest that is a path": {"sha256": "../" * 21 + "a"},
        "has too few chunks": {"chunks": 0},
        "has more chunks than bytes": {"chunks": BASE_BYTES + 1, "index": "0" * 64},
        "has a billion chunks": {"chunks": 1 << 30, "index": "0" * 64},
        "has an index that is not there": {"chunks": 2, "index": "0" * 64},
        "has an index that is a path": {"chunks": 2, "index": "../" * 21 + "a"},
        "is a terabyte in one chunk": {"size": 1 << 40, "chunks": 1},
        "plays another role": {"role": "adapter"},
    }
    for what, change in changes.items():
        yield f"file that {what}", lambda prey, change=change: prey.sign_release(_with_first_file(prey, change))


def base_of(prey: Prey, blob: Blob) -> ReleaseFile:
    """Return the base file of the release, said to be `blob`."""
    base = prey.release.files[0]
    return msgspec.structs.replace(base, sha256=blob.sha256, size=blob.size, chunks=blob.chunks, index=blob.index)


def indexed(change: Callable[[bytes], bytes]) -> Attack:
    """Sign a release whose base has an index that is not true, with the publisher's own keys."""

    def attack(prey: Prey) -> None:
        base = prey.repository / blob_path(prey.release.files[0].sha256)
        size = base.stat().st_size
        blob, index = describe_blob(base, [size // 4] * 5)
        lie = change(index)
        path = prey.repository / blob_path(sha256_bytes(lie))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lie)
        blob = msgspec.structs.replace(blob, chunks=max(1, len(lie) // ENTRY_BYTES), index=sha256_bytes(lie))
        files = (base_of(prey, blob), *prey.release.files[1:])
        prey.sign_release(msgspec.structs.replace(prey.release, files=files))

    return attack


def sized(index: bytes, entry: int, size: int) -> bytes:
    at = entry * ENTRY_BYTES
    return index[:at] + size.to_bytes(4, "little") + index[at + 4 :]


def index_attacks() -> Iterator[tuple[str, Attack]]:
    changes: dict[str, Callable[[bytes], bytes]] = {
        "says a chunk has no bytes": lambda index: sized(index, 1, 0),
        "says a chunk has four gigabytes": lambda index: sized(index, 1, 2**32 - 1),
        "covers less than the file": lambda index: index[:-ENTRY_BYTES],
        "covers more than the file": lambda index: index + index[:ENTRY_BYTES],
        "is cut in the middle of an entry": lambda index: index[:-5],
        "has its chunks in another order": lambda index: (
            index[ENTRY_BYTES : 2 * ENTRY_BYTES] + index[:ENTRY_BYTES] + index[2 * ENTRY_BYTES :]
        ),
        "has digests of other bytes": lambda index: index[:4] + bytes(32) + index[ENTRY_BYTES:],
        "is the same chunk again and again": lambda index: index[:ENTRY_BYTES] * 4,
        "explodes into a million chunks": lambda index: ((1).to_bytes(4, "little") + bytes(32)) * 1_000_000,
    }
    for what, change in changes.items():
        yield f"index that {what}", indexed(change)


def offer_attacks() -> Iterator[tuple[str, Attack]]:
    customs: dict[str, Any] = {
        "is a word": "all", "has a share that is a word": {"share_ppm": "all"},
        "has a salt that is a number": {"salt": 7}, "has a start that is a list": {"since": [1]},
    }  # fmt: skip
    for what, custom in customs.items():

        def attack(prey: Prey, custom: Any = custom) -> None:
            book = RepositoryMetadata(prey.repository, Keyring(prey.keys))
            book.offer("test", "test/1.json", Offer(spread_s=1))
            book.profile("test").targets["test/1.json"].unrecognized_fields["custom"] = custom
            book.write()

        yield f"offer that {what}", attack


def signed_by_a_new_root(prey: Prey) -> None:
    """Hand out a repository of the attacker's own, with roots that begin where ours end."""
    stranger = prey.repository.parent / "stranger"
    other = small_bundle(stranger / "bundle", base="tuned", base_bytes=BASE_BYTES, adapter="evil")
    publish(other.folder, stranger / "repository", keys=stranger / "keys")
    shutil.rmtree(prey.repository)
    shutil.copytree(stranger / "repository", prey.repository)


def with_the_key_of_another_profile(prey: Prey) -> None:
    """Sign this profile's releases with the key of another, which the same publisher trusts for that one alone."""
    other = small_bundle(prey.repository.parent / "other", base="x", base_bytes=BASE_BYTES, profile="other")
    publish(other.folder, prey.repository, keys=prey.keys)
    book = RepositoryMetadata(prey.repository, Keyring(prey.keys))
    metadata = Metadata.from_file(str(prey.metadata("profile-test")))
    metadata.sign(book.ring.at_hand(book.keys("profile-other").keyids)[0])
    prey.metadata("profile-test").write_bytes(metadata.to_bytes())


def in_the_place_of_another_profile(prey: Prey) -> None:
    """Hand out the metadata of another profile under this profile's name."""
    other = small_bundle(prey.repository.parent / "other", base="x", base_bytes=BASE_BYTES, profile="other")
    publish(other.folder, prey.repository, keys=prey.keys)
    shutil.copy(prey.metadata("profile-other"), prey.metadata("profile-test"))


def with_a_revoked_key(prey: Prey) -> None:
    """Revoke the key of a profile, and put back what it signed."""
    before = prey.metadata("profile-test").read_bytes()
    keys.rotate(prey.repository, Keyring(prey.keys), "profile-test")
    prey.metadata("profile-test").write_bytes(before)


def _document(prey: Prey) -> dict[str, Any]:
    return msgspec.to_builtins(prey.release)


def _with_first_file(prey: Prey, change: dict[str, Any]) -> dict[str, Any]:
    document = _document(prey)
    first, *others = document["files"]
    return document | {"files": [first | change, *others]}


def forged_root(version: int) -> Attack:
    def attack(prey: Prey) -> None:
        metadata = Metadata.from_file(str(prey.repository / "tuf" / "1.root.json"))
        metadata.signed.version = version
        metadata.sign(CryptoSigner(Ed25519PrivateKey.generate()))
        (prey.repository / "tuf" / "2.root.json").write_bytes(metadata.to_bytes())

    return attack


def frozen(prey: Prey) -> None:
    """Hand out metadata whose time is over, signed properly."""
    book = RepositoryMetadata(prey.repository, Keyring(prey.keys))
    book.write()
    metadata = Metadata.from_file(str(prey.metadata("timestamp")))
    metadata.signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    metadata.sign(book.ring.at_hand(book.keys("timestamp").keyids)[0])
    prey.metadata("timestamp").write_bytes(metadata.to_bytes())


def manifest_of_another_profile(prey: Prey) -> None:
    """Offer a bundle compiled for another device under this device's profile, with the publisher's own keys."""
    other = small_bundle(prey.repository.parent / "other", base="x", base_bytes=BASE_BYTES, profile="other")
    publish(other.folder, prey.repository, keys=prey.keys)
    prey.sign_release(msgspec.structs.replace(describe_release(other, None)[0], profile="test"))


def signature_of_another_manifest(prey: Prey) -> None:
    other = small_bundle(prey.repository.parent / "other", base="x", base_bytes=BASE_BYTES)
    path = other.folder / "manifest.sig"
    blob, _ = describe_blob(path)
    target = prey.repository / blob_path(blob.sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)
    prey.sign_release(msgspec.structs.replace(prey.release, signature=blob))


ATTACKS: dict[str, Attack] = {
    **dict(metadata_attacks()),
    **dict(blob_attacks()),
    **dict(flip_attacks()),
    **dict(release_attacks()),
    **dict(file_attacks()),
    **dict(index_attacks()),
    **dict(offer_attacks()),
    "root: a stranger's whole repository": signed_by_a_new_root,
    "delegation: signed with the key of another profile": with_the_key_of_another_profile,
    "delegation: another profile in its place": in_the_place_of_another_profile,
    "delegation: signed with a revoked key": with_a_revoked_key,
    "root: next version by a stranger": forged_root(2),
    "root: version skipped": forged_root(3),
    "freeze: expired metadata": frozen,
    "manifest of another profile": manifest_of_another_profile,
    "signature of another manifest": signature_of_another_manifest,
}
