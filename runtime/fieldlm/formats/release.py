"""A release: what a repository offers to the devices of one profile, and how a repository is laid out.

    repository/                       a static folder: any web server, a bucket, a USB stick
      tuf/                            python-tuf metadata; timestamp.json is replaced last
      releases/<profile>/<seq>.json   the releases, the only TUF targets
      blobs/sha256/ab/abcd…           every file of every bundle, named by its digest, immutable

A release is small and signed through TUF; it names the manifest by digest, and with it every byte of the bundle. A
blob of more than a chunk comes with an index, a blob itself: where each chunk ends and its digest. So a device goes on
where it stopped, fetches a damaged chunk again and nothing else, and takes what it has under another name (a tensor
that did not change) from there. `seq` only grows; `min_seq` is the lowest release that a device may go back to once
it has committed this one. To whom a release is offered stands in the TUF metadata, so that it can change.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, get_args

import msgspec

from fieldlm.core.errors import BundleError
from fieldlm.core.files import CHUNK_BYTES, sha256_bytes
from fieldlm.formats.bundle import Role
from fieldlm.formats.growth import Growing, check_understood, is_readable

FORMAT = "fieldlm.release/1"
MAX_SEQ = 2**63 - 1  # what SQLite holds
MAX_CHUNK_BYTES = 8 << 20  # one chunk is held in memory
MAX_CHUNKS = 1 << 20  # a terabyte in chunks of a megabyte; its index takes 38 MB
ENTRY_BYTES = 36  # of an index: 4 for the size of a chunk, little-endian, and 32 for its digest

DAYS = "fieldlm-days"
"""In TUF's timestamp: for how many days it was signed. Without it, as up to version 0.1, for 365."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROFILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class BlobChunk(NamedTuple):
    """A stretch of a file, and the SHA-256 of its bytes."""

    start: int
    size: int
    digest: bytes


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable bytes: their digest, their number and, where they are more than a chunk, their index's digest."""

    sha256: str
    size: int
    chunks: int = 1
    index: str = ""

    @property
    def index_blob(self) -> "Blob":
        """The blob that lists the chunks of this one."""
        return Blob(sha256=self.index, size=self.chunks * ENTRY_BYTES)


class ReleaseFile(Blob, frozen=True, kw_only=True):
    """One file of the bundle: where it lies in the bundle's folder and what it is for."""

    path: str
    role: str


class Release(Growing, frozen=True, kw_only=True):
    """One bundle, offered to one profile. What a later minor version adds is ignored unless it must be understood.

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


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """To whom a release is offered, as the `custom` field of its TUF target says.

    `share_ppm` of a million devices, by their `place` (signed JSON has no fractions); from `since` on (Unix seconds),
    each one at a moment of its own within `spread_s`. Nobody new takes a paused release, nobody ever a pulled one.
    Before it is switched to, it answers `shadow` requests in the shadow, for `shadow_s` seconds at most.
    """

    share_ppm: int = 1_000_000
    salt: str = ""
    since: int = 0
    spread_s: int = 0
    paused: bool = False
    pulled: str = ""
    shadow: int = 0
    shadow_s: int = 86_400

    @property
    def is_open(self) -> bool:
        """Whether anybody may take the release now."""
        return not self.paused and not self.pulled

    def reaches(self, device: str) -> bool:
        """Say whether this device is among those that may take the release; without a name, only when all are."""
        if not self.is_open:
            return False
        return self.share_ppm >= 1_000_000 or (bool(device) and place(device, self.salt) * 1e6 < self.share_ppm)

    def wait_s(self, device: str, now: float) -> float:
        """Return how long this device waits so that not all start at once; a clock behind `since` is no reason to."""
        start = self.since + self.spread_s * place(device, f"{self.salt}start")
        return max(0.0, start - now) if now >= self.since else 0.0


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


def place(device: str, salt: str) -> float:
    """Return the device's place in the queue, 0 to 1; another `salt` has other first ones."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{device}".encode()).digest()[:8]) / 2**64


def role_name(profile: str) -> str:
    """Return the TUF role that signs the releases of `profile`."""
    return f"profile-{profile}"


def describe_blob(path: Path, sizes: Iterable[int] | None = None) -> tuple[Blob, bytes]:
    """Read the file once and return what a release says of it, and its index; empty when it is one chunk.

    `sizes` says how long each chunk is; without it, and past its end, a chunk is a megabyte.
    """
    whole, entries, total, wanted = hashlib.sha256(), list[bytes](), 0, iter(sizes or ())
    with path.open("rb") as file:
        while chunk := file.read(next(wanted, CHUNK_BYTES)):
            whole.update(chunk)
            entries.append(len(chunk).to_bytes(4, "little") + hashlib.sha256(chunk).digest())
            total += len(chunk)
    index = b"".join(entries) if len(entries) > 1 else b""
    blob = Blob(
        sha256=whole.hexdigest(),
        size=total,
        chunks=max(1, len(entries)),
        index=sha256_bytes(index) if index else "",
    )
    return blob, index


def read_index(blob: Blob, index: bytes) -> Sequence[BlobChunk]:
    """Return the chunks of `blob` in order; raises BundleError when `index` does not add up to it."""
    if not blob.index:
        return (BlobChunk(0, blob.size, bytes.fromhex(blob.sha256)),)
    if sha256_bytes(index) != blob.index or len(index) != blob.chunks * ENTRY_BYTES:
        raise BundleError(f"the index of blob {blob.sha256} is damaged; publish the bundle again")
    chunks, start = list[BlobChunk](), 0
    for at in range(0, len(index), ENTRY_BYTES):
        size = int.from_bytes(index[at : at + 4], "little")
        if not 1 <= size <= MAX_CHUNK_BYTES:
            raise BundleError(f"the index of blob {blob.sha256} has a chunk of {size} bytes; publish the bundle again")
        chunks.append(BlobChunk(start, size, index[at + 4 : at + ENTRY_BYTES]))
        start += size
    if start != blob.size:
        raise BundleError(f"the index of blob {blob.sha256} covers {start} of {blob.size} bytes; publish it again")
    return chunks


def check_profile_id(profile: str, *, what: str) -> None:
    """Raise BundleError unless `profile` can be a folder name in a repository and a level of an MQTT topic."""
    if not _PROFILE.fullmatch(profile):
        raise BundleError(f"{what} has a bad profile id {profile!r}; want lower-case letters, digits, '.', '_' and '-'")


def parse_release(data: bytes, *, what: str) -> Release:
    """Read a release that may come from anywhere; raises BundleError with the field that is wrong."""
    try:
        release = msgspec.json.decode(data, type=Release)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{what} is not a release: {error}") from error
    if not is_readable(release.format, FORMAT):
        raise BundleError(f"{what} has format {release.format!r}, this version reads {FORMAT!r}; update fieldlm")
    check_understood(release, what=what, error=BundleError, known=get_args(Role))
    check_profile_id(release.profile, what=what)
    if not 1 <= release.seq <= MAX_SEQ or not 0 <= release.min_seq <= release.seq:
        raise BundleError(f"{what} has seq {release.seq} and min_seq {release.min_seq}; want 0 ≤ min_seq ≤ seq ≥ 1")
    for blob in release.blobs:
        _check_blob(blob, what=what)
    _check_names(release, what=what)
    return release


def _check_blob(blob: Blob, *, what: str) -> None:
    if not all(_DIGEST.fullmatch(digest) for digest in (blob.sha256, blob.index or blob.sha256)):
        raise BundleError(f"{what} has a bad digest in blob {blob.sha256[:64]!r}")
    most = MAX_CHUNKS if blob.index else 1
    if not 0 <= blob.size <= blob.chunks * MAX_CHUNK_BYTES or not 1 <= blob.chunks <= min(most, max(1, blob.size)):
        raise BundleError(f"{what} has {blob.chunks} chunks for the {blob.size} bytes of blob {blob.sha256}")


def _check_names(release: Release, *, what: str) -> None:
    if release.bundle != release.manifest.sha256:
        raise BundleError(f"{what} names bundle {release.bundle!r}, its manifest is {release.manifest.sha256!r}")
    for file in release.files:
        pure = PurePosixPath(file.path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in file.path or "\0" in file.path:
            raise BundleError(f"{what} names a file outside its folder: {file.path!r}")
    if len({file.path for file in release.files}) != len(release.files):
        raise BundleError(f"{what} names a file twice")
