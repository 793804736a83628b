"""Which release a repository really offers: The Update Framework, from a root that was handed over at adoption.

python-tuf does the verification and keeps the newest metadata it has seen, so that neither old, nor mixed, nor
forged metadata is taken. `root.json` is the anchor; it is copied into the state folder the first time and can be
rotated by the repository from then on. Expiry is checked against the device's clock.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, TargetFile, Targets  # pyright: ignore[reportPrivateImportUsage] their re-export
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from fieldlm.formats.errors import LinkError, TrustError
from fieldlm.formats.files import disk_errors, sha256_bytes, write_whole
from fieldlm.formats.release import Release, parse_release, release_path
from fieldlm.runtime.fetch import MissingFileError, Source

READ_BYTES = 64 << 10


class Trust:
    """The anchor of one device and the newest metadata that it has verified, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anchor = folder / "root.json"
        self.metadata = folder / "metadata"

    def adopt(self, root: Path) -> None:
        """Trust the repository that `root` stands for; another root than before starts from nothing."""
        with disk_errors(root):
            data = root.read_bytes()
        _check_root(data, root)
        if self.anchor.exists() and self.anchor.read_bytes() == data:
            return
        shutil.rmtree(self.metadata, ignore_errors=True)
        write_whole(self.anchor, data)

    @property
    def id(self) -> str:
        """Names the anchor; empty before adoption."""
        return sha256_bytes(self.anchor.read_bytes())[:16] if self.anchor.exists() else ""

    def latest(self, source: Source, *, profile: str) -> Release | None:
        """Return the newest release for `profile`, verified from the anchor down; None when there is none.

        Raises TrustError when anything does not fit together, LinkError when the repository is away.
        """
        if not self.anchor.exists():
            raise TrustError(
                f"no trusted root in {self.folder}; hand over the repository's root.json: --trust root.json"
            )
        try:
            return self._latest(source, profile)
        except ExpiredMetadataError as error:
            raise TrustError(
                f"the metadata of {source.name} has expired: {error}; publish again, or set this device's clock"
            ) from error
        except DownloadLengthMismatchError as error:
            raise TrustError(f"{source.name} hands out an oversized file: {error}") from error
        except RepositoryError as error:
            raise TrustError(f"the metadata of {source.name} does not verify: {error}") from error
        except DownloadError as error:
            raise LinkError(f"{source.name} cannot be read: {error}; try again later") from error

    def _latest(self, source: Source, profile: str) -> Release | None:
        with disk_errors(self.metadata):
            self.metadata.mkdir(parents=True, exist_ok=True)
            updater = Updater(
                metadata_dir=str(self.metadata),
                metadata_base_url="tuf/",
                target_dir=str(self.metadata),
                target_base_url="releases/",
                fetcher=_SourceFetcher(source),
                # Releases are never rewritten, so their plain name is as good as one with the digest in it.
                config=UpdaterConfig(prefix_targets_with_hash=False),
                bootstrap=self.anchor.read_bytes(),
            )
            updater.refresh()
            # The public client has no list of targets; this is the file that refresh() has just verified and stored.
            offered = Metadata[Targets].from_file(str(self.metadata / "targets.json")).signed.targets
            seq = max(_seqs(offered, profile), default=0)
            if not seq:
                return None
            target = updater.get_targetinfo(release_path(profile, seq))
            assert target is not None, "the list and the client read the same metadata"
            path = Path(updater.download_target(target))
            return _read_release(path, profile=profile, seq=seq)


def _seqs(targets: Mapping[str, TargetFile], profile: str) -> Iterator[int]:
    for path in targets:
        folder, _, name = path.rpartition("/")
        if folder == profile and name.removesuffix(".json").isdecimal() and name.endswith(".json"):
            yield int(name.removesuffix(".json"))


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
    """Let python-tuf read through a Source. LinkErrors pass through it untouched."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            with self._source.open(url) as reader:
                while part := reader.read(READ_BYTES):
                    yield part
        except MissingFileError as error:
            raise DownloadHTTPError(str(error), 404) from error
