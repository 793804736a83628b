"""A partial download: what has arrived survives kills and power cuts, and no byte counts that is not there."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

from fieldlm.core.files import disk_errors, write_whole
from fieldlm.core.timing import Throttle, sha256_file
from fieldlm.formats.release import Blob, BlobChunk, read_index

CLAIMED = b"\2"  # in a map: not here, but on its way from the repository
SETTLE_BYTES = 1 << 20  # synced together at most, so that a power cut costs no more


def part_path(folder: Path, sha256: str) -> Path:
    """Return where the blob with that digest grows."""
    return folder / f"{sha256}.part"


def index_path(folder: Path, sha256: str) -> Path:
    """Return where the index of that blob lies meanwhile."""
    return folder / f"{sha256}.index"


def map_path(folder: Path, sha256: str) -> Path:
    """Return where it stands which chunks have arrived: one byte each."""
    return folder / f"{sha256}.map"


def reserve(folder: Path, blob: Blob) -> None:
    """Take the blob's whole size on the disk; raises NoSpaceError when it is not there."""
    path = part_path(folder, blob.sha256)
    with disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(handle, blob.size)
            if blob.size:
                os.posix_fallocate(handle, 0, blob.size)
        finally:
            os.close(handle)


class PartialBlob:
    """A file of the blob's full size, and beside it a map with one byte for each chunk that has arrived."""

    def __init__(self, folder: Path, blob: Blob, index: bytes) -> None:
        self.folder = folder
        self.blob = blob
        self.chunks: Sequence[BlobChunk] = read_index(blob, index)
        self.path = part_path(folder, blob.sha256)
        self._map_path = map_path(folder, blob.sha256)
        if index:
            write_whole(index_path(folder, blob.sha256), index)
        self._unsettled = list[int]()
        self._unsettled_bytes = 0

    def __enter__(self) -> Self:
        with disk_errors(self.path):
            reserve(self.folder, self.blob)
            old_map = self._map_path.read_bytes() if self._map_path.exists() else b""
            old_map = old_map.replace(CLAIMED, b"\0")
            self.here = bytearray(old_map if len(old_map) == len(self.chunks) else bytes(len(self.chunks)))
            self._file = os.open(self.path, os.O_RDWR)
            self._map = os.open(self._map_path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._map, len(self.here))
            os.pwrite(self._map, self.here, 0)
        self.bytes_here = sum(chunk.size for chunk, is_here in zip(self.chunks, self.here, strict=True) if is_here)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.settle()
        finally:
            os.close(self._file)
            os.close(self._map)

    def missing(self) -> list[int]:
        """Return the chunks that have not arrived."""
        return [index for index, is_here in enumerate(self.here) if not is_here]

    def claim(self, start: int, stop: int) -> None:
        """Tell the neighbours, who read the map, that this device fetches these chunks."""
        self._mark(start, stop, CLAIMED)

    def unclaim(self, start: int, stop: int) -> None:
        """Leave what has not arrived to others."""
        self._mark(start, stop, b"\0")

    def _mark(self, start: int, stop: int, mark: bytes) -> None:
        for index in range(start, stop):
            if not self.here[index]:
                os.pwrite(self._map, mark, index)

    def put(self, index: int, data: bytes) -> bool:
        """Store a chunk and remember it, or return False when it is not the one the release names."""
        chunk = self.chunks[index]
        if hashlib.sha256(data).digest() != chunk.digest:
            return False
        if self._unsettled_bytes + chunk.size > SETTLE_BYTES:
            self.settle()
        with disk_errors(self.path):
            os.pwrite(self._file, data, chunk.start)
        self._unsettled.append(index)
        self._unsettled_bytes += chunk.size
        self.bytes_here += 0 if self.here[index] else chunk.size
        self.here[index] = 1
        if self._unsettled_bytes >= SETTLE_BYTES:
            self.settle()
        return True

    def settle(self) -> None:
        """Bring what was put to the disk, and only then into the map."""
        if not self._unsettled:
            return
        with disk_errors(self.path):
            os.fdatasync(self._file)
            for first, last in runs(sorted(set(self._unsettled))):
                os.pwrite(self._map, b"\1" * (last - first), first)
        self._unsettled.clear()
        self._unsettled_bytes = 0

    def recheck(self) -> None:
        """Forget every chunk whose bytes on the disk are not what they were when they came."""
        self.settle()
        pace = Throttle()
        for index, chunk in enumerate(self.chunks):
            data = os.pread(self._file, chunk.size, chunk.start)
            self.here[index] = hashlib.sha256(data).digest() == chunk.digest
            pace.pause()
        os.pwrite(self._map, self.here, 0)
        self.bytes_here = sum(chunk.size for chunk, is_here in zip(self.chunks, self.here, strict=True) if is_here)

    def is_whole(self) -> bool:
        """Say whether every chunk is here and the whole file is what the release names; reads all of it."""
        return all(self.here) and sha256_file(self.path) == self.blob.sha256

    def finished(self) -> Path:
        """Sync the file and return its path."""
        self.settle()
        os.fsync(self._file)
        return self.path

    def forget(self) -> None:
        """Remove all that is on its way."""
        forget(self.folder, self.blob.sha256)


def forget(folder: Path, sha256: str) -> None:
    """Remove what has arrived of a blob."""
    for path in (part_path(folder, sha256), map_path(folder, sha256), index_path(folder, sha256)):
        path.unlink(missing_ok=True)


def runs(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return sorted numbers as half-open ranges."""
    numbers = list(indices)
    cuts = [at for at, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise([0, *cuts, len(numbers)]) if b > a]
