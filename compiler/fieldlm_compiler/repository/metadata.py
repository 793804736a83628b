"""The TUF metadata of one repository, and the keys that sign it.

Root keys (any number, any threshold) vouch for the keys of `targets`, `snapshot` and `timestamp`; targets vouches for
one role per profile, which alone signs that profile's releases. Root and targets are needed when keys change or a new
profile comes, and may lie offline the rest of the time; the others are needed to publish. Keys are found by what they
are, not by their file names: any Ed25519 PEM in the folders that are searched.

Everything is written under a new name; the next root, and then `timestamp.json`, make it visible.
"""

# python-tuf and securesystemslib document these names, and re-export them without saying so to type checkers.
# pyright: reportPrivateImportUsage=false

import fcntl
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from fieldlm.core.errors import BundleError, InputError
from fieldlm.core.files import disk_errors, write_whole
from fieldlm.core.signing import load_key, load_or_create_key
from fieldlm.formats.release import Offer, role_name

ROLES = ("root", "targets", "snapshot", "timestamp")
LASTS_DAYS = {"root": 3650, "targets": 3650, "snapshot": 3650, "timestamp": 365}
ANCHOR = "root.json"
Signed = Root | Targets | Snapshot | Timestamp


class Keyring:
    """The private keys at hand, by key id. `folder` is where new ones are made."""

    def __init__(self, folder: Path, others: Iterable[Path] = ()) -> None:
        self.folder = folder
        self.signers: dict[str, CryptoSigner] = {}
        self.paths: dict[str, Path] = {}
        for path in (folder, *others):
            for pem in sorted(path.glob("*.pem")) if path.is_dir() else [path] if path.is_file() else []:
                self._add(pem)

    def get_or_make(self, name: str, folder: Path | None = None) -> CryptoSigner:
        """Return the key in `name`.pem, made when it is not there."""
        path = (folder or self.folder) / f"{name}.pem"
        load_or_create_key(path)
        return self._add(path)

    def make(self, name: str, folder: Path | None = None) -> CryptoSigner:
        """Make another key; where there is a `name`.pem already, its file has the key id in its name."""
        path = (folder or self.folder) / f"{name}.pem"
        if not path.exists():
            return self.get_or_make(name, folder)
        aside = path.with_name(f".{name}.new.pem")
        aside.unlink(missing_ok=True)
        signer = CryptoSigner(load_or_create_key(aside))
        final = path.with_name(f"{name}-{signer.public_key.keyid[:8]}.pem")
        aside.rename(final)
        return self._add(final)

    def retire(self, keyid: str) -> None:
        """Put a key that vouches for nothing any more out of use."""
        if path := self.paths.pop(keyid, None):
            with disk_errors(path):
                path.rename(path.with_name(f"{path.name}.retired"))
            del self.signers[keyid]

    def at_hand(self, keyids: Iterable[str]) -> list[CryptoSigner]:
        return [self.signers[keyid] for keyid in keyids if keyid in self.signers]

    def _add(self, path: Path) -> CryptoSigner:
        signer = CryptoSigner(load_key(path))
        self.signers[signer.public_key.keyid] = signer
        self.paths[signer.public_key.keyid] = path
        return signer


def found(ring: Keyring, *, root_keys: int = 1, threshold: int = 1, offline: Sequence[Path] = ()) -> Path:
    """Make all keys of a new publisher and the root that devices are handed; return its path.

    Root keys go to the `offline` folders in turn, or beside the others where there are none. Raises InputError when
    this publisher has a root already.
    """
    anchor = ring.folder / ANCHOR
    if anchor.exists():
        raise InputError(f"{anchor} is there already; change its keys with: fieldlm keys rotate")
    if not 1 <= threshold <= root_keys:
        raise InputError(f"threshold is {threshold} of {root_keys} root keys; want 1 to {root_keys}")
    root = Root(version=1, consistent_snapshot=True)
    for number in range(root_keys):
        name = "root" if root_keys == 1 else f"root-{number + 1}"
        folder = offline[number % len(offline)] if offline else ring.folder
        root.add_key(ring.get_or_make(name, folder).public_key, "root")
    for role in ROLES[1:]:
        root.add_key(ring.get_or_make(role).public_key, role)
    root.roles["root"].threshold = threshold
    write_whole(anchor, sign(root, "root", ring.at_hand(root.roles["root"].keyids)).to_bytes())
    return anchor


def sign(signed: Signed, role: str, signers: Sequence[CryptoSigner]) -> Metadata[Any]:
    """Sign with all of `signers`, good for as long as the role's metadata lasts."""
    signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=LASTS_DAYS.get(role, 3650))
    metadata = Metadata(cast(Root, signed))  # any of the four; the constructor wants to know which
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata


class RepositoryMetadata:
    """Read what is current, change it, write what changed anew."""

    def __init__(self, repository: Path, ring: Keyring) -> None:
        self.folder = repository / "tuf"
        self.ring = ring
        if not (self.folder / "root.json").exists():
            anchor = ring.folder / ANCHOR
            if not anchor.exists():
                found(ring)
            write_whole(self.folder / "root.json", anchor.read_bytes())  # for devices to be; stays the first
            write_whole(self.folder / f"{read_version(anchor)}.root.json", anchor.read_bytes())
        self.root = read_root(self.folder)
        self.timestamp, self.snapshot, self.targets, self.profiles = read_current(self.folder)
        self._is_new = not (self.folder / "timestamp.json").exists()
        self._changed = set[str]()

    def need(self, roles: Iterable[str]) -> None:
        """Raise InputError unless the keys at hand can sign for all of `roles`, before anything is written."""
        for role in roles:
            self._signers(role)
        # Handed to devices; beside the keys, so that it need not be fetched from a place nobody trusts yet.
        write_whole(self.ring.folder / ANCHOR, (self.folder / f"{self.root.version}.root.json").read_bytes())

    def profile(self, profile: str) -> Targets:
        """Return the targets of a profile, and delegate to it when it is new."""
        name = role_name(profile)
        delegations = self.targets.delegations or Delegations({}, {})
        roles = delegations.roles if delegations.roles is not None else {}
        if name not in roles:
            self._signers("targets")
            signer = self.ring.get_or_make(name)
            roles[name] = DelegatedRole(name, [], 1, True, paths=[f"{profile}/*"])
            delegations.roles = roles
            self.targets.delegations = delegations
            self.targets.add_key(signer.public_key, name)
            self._changed.add("targets")
        if name not in self.profiles:
            self.profiles[name] = Targets()
            self.profiles[name].version = 0  # the first one written is 1
            self._changed.add(name)
        return self.profiles[name]

    def add(self, profile: str, path: str, data: bytes, offer: Offer | None = None) -> None:
        """Offer the release file at `path` under `releases/`."""
        target = TargetFile.from_data(path, data, ["sha256"])
        self.profile(profile).targets[path] = target
        self.offer(profile, path, offer or Offer())

    def offer(self, profile: str, path: str, offer: Offer) -> None:
        """Say to whom a release goes."""
        target = self.profile(profile).targets[path]
        custom = msgspec.to_builtins(offer)
        if target.unrecognized_fields.get("custom") != custom:
            target.unrecognized_fields["custom"] = custom
            self._changed.add(role_name(profile))

    def keys(self, role: str) -> Role:
        """Return the keys and the threshold of any role; raises InputError for one that is not there."""
        if role in ROLES:
            return self.root.roles[role]
        roles = (self.targets.delegations.roles if self.targets.delegations else None) or {}
        if role not in roles:
            raise InputError(f"there is no role {role!r}; roles: {', '.join([*ROLES, *sorted(roles)])}")
        return roles[role]

    def public(self, keyid: str) -> Key | None:
        delegated = self.targets.delegations.keys if self.targets.delegations else {}
        return self.root.keys.get(keyid) or delegated.get(keyid)

    def swap_key(self, role: str, *, add: Key | None = None, drop: str = "") -> None:
        """Let another key sign for a role, or one key no longer; the role's metadata will be signed afresh."""
        owner = self.root if role in ROLES else self.targets
        if add is not None:
            owner.add_key(add, role)
        if drop:
            owner.revoke_key(drop, role)
        self._changed.add("root" if role in ROLES else "targets")
        self._changed.add(role)

    def resign_stale(self) -> None:
        """Take for changed what the keys of today do not vouch for: a rotation that was broken off, or another's."""
        checked: list[tuple[str, Signed, Signed]] = [
            ("targets", self.root, self.targets), ("snapshot", self.root, self.snapshot),
        ]  # fmt: skip
        checked += [(name, self.targets, targets) for name, targets in self.profiles.items()]
        for name, owner, signed in checked:
            path = self.folder / f"{signed.version}.{name}.json"
            if path.exists() and name not in self._changed:
                metadata = Metadata[Any].from_file(str(path))
                try:
                    cast(Root | Targets, owner).verify_delegate(name, metadata.signed_bytes, metadata.signatures)
                except (RepositoryError, ValueError):
                    self._changed.add(name)

    def stage_root(self) -> Metadata[Root]:
        """Return the next root, signed with what is at hand of the old keys and the new."""
        old = read_root(self.folder)
        self.root.version = old.version + 1
        keyids = dict.fromkeys([*old.roles["root"].keyids, *self.root.roles["root"].keyids])
        return cast(Metadata[Root], sign(self.root, "root", self.ring.at_hand(keyids)))

    def write(self, root: Metadata[Root] | None = None) -> None:
        """Sign and write what changed, with the next `root` if there is one; visible with the last file."""
        self.resign_stale()
        changed = [role for role in self._changed if role in self.profiles]
        for role in changed:
            self.profiles[role].version += 1
            self._write(role, self.profiles[role], f"{self.profiles[role].version}.{role}.json")
            self.snapshot.meta[f"{role}.json"] = MetaFile(version=self.profiles[role].version)
        if "targets" in self._changed or self._is_new:
            self.targets.version += 1
            self._write("targets", self.targets, f"{self.targets.version}.targets.json")
            self.snapshot.meta["targets.json"] = MetaFile(version=self.targets.version)
        if self._changed - {"root", "timestamp"} or self._is_new:
            self.snapshot.version += 1
            self._write("snapshot", self.snapshot, f"{self.snapshot.version}.snapshot.json")
        self.timestamp.version += 1
        self.timestamp.snapshot_meta = MetaFile(version=self.snapshot.version)
        self._signers("timestamp")
        if root is not None:
            write_whole(self.folder / f"{root.signed.version}.root.json", root.to_bytes())
            write_whole(self.ring.folder / ANCHOR, root.to_bytes())
        self._write("timestamp", self.timestamp, "timestamp.json")
        self._is_new = False
        self._changed.clear()

    def _signers(self, role: str) -> list[CryptoSigner]:
        wanted = self.keys(role)
        signers = self.ring.at_hand(wanted.keyids)
        if len(signers) < wanted.threshold:
            raise InputError(
                f"{self.folder.parent} is signed with another {role} key than those in {self.ring.folder} "
                f"({len(signers)} of {wanted.threshold}); pass its own with --keys"
            )
        return signers

    def _write(self, role: str, signed: Signed, name: str) -> None:
        write_whole(self.folder / name, sign(signed, role, self._signers(role)).to_bytes())


def read_version(path: Path) -> int:
    """Return the version of the metadata in a file."""
    return _read(path).version


def read_root(folder: Path) -> Root:
    """Return the newest root of the repository; trusts the folder, as its owner does."""
    versions = [path.name.partition(".")[0] for path in folder.glob("*.root.json")]
    newest = max(int(version) for version in versions if version.isdecimal())
    return cast(Root, _read(folder / f"{newest}.root.json"))


def read_current(folder: Path) -> tuple[Timestamp, Snapshot, Targets, dict[str, Targets]]:
    """Follow timestamp → snapshot → targets → profiles, so that files of an interrupted publisher are not seen."""
    if not (folder / "timestamp.json").exists():
        return Timestamp(), Snapshot(), Targets(), {}
    timestamp = cast(Timestamp, _read(folder / "timestamp.json"))
    snapshot = cast(Snapshot, _read(folder / f"{timestamp.snapshot_meta.version}.snapshot.json"))
    read = {
        name.removesuffix(".json"): cast(Targets, _read(folder / f"{meta.version}.{name}"))
        for name, meta in snapshot.meta.items()
    }
    return timestamp, snapshot, read.pop("targets"), read


def _read(path: Path) -> Signed:
    try:
        return Metadata[Any].from_file(str(path)).signed
    except (RepositoryError, OSError) as error:
        raise BundleError(f"{path} is damaged: {error}; publish into a new folder, with the same keys") from error


@contextmanager
def alone(repository: Path) -> Generator[None]:
    """Hold the repository against another publisher on this machine."""
    with disk_errors(repository):
        repository.mkdir(parents=True, exist_ok=True)
        with (repository / ".publish.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another fieldlm publishes into {repository}; wait for it and try again") from error
            yield
