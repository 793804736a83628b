"""TUF client (The Update Framework): which release a repository really offers, from a root handed over at adoption.

python-tuf does the verification and keeps the newest metadata it has seen, so that neither old, nor mixed, nor
forged metadata is taken. `root.json` is the anchor; it is copied into the state folder the first time and can be
rotated by the repository from then on. Each profile has a role of its own, and its metadata says to whom a release is
offered.

Expiry is checked against the device's clock, unless that cannot be right: before 2025 and after 2045 nothing expires.
Who can set a clock to 2100 can set it to 1970, so that nothing is won by believing it, and a device that never updates
again is lost. What keeps old releases out are their numbers, which only grow, and those need no clock.
"""

# python-tuf documents these names, and re-exports them without saying so to type checkers.
# pyright: reportPrivateImportUsage=false

import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import (
    Metadata,
    Snapshot,
    TargetFile,
    Targets,
)
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from fieldlm.blobs.sources import BlobSource, MissingFileError
from fieldlm.core.errors import TrustError, UnavailableError
from fieldlm.core.files import disk_errors, sha256_bytes, write_whole
from fieldlm.core.logs import logger
from fieldlm.formats.release import Offer, Release, parse_release, release_path, role_name
from fieldlm.hardware.clock import OLDEST_CLOCK_MS, is_credible

log = logger(__name__)

READ_BYTES = 64 << 10


class Trust:
    """The anchor of one device and the newest metadata that it has verified, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anchor = folder / "root.json"
        self.metadata = folder / "metadata"
        self.waits = ""
        """What the repository holds that is newer than what it offers to this device, and why, when last looked at."""
        self.pulled: dict[int, str] = {}  # releases that the publisher took back, and why, when last looked at
        # Releases are never rewritten, so their plain name is as good as one with the digest in it.
        self.has_digest_in_name = False

    def adopt(self, root: Path) -> None:
        """Trust the repository that `root` stands for; another root than before starts from nothing.

        A later root that this device has been led to by the one it has is no other.
        """
        with disk_errors(root):
            data = root.read_bytes()
        _check_root(data, root)
        known = [self.anchor, *(self.metadata / "root_history").glob("*.root.json")]
        if self.anchor.exists() and any(path.read_bytes() == data for path in known):
            return
        shutil.rmtree(self.metadata, ignore_errors=True)
        write_whole(self.anchor, data)

    @property
    def id(self) -> str:
        """Names the anchor; empty before adoption."""
        return sha256_bytes(self.anchor.read_bytes())[:16] if self.anchor.exists() else ""

    def latest(self, source: BlobSource, *, profile: str, device: str = "") -> Release | None:
        """Return the newest release that is offered to this device of `profile`, verified from the anchor down.

        None when there is none. A device without a name gets what all get. Raises TrustError when anything does not
        fit together, UnavailableError when the repository is away.
        """
        offer = self.offered(source, profile=profile, device=device)
        return offer[0] if offer else None

    def offered(self, source: BlobSource, *, profile: str, device: str = "") -> tuple[Release, Offer] | None:
        """Return what `latest` does, and how it is offered."""
        with self._errors(source), disk_errors(self.metadata):
            updater = self._updater(source)
            updater.refresh()
            known = self._offers(updater, profile)
            self.pulled = {seq: offer.pulled for seq, offer in known.items() if offer.pulled}
            offers = {seq: offer for seq, offer in known.items() if offer.reaches(device)}
            self.waits = _waits(known, profile, above=max(offers, default=0))
            if not offers:
                return None
            seq = max(offers)
            target = updater.get_targetinfo(release_path(profile, seq))
            assert target is not None, "the list and the client read the same metadata"
            path = Path(updater.download_target(target))
            return _read_release(path, profile=profile, seq=seq), offers[seq]

    def refresh(self, source: BlobSource) -> None:
        """Bring the top-level metadata up to date. Raises like `latest`."""
        with self._errors(source), disk_errors(self.metadata):
            self._updater(source).refresh()

    def read_target(self, source: BlobSource, path: str) -> bytes | None:
        """Return the verified file at `path` under `releases/`, None when nobody who may has signed one."""
        with self._errors(source), disk_errors(self.metadata):
            updater = self._updater(source)
            target = updater.get_targetinfo(path)
            if target is None:
                return None
            file = Path(updater.download_target(target))
            try:
                return file.read_bytes()
            finally:
                file.unlink()

    @contextmanager
    def _errors(self, source: BlobSource) -> Generator[None]:
        if not self.anchor.exists():
            raise TrustError(
                f"no trusted root in {self.folder}; hand over the repository's root.json: --trust root.json"
            )
        try:
            yield
        except ExpiredMetadataError as error:
            raise TrustError(
                f"the metadata of {source.name} has expired: {error}, and this device's clock says {_today()}; its "
                "publisher renews it with: fieldlm publish --refresh --to REPOSITORY, unless the clock is wrong"
            ) from error
        except DownloadLengthMismatchError as error:
            raise TrustError(f"{source.name} hands out an oversized file: {error}") from error
        except RepositoryError as error:
            raise TrustError(f"the metadata of {source.name} does not verify: {error}") from error
        except DownloadError as error:
            raise UnavailableError(f"{source.name} cannot be read: {error}; try again later") from error

    def _updater(self, source: BlobSource) -> Updater:
        self.metadata.mkdir(parents=True, exist_ok=True)
        updater = Updater(
            metadata_dir=str(self.metadata),
            metadata_base_url="tuf/",
            target_dir=str(self.metadata),
            target_base_url="releases/",
            fetcher=_SourceFetcher(source),
            config=UpdaterConfig(prefix_targets_with_hash=self.has_digest_in_name),
            bootstrap=self.anchor.read_bytes(),
        )
        if not is_credible(time.time()):
            log.warning(f"the clock says {_today()}, which cannot be: no release counts as expired")
            # python-tuf offers no other way to tell it the time.
            verified = updater._trusted_set  # pyright: ignore[reportPrivateUsage]
            verified.reference_time = datetime.fromtimestamp(OLDEST_CLOCK_MS / 1000, UTC)
        return updater

    def _offers(self, updater: Updater, profile: str) -> dict[int, Offer]:
        """Read the releases of a profile out of the metadata that has just been verified and stored."""
        top = Metadata[Targets].from_file(str(self.metadata / "targets.json")).signed
        name = role_name(profile)
        if not (top.delegations and top.delegations.roles and name in top.delegations.roles):
            return {}
        # The public client has no list of targets; looking for one makes it verify and store the role's metadata.
        updater.get_targetinfo(release_path(profile, 0))
        snapshot = Metadata[Snapshot].from_file(str(self.metadata / "snapshot.json")).signed
        role = Metadata[Targets].from_file(str(self.metadata / f"{name}.json")).signed
        if role.version != snapshot.meta[f"{name}.json"].version:
            raise TrustError(f"the releases of {profile} are not those that the repository's snapshot names")
        return {seq: _offer(target) for seq, target in _seqs(role.targets, profile)}


def _waits(known: Mapping[int, Offer], profile: str, *, above: int) -> str:
    """Say why this device is not offered the newest release of all, in words for its operator; "" where it is.

    How to offer it to all stands there only while nobody is offered it: what comes in waves is not to be hurried.
    """
    seq = max(known, default=0)
    if seq <= above:
        return ""
    offer = known[seq]
    if offer.pulled:
        return f"release {seq} of {profile} was pulled: {offer.pulled}"
    if offer.paused:
        why = "paused by its publisher; this device's turn comes once that goes on"
    elif offer.share_ppm:
        share = f"offered to {offer.share_ppm / 10_000:g} % of its devices so far and not to this one"
        why = f"{share}; its turn comes with a later wave of the rollout, or when its publisher offers it to more"
    else:
        start = "in waves with: fieldlm rollout start --to REPOSITORY"
        promote = f"to all with: fieldlm release promote {profile} --share 100 --to REPOSITORY"
        why = f"offered to none of its devices yet; {start}; {promote}"
    return f"release {seq} of {profile} waits, {why}"


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def _offer(target: TargetFile) -> Offer:
    try:
        return msgspec.convert(target.unrecognized_fields.get("custom") or {}, Offer)
    except msgspec.ValidationError as error:
        raise TrustError(f"nobody can tell to whom {target.path} is offered: {error}; publish it again") from error


def _seqs(targets: Mapping[str, TargetFile], profile: str) -> Iterator[tuple[int, TargetFile]]:
    for path, target in targets.items():
        folder, _, name = path.rpartition("/")
        if folder == profile and name.removesuffix(".json").isdecimal() and name.endswith(".json"):
            yield int(name.removesuffix(".json")), target


def _read_release(path: Path, *, profile: str, seq: int) -> Release:
    data = path.read_bytes()
    path.unlink()
    what = f"release {profile}/{seq}"
    release = parse_release(data, what=what)
    if (release.profile, release.seq) != (profile, seq):
        raise TrustError(f"{what} says it is {release.profile}/{release.seq}; publish it again")
    return release


def _check_root(data: bytes, path: Path) -> None:
    try:
        metadata = Metadata.from_bytes(data)
        metadata.verify_delegate("root", metadata)
    except (RepositoryError, ValueError, TypeError) as error:
        raise TrustError(f"{path} is not a TUF root: {error}; take the one in the publisher's keys folder") from error


class _SourceFetcher(FetcherInterface):
    """Let python-tuf read through a Source. UnavailableErrors pass through it untouched."""

    def __init__(self, source: BlobSource) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            with self._source.open(url) as reader:
                while part := reader.read(READ_BYTES):
                    yield part
        except MissingFileError as error:
            raise DownloadHTTPError(str(error), 404) from error
