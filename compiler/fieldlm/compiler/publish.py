"""Offer a bundle to the devices of its profile: into a static folder that any web server, bucket or USB stick serves.

Everything new is written aside and under new names first; `timestamp.json` is replaced last, and with it the release
becomes visible. A publisher that is killed leaves the repository as it was.
"""

# python-tuf and securesystemslib document these names, and re-export them without saying so to type checkers.
# pyright: reportPrivateImportUsage=false

import fcntl
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from fieldlm.formats.bundle import MANIFEST, SIGNATURE, Bundle, open_bundle
from fieldlm.formats.errors import BundleError, InputError, LinkError
from fieldlm.formats.files import canonical_json, disk_errors, write_whole
from fieldlm.formats.keys import Signature, load_or_create_key
from fieldlm.formats.release import (
    FORMAT,
    Blob,
    Pointer,
    Release,
    ReleaseFile,
    check_profile_id,
    describe_blob,
    parse_release,
    release_path,
)
from fieldlm.formats.topics import release_topic
from fieldlm.runtime import terminal
from fieldlm.runtime.blobs import Blobs
from fieldlm.runtime.config import load_config

ROLES = ("root", "targets", "snapshot", "timestamp")
LASTS_DAYS = {"root": 3650, "targets": 3650, "snapshot": 3650, "timestamp": 365}


def publish(
    bundle_folder: Path,
    repository: Path,
    *,
    keys: Path,
    profile: str | None = None,
    min_seq: int | None = None,
    notes: str = "",
) -> Release:
    """Add the bundle to the repository as the newest release of its profile, and return the release.

    The bundle that is the newest already is not released again; the metadata is signed afresh. Devices that commit the
    release never go back below `min_seq`; without it they keep the limit of the release before.
    """
    bundle = open_bundle(bundle_folder)
    _check_profile(bundle, profile)
    with disk_errors(repository), _alone(repository):
        book = Book(repository, keys)
        newest = newest_release(repository, bundle.manifest.profile)
        if newest and newest.bundle == bundle.id and min_seq is None:
            book.write()
            return newest
        release = describe_release(bundle, newest, min_seq=min_seq, notes=notes)
        store = Blobs(repository)
        for path, blob in _files(bundle, release):
            store.keep(path, blob.sha256, blob.size)
        data = canonical_json(release)
        target = release_path(release.profile, release.seq)
        write_whole(repository / "releases" / target, data)
        book.add(target, data)
        book.write()
        return release


def newest_release(repository: Path, profile: str) -> Release | None:
    """Return the newest release that the repository offers to `profile`; trusts the folder, as its owner does."""
    _, _, offered = _current(repository / "tuf")
    seqs = [int(Path(path).stem) for path in offered.targets if path.startswith(f"{profile}/")]
    if not seqs:
        return None
    path = repository / "releases" / release_path(profile, max(seqs))
    return parse_release(path.read_bytes(), what=str(path))


def describe_release(bundle: Bundle, newest: Release | None, *, min_seq: int | None = None, notes: str = "") -> Release:
    """Work out the release that follows `newest`: the digests of every blob of the bundle and of its chunks."""
    seq = newest.seq + 1 if newest else 1
    floor = min_seq if min_seq is not None else newest.min_seq if newest else 0
    if not 0 <= floor <= seq:
        raise InputError(f"min_seq is {floor}, this release is {seq}; want 0 to {seq}")
    signature = msgspec.json.decode((bundle.folder / SIGNATURE).read_bytes(), type=Signature)
    blobs = {file.path: describe_blob(bundle.folder / file.path) for file in bundle.manifest.files}
    return Release(
        format=FORMAT,
        seq=seq,
        min_seq=floor,
        profile=bundle.manifest.profile,
        bundle=bundle.id,
        signer=signature.keyid,
        manifest=describe_blob(bundle.folder / MANIFEST),
        signature=describe_blob(bundle.folder / SIGNATURE),
        files=tuple(
            ReleaseFile(path=file.path, role=file.role, **msgspec.structs.asdict(blobs[file.path]))
            for file in bundle.manifest.files
        ),
        model=bundle.manifest.model.name,
        notes=notes,
    )


def announce(pointer: Pointer, broker: str, *, topic: str) -> None:
    """Leave the pointer on the broker as a retained message; raises LinkError when the broker does not take it."""
    from paho.mqtt import MQTTException
    from paho.mqtt.enums import MQTTProtocolVersion
    from paho.mqtt.publish import single

    address = urlsplit(broker)
    if address.scheme != "mqtt" or not address.hostname:
        raise InputError(f"broker is {broker!r}; want mqtt://HOST:PORT")
    # paho calls its own orderly goodbye an error.
    logging.getLogger("paho").setLevel(logging.CRITICAL)
    try:
        single(
            topic,
            canonical_json(pointer),
            qos=1,
            retain=True,
            hostname=address.hostname,
            port=address.port or 1883,
            protocol=MQTTProtocolVersion.MQTTv5,
        )
    except (OSError, MQTTException) as error:
        raise LinkError(
            f"the release is published, but broker {broker} does not take its announcement: {error}"
        ) from error


class Book:
    """The TUF metadata of one repository: read what is current, change the targets, write everything anew."""

    def __init__(self, repository: Path, keys: Path) -> None:
        self.folder = repository / "tuf"
        _check_same_keys(self.folder, keys)
        self.signers = {role: CryptoSigner(load_or_create_key(keys / f"{role}.pem")) for role in ROLES}
        if not (self.folder / "root.json").exists():
            self._found()
        # Handed to devices; beside the keys, so that it need not be fetched from a place nobody trusts yet.
        write_whole(keys / "root.json", (self.folder / "1.root.json").read_bytes())
        self.timestamp, self.snapshot, self.targets = _current(self.folder)
        self.has_news = not (self.folder / "timestamp.json").exists()

    def add(self, path: str, data: bytes) -> None:
        """Offer the release file at `path` under `releases/`."""
        self.targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        self.has_news = True

    def write(self) -> None:
        """Sign and write what changed; the new state becomes visible with the last file."""
        if self.has_news:
            self.targets.version += 1
            self._sign("targets", self.targets, f"{self.targets.version}.targets.json")
            self.snapshot.version += 1
            self.snapshot.meta["targets.json"] = MetaFile(version=self.targets.version)
            self._sign("snapshot", self.snapshot, f"{self.snapshot.version}.snapshot.json")
        self.timestamp.version += 1
        self.timestamp.snapshot_meta = MetaFile(version=self.snapshot.version)
        self._sign("timestamp", self.timestamp, "timestamp.json")
        self.has_news = False

    def _found(self) -> None:
        root = Root(version=1, consistent_snapshot=True)
        for role, signer in self.signers.items():
            root.add_key(signer.public_key, role)
        self._sign("root", root, "1.root.json")
        write_whole(self.folder / "root.json", (self.folder / "1.root.json").read_bytes())

    def _sign(self, role: str, signed: Root | Targets | Snapshot | Timestamp, name: str) -> None:
        signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=LASTS_DAYS[role])
        metadata = Metadata(cast(Root, signed))  # any of the four; the constructor wants to know which
        metadata.sign(self.signers[role])
        write_whole(self.folder / name, metadata.to_bytes())


def _current(folder: Path) -> tuple[Timestamp, Snapshot, Targets]:
    """Follow timestamp → snapshot → targets, so that the files of an interrupted publisher are not seen."""
    if not (folder / "timestamp.json").exists():
        return Timestamp(), Snapshot(), Targets()
    timestamp = cast(Timestamp, _read(folder / "timestamp.json"))
    snapshot = cast(Snapshot, _read(folder / f"{timestamp.snapshot_meta.version}.snapshot.json"))
    targets = cast(Targets, _read(folder / f"{snapshot.meta['targets.json'].version}.targets.json"))
    return timestamp, snapshot, targets


def _read(path: Path) -> Timestamp | Snapshot | Targets:
    try:
        return cast(Timestamp | Snapshot | Targets, Metadata.from_file(str(path)).signed)
    except (RepositoryError, OSError) as error:
        raise BundleError(f"{path} is damaged: {error}; publish into a new folder, with the same keys") from error


def _check_same_keys(folder: Path, keys: Path) -> None:
    """Refuse to sign into a repository that other keys vouch for, before any key is made."""
    if not (folder / "root.json").exists():
        return
    root = cast(Root, Metadata.from_file(str(folder / "root.json")).signed)
    for role in ROLES:
        path = keys / f"{role}.pem"
        signer = CryptoSigner(load_or_create_key(path)) if path.exists() else None
        if signer is None or signer.public_key.keyid not in root.roles[role].keyids:
            raise InputError(f"{folder.parent} is signed with another {role} key than {path}; pass its own with --keys")


def _check_profile(bundle: Bundle, profile: str | None) -> None:
    own = bundle.manifest.profile
    check_profile_id(own, what=str(bundle.folder))
    if profile and profile != own:
        raise InputError(
            f"{bundle.folder} is compiled for {own}, devices of {profile} would refuse it; "
            f"run: fieldlm compile MODEL --profile {profile}"
        )


def _files(bundle: Bundle, release: Release) -> Iterator[tuple[Path, Blob]]:
    yield bundle.folder / MANIFEST, release.manifest
    yield bundle.folder / SIGNATURE, release.signature
    for file in release.files:
        yield bundle.folder / file.path, file


@contextmanager
def _alone(repository: Path) -> Generator[None]:
    """Hold the repository against another publisher on this machine."""
    repository.mkdir(parents=True, exist_ok=True)
    with (repository / ".publish.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another fieldlm publishes into {repository}; wait for it and try again") from error
        yield


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm publish BUNDLE --to REPOSITORY`."""
    parser = terminal.parser("publish", "Offer a bundle to the devices of its profile.")
    parser.add_argument("bundle", type=Path, help="the folder that `fieldlm compile` made")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="REPOSITORY", help="folder; made when it is not there"
    )
    parser.add_argument("--profile", default="", help="refuse unless the bundle is for this profile")
    parser.add_argument("--keys", metavar="DIR", help="the publisher's keys, made on first use; default: as configured")
    parser.add_argument("--min-seq", type=int, help="devices that take this release never go back below that one")
    parser.add_argument("--notes", default="", help="a line for people")
    parser.add_argument(
        "--announce", default="", metavar="mqtt://HOST:PORT", help="tell the devices through this broker"
    )
    parser.add_argument("--fleet", default="default", help="whom to tell")
    parser.add_argument(
        "--at", default="", metavar="URL", help="where devices reach the repository; default: as configured"
    )
    args = parser.parse_args(argv)
    keys = load_config({"keys": args.keys}).keys
    before = newest_release(args.to, open_bundle(args.bundle, digests=False).manifest.profile)
    with terminal.progress(f"publish {args.bundle} to {args.to}"):
        release = publish(args.bundle, args.to, keys=keys, profile=args.profile, min_seq=args.min_seq, notes=args.notes)
    if args.announce:
        pointer = Pointer(seq=release.seq, profile=release.profile, repository=args.at)
        announce(pointer, args.announce, topic=release_topic(args.fleet, release.profile))
    terminal.show(release, _summary(release, args.to, is_known=release == before), as_json=args.json)
    return 0


def _summary(release: Release, repository: Path, *, is_known: bool) -> str:
    if is_known:
        return f"{repository} offers {release.bundle[:12]} already, as release {release.seq} for {release.profile}"
    rows = [(file.role, file.path, f"{file.size / 1e6:.2f}") for file in release.files]
    table = terminal.table(rows, ("role", "file", "MB"))
    return f"{repository} now offers {release.bundle[:12]} as release {release.seq} for {release.profile}\n{table}"
