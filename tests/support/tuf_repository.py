"""A TUF repository in memory that can be published wrongly in every way: what `test_tuf_conformance.py` plays with."""

# pyright: reportPrivateImportUsage=false

import io
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from fieldlm.blobs.sources import ByteReader, MissingFileError
from fieldlm.core.errors import FieldlmError
from fieldlm.updates.trust import Trust

TOP = ("root", "timestamp", "snapshot", "targets")


class Repository:
    """A Source. `published` holds every version of every role, `asked` what a client asked for."""

    has_ranges = True
    stop = threading.Event()
    name = "memory"
    moved = 0

    def __init__(self) -> None:
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
        self.expires = expires
        self.signed: dict[str, Any] = {
            "root": Root(expires=expires),
            "timestamp": Timestamp(expires=expires),
            "snapshot": Snapshot(expires=expires),
            "targets": Targets(expires=expires),
        }
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.published = dict[str, list[bytes]]()
        self.files = dict[str, bytes]()
        self.asked = list[str]()
        self.has_hashes = False
        for role in TOP:
            self.add_key(role)
        self.publish("targets", "snapshot", "timestamp", "root")

    @property
    def root(self) -> Root:
        return self.signed["root"]

    @property
    def timestamp(self) -> Timestamp:
        return self.signed["timestamp"]

    @property
    def snapshot(self) -> Snapshot:
        return self.signed["snapshot"]

    @property
    def targets(self) -> Targets:
        return self.signed["targets"]

    def add_key(self, role: str, signer: CryptoSigner | None = None, *, by: str = "root") -> CryptoSigner:
        signer = signer or CryptoSigner.generate_ed25519()
        self.signed[by].add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        return signer

    def rotate(self, role: str) -> None:
        self.root.roles[role].keyids.clear()
        self.signers[role] = []
        self.add_key(role)

    def set_keys(
        self, role: str, keys: Iterable[CryptoSigner], threshold: int, signers: Iterable[CryptoSigner]
    ) -> None:
        self.root.roles[role].keyids.clear()
        for key in keys:
            self.root.add_key(key.public_key, role)
        self.root.roles[role].threshold = threshold
        self.signers[role] = list(signers)

    def delegate(self, by: str, role: str, *paths: str, terminating: bool = False) -> None:
        owner = cast(Targets, self.signed[by])
        owner.delegations = owner.delegations or Delegations({}, {})
        assert owner.delegations.roles is not None
        owner.delegations.roles[role] = DelegatedRole(role, [], 1, terminating, paths=list(paths or ("*",)))
        self.signed.setdefault(role, Targets(expires=self.expires))
        self.add_key(role, by=by)

    def add_file(self, path: str, data: bytes, *, by: str = "targets", hashes: tuple[str, ...] = ("sha256",)) -> None:
        self.signed[by].targets[path] = TargetFile.from_data(path, data, list(hashes))
        self.files[path] = data

    def publish(self, *roles: str) -> None:
        """Sign the next version of each, and name it in the snapshot or the timestamp."""
        for role in roles:
            signed = self.signed[role]
            if role in self.published:
                signed.version += 1
            metadata = Metadata(signed)
            for signer in self.signers[role]:
                metadata.sign(signer, append=True)
            data = metadata.to_bytes()
            self.published.setdefault(role, []).append(data)
            meta = MetaFile(signed.version)
            if self.has_hashes:
                meta = MetaFile.from_data(signed.version, data, ["sha256"])
            if role == "snapshot":
                self.timestamp.snapshot_meta = meta
            elif role not in TOP or role == "targets":
                self.snapshot.meta[f"{role}.json"] = meta

    def republish(self, role: str, version: int, *others: str) -> None:
        """Begin the versions of a role again at `version`."""
        self.signed[role].version = version
        del self.published[role]
        self.publish(role, *others)

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Generator[ByteReader]:
        yield cast(ByteReader, io.BytesIO(self._find(path)[start:stop]))

    def _find(self, path: str) -> bytes:
        self.asked.append(path.removeprefix("tuf/").removesuffix(".json"))
        if path.startswith("releases/"):
            if path.removeprefix("releases/") in self.files:
                return self.files[path.removeprefix("releases/")]
            raise MissingFileError(path)
        name = path.removeprefix("tuf/").removesuffix(".json")
        if name == "timestamp" and self.published.get(name):
            return self.published[name][-1]
        number, _, role = name.partition(".")
        versions = self.published.get(role, [])
        if not number.isdecimal() or not 1 <= int(number) <= len(versions):
            raise MissingFileError(path)
        return versions[int(number) - 1]


class Client:
    """The device's trust, with the first root of a repository in memory."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.repository = repository
        self.trust = Trust(folder / "trust")
        self.init(repository.published["root"][0])

    def init(self, root: bytes) -> None:
        self.trust.folder.mkdir(parents=True, exist_ok=True)
        self.trust.anchor.write_bytes(root)

    def refresh(self) -> bool:
        self.repository.asked.clear()
        return self._works(lambda: self.trust.refresh(self.repository))

    def download(self, path: str) -> bytes | None:
        self.repository.asked.clear()
        found = list[bytes | None]()
        works = self._works(lambda: found.append(self.trust.read_target(self.repository, path)))
        return found[0] if works else None

    def version(self, role: str) -> int:
        path = self.trust.metadata / f"{role}.json"
        return Metadata[Any].from_file(str(path)).signed.version if path.exists() else 0

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(self.version(role) for role in TOP)

    @staticmethod
    def _works(act: Callable[[], object]) -> bool:
        try:
            act()
        except FieldlmError:
            return False
        return True
