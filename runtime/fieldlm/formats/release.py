"""A release: what a repository offers to the devices of one profile, and how a repository is laid out.

    repository/                       a static folder: any web server, a bucket, a USB stick
      tuf/                            python-tuf metadata; timestamp.json is replaced last
      releases/<profile>/<seq>.json   the releases, the only TUF targets
      blobs/sha256/ab/abcd…           every file of every bundle, named by its digest, immutable

A release is small and signed through TUF; it names the manifest by digest, and with it every byte of the bundle. Each
blob comes with the digest of each of its chunks, so that a device goes on where it stopped, fetches a damaged chunk
again and nothing else, and never fetches a blob that it holds. `seq` only grows; `min_seq` is the lowest release that
a device may go back to once it has committed this one.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath

import msgspec

from fieldlm.formats.bundle import Role
from fieldlm.formats.errors import BundleError
from fieldlm.formats.files import CHUNK_BYTES

FORMAT = "fieldlm.release/1"
MAX_SEQ = 2**63 - 1  # what SQLite holds
MAX_CHUNK_BYTES = 64 << 20  # one chunk is held in memory

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROFILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable bytes: their digest, their number, and the digest of each chunk in order."""

    sha256: str
    size: int
    chunks: tuple[str, ...]


class ReleaseFile(Blob, frozen=True, kw_only=True):
    """One file of the bundle: where it lies in the bundle's folder and what it is for."""

    path: str
    role: Role


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle, offered to one profile. Unknown fields of a later minor version are ignored, a later FORMAT is not.

    `bundle` is the bundle's id and the digest of its manifest; `signer` is the key id that the manifest is signed with.
    """

    format: str
    seq: int
    profile: str
    bundle: str
    signer: str
    manifest: Blob
    signature: Blob
    files: tuple[ReleaseFile, ...]
    min_seq: int = 0
    chunk_bytes: int = CHUNK_BYTES
    model: str = ""
    notes: str = ""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything a device has to hold, the small signed parts first."""
        return (self.manifest, self.signature, *self.files)

    @property
    def size(self) -> int:
        """Bytes of the whole bundle, manifest and signature included."""
        return sum(blob.size for blob in self.blobs)


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """The retained MQTT message that says there is something new. A hint: nothing in it is believed.

    An empty `repository` means the one the device is configured with.
    """

    seq: int
    profile: str
    repository: str = ""


def blob_path(sha256: str) -> str:
    """Return where a repository keeps the blob with that digest."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def release_path(profile: str, seq: int) -> str:
    """Return the TUF target path of a release; it lies under `releases/`."""
    return f"{profile}/{seq}.json"


def describe_blob(path: Path, *, chunk_bytes: int = CHUNK_BYTES) -> Blob:
    """Read the file once and return its size, its digest and the digests of its chunks."""
    whole, chunks, size = hashlib.sha256(), list[str](), 0
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            whole.update(chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
            size += len(chunk)
    return Blob(sha256=whole.hexdigest(), size=size, chunks=tuple(chunks))


def check_profile_id(profile: str, *, what: str) -> None:
    """Raise BundleError unless `profile` can be a folder name in a repository and a level of an MQTT topic."""
    if not _PROFILE.fullmatch(profile):
        raise BundleError(f"{what} has a bad profile id {profile!r}; want lower-case letters, digits, '.', '_' and '-'")


def parse_release(data: bytes, *, what: str) -> Release:
    """Read a release that may come from anywhere; raises BundleError with the field that is wrong."""
    try:
        release = msgspec.json.decode(data, type=Release)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{what} is not a release: {error}") from error
    if release.format != FORMAT:
        raise BundleError(f"{what} has format {release.format!r}, this version reads {FORMAT!r}; update fieldlm")
    check_profile_id(release.profile, what=what)
    if not 1 <= release.seq <= MAX_SEQ or not 0 <= release.min_seq <= release.seq:
        raise BundleError(f"{what} has seq {release.seq} and min_seq {release.min_seq}; want 0 ≤ min_seq ≤ seq ≥ 1")
    if not 1 <= release.chunk_bytes <= MAX_CHUNK_BYTES:
        raise BundleError(f"{what} has chunks of {release.chunk_bytes} bytes; want 1 to {MAX_CHUNK_BYTES}")
    for blob in release.blobs:
        _check_blob(blob, release.chunk_bytes, what=what)
    _check_names(release, what=what)
    return release


def _check_blob(blob: Blob, chunk_bytes: int, *, what: str) -> None:
    if not all(_DIGEST.fullmatch(digest) for digest in (blob.sha256, *blob.chunks)):
        raise BundleError(f"{what} has a bad digest in blob {blob.sha256[:64]!r}")
    if not 0 <= blob.size <= MAX_SEQ or len(blob.chunks) != -(-blob.size // chunk_bytes):
        raise BundleError(f"{what} has {len(blob.chunks)} chunks for the {blob.size} bytes of blob {blob.sha256}")


def _check_names(release: Release, *, what: str) -> None:
    if release.bundle != release.manifest.sha256:
        raise BundleError(f"{what} names bundle {release.bundle!r}, its manifest is {release.manifest.sha256!r}")
    for file in release.files:
        pure = PurePosixPath(file.path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in file.path or "\0" in file.path:
            raise BundleError(f"{what} names a file outside its folder: {file.path!r}")
    if len({file.path for file in release.files}) != len(release.files):
        raise BundleError(f"{what} names a file twice")
