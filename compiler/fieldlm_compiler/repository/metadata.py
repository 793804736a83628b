"""The TUF metadata of one repository, and the keys that sign it.

Root keys (any number, any threshold) vouch for the keys of `targets`, `snapshot` and `timestamp`; targets vouches for
one role per profile, which alone signs that profile's releases. Root and targets are needed when keys change or a new
profile comes, and may lie offline the rest of the time; the others are needed to publish. Keys are found by what they
are, not by their file names: any Ed25519 PEM in the folders that are searched.

python-tuf's `Repository` keeps snapshot and timestamp up to date. It says of that module that it may still change,
which is one reason for the bound on tuf's version. Everything is written under a new name; the next root, and then
`timestamp.json`, make it visible.
"""

# python-tuf and securesystemslib document these names, and re-export them without saying so to type checkers.
# pyright: reportPrivateImportUsage=false

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
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
from tuf.repository import Repository

from fieldlm.core.errors import BundleError, InputError
from fieldlm.core.files import disk_errors, held_lock, write_whole
from fieldlm.core.signing import load_key, load_or_create_key
from fieldlm.formats.release import DAYS, Offer, role_name

ROLES = ("root", "targets", "snapshot", "timestamp")
LASTS_DAYS = 3650
TIMESTAMP_DAYS = 14
"""A mirror that keeps devices at what was newest once can do so for as long; `fieldlm publish --refresh` renews it."""
ANCHOR = "root.json"


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


def create_root(ring: Keyring, *, root_keys: int = 1, threshold: int = 1, offline: Sequence[Path] = ()) -> Path:
    """Make all keys of a new publisher and the root that devices are handed; return its path.

    Root keys go to the `offline` folders in turn, or beside the others where there are none. Raises InputError when
    this publisher has a root already.
    """
    anchor = ring.folder / ANCHOR
    if anchor.exists():
        raise InputError(f"{anchor} is there already; change its keys with: fieldlm keys rotate ROLE --to REPOSITORY")
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
    write_whole(anchor, sign(Metadata(root), "root", ring.at_hand(root.roles["root"].keyids)).to_bytes())
    return anchor


def sign(metadata: Metadata[Any], role: str, signers: Sequence[CryptoSigner]) -> Metadata[Any]:
    """Sign with all of `signers` and with nobody else, good for as long as the role's metadata lasts."""
    days = metadata.signed.unrecognized_fields.setdefault(DAYS, TIMESTAMP_DAYS) if role == "timestamp" else LASTS_DAYS
    metadata.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata


class RepositoryMetadata(Repository):
    """Read what is current, change it, write anew what is no longer signed as it stands."""

    def __init__(self, repository: Path, ring: Keyring) -> None:
        self.folder = repository / "tuf"
        self.ring = ring
        if not (self.folder / ANCHOR).exists():
            anchor = ring.folder / ANCHOR
            if not anchor.exists():
                create_root(ring)
            write_whole(self.folder / ANCHOR, anchor.read_bytes())  # for devices to be; stays the first
            write_whole(self.folder / f"{_read(anchor).signed.version}.root.json", anchor.read_bytes())
        self._current = {"root": Metadata(read_root(self.folder)), **read_current(self.folder)}

    def open(self, role: str) -> Metadata[Any]:
        """Return the metadata of any role as it stands here; what is not there yet was never written."""
        if role not in self._current:
            signed: Any = {"snapshot": Snapshot, "timestamp": Timestamp}.get(role, Targets)()
            signed.version = int(role in ROLES)
            self._current[role] = Metadata(signed)
        return self._current[role]

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Sign the next version of a role's metadata and write it."""
        signers = self._signers(role)
        md.signed.version += 1
        name = f"{role}.json" if role == "timestamp" else f"{md.signed.version}.{role}.json"
        write_whole(self.folder / name, sign(md, role, signers).to_bytes())

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """What the snapshot is to name."""
        return {f"{role}.json": MetaFile(self.targets(role).version) for role in ("targets", *self.profiles)}

    @property
    def snapshot_info(self) -> MetaFile:
        """What the timestamp is to name."""
        return MetaFile(self.snapshot().version)

    @property
    def profiles(self) -> list[str]:
        """The roles that sign for one profile each."""
        return [role for role in self._current if role not in ROLES]

    def need(self, roles: Iterable[str]) -> None:
        """Raise InputError unless the keys at hand can sign for all of `roles`, before anything is written."""
        for role in roles:
            self._signers(role)
        # Handed to devices; beside the keys, so that it need not be fetched from a place nobody trusts yet.
        write_whole(self.ring.folder / ANCHOR, (self.folder / f"{self.root().version}.root.json").read_bytes())

    def profile(self, profile: str) -> Targets:
        """Return the targets of a profile, and delegate to it when it is new."""
        name = role_name(profile)
        targets = self.targets()
        if name not in self._delegated():
            self._signers("targets")
            targets.delegations = targets.delegations or Delegations({}, {})
            targets.delegations.roles = {
                **(targets.delegations.roles or {}),
                name: DelegatedRole(name, [], 1, True, paths=[f"{profile}/*"]),
            }
            targets.add_key(self.ring.get_or_make(name).public_key, name)
        return self.targets(name)

    def add(self, profile: str, path: str, data: bytes, offer: Offer | None = None) -> None:
        """Offer the release file at `path` under `releases/`."""
        self.profile(profile).targets[path] = TargetFile.from_data(path, data, ["sha256"])
        self.offer(profile, path, offer or Offer())

    def offer(self, profile: str, path: str, offer: Offer) -> None:
        """Say to whom a release goes."""
        self.profile(profile).targets[path].unrecognized_fields["custom"] = msgspec.to_builtins(offer)

    def keys(self, role: str) -> Role:
        """Return the keys and the threshold of any role; raises InputError for one that is not there."""
        known: dict[str, Role] = {**self.root().roles, **self._delegated()}
        if role not in known or role == "mirrors":
            raise InputError(f"there is no role {role!r}; roles: {', '.join([*ROLES, *sorted(self._delegated())])}")
        return known[role]

    def swap_key(self, role: str, *, add: Key | None = None, drop: str = "") -> None:
        """Let another key sign for a role, or one key no longer."""
        owner = self._owner(role)
        if add is not None:
            owner.add_key(add, role)
        if drop:
            owner.revoke_key(drop, role)

    def renew_every(self, days: int) -> None:
        """Let the timestamp be good for so many days from now on; kept in it."""
        self.timestamp().unrecognized_fields[DAYS] = days

    def stage_root(self) -> Metadata[Root]:
        """Return the next root, signed with what is at hand of the old keys and the new."""
        old, root = read_root(self.folder), self.root()
        root.version = old.version + 1
        keyids = dict.fromkeys([*old.roles["root"].keyids, *root.roles["root"].keyids])
        return sign(Metadata(root), "root", self.ring.at_hand(keyids))

    def write(self, root: Metadata[Root] | None = None) -> None:
        """Sign and write what is not signed as it stands, with the next `root` if there is one.

        That is what changed, and what the keys of today do not vouch for: after a rotation that was broken off, or
        another's. All of it becomes visible with the last file.
        """
        if root is not None:
            self._current["root"] = root
        for role in (*self.profiles, "targets"):
            if not self._is_signed(role):
                self.close(role, self.open(role))
        self.do_snapshot()
        self._signers("timestamp")
        if root is not None:
            write_whole(self.folder / f"{root.signed.version}.root.json", root.to_bytes())
            write_whole(self.ring.folder / ANCHOR, root.to_bytes())
        self.do_timestamp(force=True)

    def _is_signed(self, role: str) -> bool:
        metadata = self.open(role)
        try:
            self._owner(role).verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError:
            return False
        return True

    def _owner(self, role: str) -> Root | Targets:
        return self.root() if role in ROLES else self.targets()

    def _delegated(self) -> dict[str, DelegatedRole]:
        return dict((self.targets().delegations or Delegations({}, {})).roles or {})

    def _signers(self, role: str) -> list[CryptoSigner]:
        wanted = self.keys(role)
        signers = self.ring.at_hand(wanted.keyids)
        if len(signers) < wanted.threshold:
            raise InputError(
                f"{self.folder.parent} is signed with another {role} key than those in {self.ring.folder} "
                f"({len(signers)} of {wanted.threshold}); pass its own with --keys"
            )
        return signers


def read_root(folder: Path) -> Root:
    """Return the newest root of the repository; trusts the folder, as its owner does."""
    versions = [path.name.partition(".")[0] for path in folder.glob("*.root.json")]
    newest = max(int(version) for version in versions if version.isdecimal())
    return _read(folder / f"{newest}.root.json").signed


def read_current(folder: Path) -> dict[str, Metadata[Any]]:
    """Return all roles but root by name.

    Follows timestamp → snapshot → targets, so that files of an interrupted publisher are not seen.
    """
    if not (folder / "timestamp.json").exists():
        return {}
    timestamp = _read(folder / "timestamp.json")
    snapshot = _read(folder / f"{timestamp.signed.snapshot_meta.version}.snapshot.json")
    listed = {
        name.removesuffix(".json"): _read(folder / f"{meta.version}.{name}")
        for name, meta in snapshot.signed.meta.items()
    }
    return {"timestamp": timestamp, "snapshot": snapshot, **listed}


def read_offered(repository: Path) -> dict[str, Targets]:
    """Return what each profile's role offers; trusts the folder, as its owner does."""
    return {role: found.signed for role, found in read_current(repository / "tuf").items() if role not in ROLES}


def _read(path: Path) -> Metadata[Any]:
    try:
        return Metadata[Any].from_file(str(path))
    except (RepositoryError, OSError) as error:
        raise BundleError(f"{path} is damaged: {error}; publish into a new folder, with the same keys") from error


@contextmanager
def publish_lock(repository: Path) -> Generator[None]:
    """Hold the repository against another publisher on this machine."""
    with disk_errors(repository):
        repository.mkdir(parents=True, exist_ok=True)
        with held_lock(
            repository / ".publish.lock", f"another fieldlm publishes into {repository}; wait for it and try again"
        ):
            yield
