"""Resumable download, chunk by chunk: from the files that are here, from neighbours, from the repository.

The space for everything is taken before the first byte. What has arrived is remembered in a map beside the partial
file, so that a kill or a power cut costs at most a megabyte. Each chunk is checked as it comes, a bad one is asked for
again alone, and the whole digest is checked at the end. Nobody who hands out bytes needs trust: digests come from a
signed release.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fieldlm.blobs.partial_blob import PartialBlob, index_path, part_path, reserve, runs
from fieldlm.blobs.sources import (
    BlobSource,
    ByteReader,
    FolderSource,
    MissingFileError,
    PacedSource,
    StoppedError,
    TokenBucket,
)
from fieldlm.blobs.store import Blobs
from fieldlm.blobs.tensor_chunks import borrow
from fieldlm.core import timing
from fieldlm.core.errors import NoSpaceError, TrustError, UnavailableError
from fieldlm.core.files import CHUNK_BYTES, disk_errors, make_folder, sha256_bytes
from fieldlm.core.hours import HourWindow
from fieldlm.formats.release import Blob, Release, blob_path

__all__ = [
    "BlobSource",
    "ByteReader",
    "FetchPolicy",
    "FolderSource",
    "MissingFileError",
    "Neighbours",
    "fetch",
]  # fmt: skip

RESERVE_BYTES = 64_000_000  # left free for the spool and the journal
ROUNDS = 3  # fruitless rounds over the missing chunks before giving up

OnBytes = Callable[[int], None]
"""Told how many bytes of a part are here."""


class Neighbours(Protocol):
    """Others nearby who may have what is wanted, and who want the same."""

    def fill(self, part: PartialBlob, source: BlobSource, on_bytes: OnBytes) -> None:
        """Bring what can be had together: from each other, and each a share from `source`.

        Raises UnavailableError when `source` is needed and away; others' faults are no errors.
        """
        ...


@dataclass(frozen=True)
class FetchPolicy:
    """How a device fetches: how much of the line it takes, 0 for all, at which hours, and whom it asks first."""

    most_bytes_s: float = 0
    window: HourWindow | None = None
    neighbours: Neighbours | None = None

    def pace(self, source: BlobSource) -> BlobSource:
        if not self.most_bytes_s and not self.window:
            return source
        bucket = TokenBucket(self.most_bytes_s) if self.most_bytes_s else None
        return PacedSource(source, bucket=bucket, window=self.window)


def fetch(
    source: BlobSource,
    release: Release,
    blobs: Blobs,
    *,
    wanted: Sequence[Blob],
    manner: FetchPolicy | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    reserve_bytes: int = RESERVE_BYTES,
) -> None:
    """Bring every one of the `wanted` blobs that is not here already; goes on where an earlier call stopped.

    `on_progress` gets bytes here and bytes in all. Raises NoSpaceError before the first byte when the disk is too
    small, UnavailableError when the source goes away, TrustError when what it hands out is not what the release names.
    """
    manner = manner or FetchPolicy()
    paced = manner.pace(source)
    named = {blob.sha256: blob for blob in wanted}.values()
    missing = [blob for blob in named if not blobs.holds(blob.sha256, blob.size, digest=timing.sha256_file)]
    folder = blobs.folder / "fetch"
    _take_space(folder, missing, release, reserve_bytes)
    done, total = 0, sum(blob.size for blob in missing)
    with ExitStack() as stack:
        parts = [stack.enter_context(PartialBlob(folder, blob, _index(source, folder, blob))) for blob in missing]
        for part in parts:
            base = done
            _fill(paced, part, blobs, manner, lambda here, base=base: on_progress(base + here, total))
            blobs.take(part.finished(), part.blob.sha256)
            part.forget()
            done += part.blob.size


def _take_space(folder: Path, missing: Sequence[Blob], release: Release, reserve_bytes: int) -> None:
    with disk_errors(folder):
        make_folder(folder)
    need, free = _need_and_free(folder, missing)
    if missing and need + reserve_bytes > free:
        # What an earlier release left behind half-fetched goes first; nothing that a slot names is touched.
        named = {blob.sha256 for blob in release.blobs}
        for path in folder.iterdir():
            if path.name.partition(".")[0] not in named:
                path.unlink(missing_ok=True)
        need, free = _need_and_free(folder, missing)
    if missing and need + reserve_bytes > free:
        raise NoSpaceError(
            f"the update needs {max(need, 0) / 1e6:.1f} MB and {reserve_bytes / 1e6:.0f} MB to spare, the disk of "
            f"{folder} has {free / 1e6:.1f} MB free; free {(need + reserve_bytes - free) / 1e6:.1f} MB and try again"
        )
    for blob in missing:
        reserve(folder, blob)


def _need_and_free(folder: Path, missing: Sequence[Blob]) -> tuple[int, int]:
    parts = [part_path(folder, blob.sha256) for blob in missing]
    allocated = sum(path.stat().st_blocks * 512 for path in parts if path.exists())
    indices = sum(blob.index_blob.size for blob in missing if blob.index)
    disk = os.statvfs(folder)
    return sum(blob.size for blob in missing) + indices - allocated, disk.f_bavail * disk.f_frsize


def _index(source: BlobSource, folder: Path, blob: Blob) -> bytes:
    """Return the list of the blob's chunks, from an earlier call or from the source."""
    if not blob.index:
        return b""
    path = index_path(folder, blob.sha256)
    kept = path.read_bytes() if path.exists() else b""
    if sha256_bytes(kept) == blob.index:
        return kept
    wanted = blob.index_blob
    for _ in range(ROUNDS):
        with source.open(blob_path(wanted.sha256), 0, wanted.size) as reader:
            data = reader.read(wanted.size)
        if sha256_bytes(data) == wanted.sha256:
            return data
    raise TrustError(f"{source.name} hands out another index for blob {blob.sha256} than the release names")


def _fill(source: BlobSource, part: PartialBlob, blobs: Blobs, manner: FetchPolicy, on_bytes: OnBytes) -> None:
    if not any(part.here):
        # The likeliest first: another version of the same file has nearly its size.
        borrow(part, sorted(blobs.large(CHUNK_BYTES), key=lambda path: abs(path.stat().st_size - part.blob.size)))
        on_bytes(part.bytes_here)
    if manner.neighbours and part.blob.size >= CHUNK_BYTES and part.missing():
        manner.neighbours.fill(part, source, on_bytes)
    fruitless = 0
    while not part.is_whole():
        if all(part.here):
            part.recheck()
            if all(part.here):
                part.forget()
                raise TrustError(f"the release contradicts itself about blob {part.blob.sha256}; publish it again")
        before = sum(part.here)
        try:
            for start, stop in _stretches(source, part):
                pull(source, part, start, stop, on_bytes)
                if not source.has_ranges:
                    break  # the rest comes in one go
        except (MissingFileError, StoppedError):
            raise
        except UnavailableError:
            if fruitless + 1 >= ROUNDS:
                raise
        fruitless = 0 if sum(part.here) > before else fruitless + 1
        if fruitless >= ROUNDS:
            raise TrustError(
                f"{source.name} hands out other bytes for blob {part.blob.sha256} than the release names "
                f"(chunk {part.missing()[0]}, asked {ROUNDS} times); publish the bundle again"
            )


def _stretches(source: BlobSource, part: PartialBlob) -> list[tuple[int, int]]:
    """Return what to ask for; a source that begins at the start each time is read through once."""
    gaps = runs(part.missing())
    return gaps if source.has_ranges else [(gaps[0][0], gaps[-1][1])]


def pull(source: BlobSource, part: PartialBlob, start: int, stop: int, on_bytes: OnBytes) -> None:
    """Read chunks `start` to `stop`, and keep those that are what they should be."""
    first, last = part.chunks[start].start, part.chunks[stop - 1].start + part.chunks[stop - 1].size
    work = timing.Throttle()
    with source.open(blob_path(part.blob.sha256), first, last) as reader:
        for index in range(start, stop):
            data = reader.read(part.chunks[index].size)
            if not part.here[index] and part.put(index, data):
                on_bytes(part.bytes_here)
            work.pause()
