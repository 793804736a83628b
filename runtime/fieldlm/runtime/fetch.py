"""Bring blobs here, chunk by chunk, from a folder or a web server.

What has arrived is remembered in a map beside the partial file, so that a kill or a power cut costs at most one chunk.
Each chunk is checked as it comes, a bad one is asked for again alone, and the whole digest is checked at the end. The
source needs no trust: digests come from a signed release.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import urllib3

from fieldlm.formats.errors import InputError, LinkError, NoSpaceError, TrustError
from fieldlm.formats.files import disk_errors, make_folder, sha256_file
from fieldlm.formats.release import Blob, Release, blob_path
from fieldlm.runtime.blobs import Blobs

RESERVE_BYTES = 64_000_000  # left free for the spool and the journal
ROUNDS = 3  # fruitless rounds over the missing chunks before giving up
CONNECT_S, READ_S = 10.0, 30.0


class MissingFileError(LinkError):
    """The repository answers, and has no such file."""


class Source(Protocol):
    """Where a repository is read from. `moved` counts every payload byte that came from there."""

    name: str
    moved: int

    def open(self, path: str, start: int = 0, stop: int | None = None) -> AbstractContextManager["Reader"]:
        """Open bytes `start` to `stop` of the file at `path`; raises MissingFileError or LinkError."""
        ...


class Reader(Protocol):
    """Bytes on their way."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end; raises LinkError when the source goes away."""
        ...


def open_source(repository: str) -> Source:
    """Open the repository at a folder, a file:// or an http(s):// address; nothing is read yet."""
    scheme = urlsplit(repository).scheme
    if scheme in ("http", "https"):
        return WebSource(repository)
    if scheme == "file":
        return FolderSource(Path(url2pathname(urlsplit(repository).path)))
    if scheme and "://" in repository:
        raise InputError(
            f"repository {repository!r} has an unknown scheme; want a folder, file://, http:// or https://"
        )
    return FolderSource(Path(repository))


class FolderSource:
    """A repository in a folder: a disk, a USB stick, a share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)
        self.moved = 0

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Generator[Reader]:
        """Open bytes `start` to `stop` of the file."""
        del stop
        try:
            file = (self.folder / path).open("rb")
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.folder} has no {path}; is it a repository?") from error
        except OSError as error:
            raise LinkError(f"{self.folder / path} cannot be read: {error.strerror or error}") from error
        with file:
            file.seek(start)
            yield _Counted(self, file.read)


class WebSource:
    """A repository behind a web server. Works, slower after an interruption, with one that ignores Range."""

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        self.moved = 0
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S))

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Generator[Reader]:
        """Open bytes `start` to `stop` of the file."""
        headers = {"Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        try:
            response = self._pool.request("GET", f"{self.name}/{quote(path)}", headers=headers, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(f"{self.name} does not answer: {error}; try again later") from error
        try:
            reader = _Counted(self, lambda size: response.read(size, decode_content=False))
            self._settle(response, reader, path, start)
            yield reader
        finally:
            response.close()

    def _settle(self, response: urllib3.BaseHTTPResponse, reader: Reader, path: str, start: int) -> None:
        if response.status in (403, 404, 410):
            raise MissingFileError(f"{self.name} has no {path} ({response.status}); is it a repository?")
        if response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return
        if response.status != 200:
            raise LinkError(f"{self.name} answers {response.status} for {path}; try again later")
        while start > 0:
            skipped = len(reader.read(min(start, 1 << 20)))
            if not skipped:
                raise LinkError(f"{self.name} ends {path} early; try again later")
            start -= skipped


class _Counted:
    """A reader that fills each request and adds what it moved to its source."""

    def __init__(self, source: Source, read: Callable[[int], bytes]) -> None:
        self._source = source
        self._read = read

    def read(self, size: int) -> bytes:
        parts, left = list[bytes](), size
        try:
            while left and (part := self._read(left)):
                self._source.moved += len(part)
                parts.append(part)
                left -= len(part)
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise LinkError(f"{self._source.name} broke off: {error}; try again later") from error
        return b"".join(parts)


def fetch(
    source: Source,
    release: Release,
    blobs: Blobs,
    *,
    wanted: Sequence[Blob],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    reserve_bytes: int = RESERVE_BYTES,
) -> None:
    """Bring every one of the `wanted` blobs that is not here already; goes on where an earlier call stopped.

    `on_progress` gets bytes here and bytes in all. Raises NoSpaceError before the first byte when the disk is too
    small, LinkError when the source goes away, TrustError when what it hands out is not what the release names.
    """
    missing = [blob for blob in {b.sha256: b for b in wanted}.values() if not blobs.holds(blob.sha256, blob.size)]
    folder = blobs.folder / "fetch"
    _need_space(folder, missing, reserve_bytes)
    done, total = 0, sum(blob.size for blob in missing)
    for blob in missing:
        base = done
        with Part(folder, blob, release.chunk_bytes) as part:
            _fill(source, part, lambda here, base=base: on_progress(base + here, total))
            blobs.take(part.finished(), blob.sha256)
            part.forget()
        done += blob.size


def _need_space(folder: Path, missing: Sequence[Blob], reserve_bytes: int) -> None:
    with disk_errors(folder):
        make_folder(folder)
    parts = [folder / f"{blob.sha256}.part" for blob in missing]
    allocated = sum(path.stat().st_blocks * 512 for path in parts if path.exists())
    need = sum(blob.size for blob in missing) - allocated
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if missing and need + reserve_bytes > free:
        raise NoSpaceError(
            f"the update needs {max(need, 0) / 1e6:.1f} MB and {reserve_bytes / 1e6:.0f} MB to spare, the disk of "
            f"{folder} has {free / 1e6:.1f} MB free; free {(need + reserve_bytes - free) / 1e6:.1f} MB and try again"
        )


class Part:
    """A blob on its way: a file of its full size, and beside it a map with one byte for each chunk that has arrived."""

    def __init__(self, folder: Path, blob: Blob, chunk_bytes: int) -> None:
        self.blob = blob
        self.chunk_bytes = chunk_bytes
        self.path = folder / f"{blob.sha256}.part"
        self.map_path = folder / f"{blob.sha256}.map"

    def __enter__(self) -> Self:
        with disk_errors(self.path):
            is_known = self.path.exists() and self.path.stat().st_size == self.blob.size
            old_map = self.map_path.read_bytes() if is_known and self.map_path.exists() else b""
            self.here = bytearray(old_map if len(old_map) == len(self.blob.chunks) else bytes(len(self.blob.chunks)))
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            self._map = os.open(self.map_path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._file, self.blob.size)
            if self.blob.size:
                os.posix_fallocate(self._file, 0, self.blob.size)
            os.ftruncate(self._map, len(self.here))
            os.pwrite(self._map, self.here, 0)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        os.close(self._map)

    @property
    def bytes_here(self) -> int:
        """Bytes of the chunks that have arrived."""
        return sum(self.length(index) for index, is_here in enumerate(self.here) if is_here)

    def length(self, index: int) -> int:
        return min(self.chunk_bytes, self.blob.size - index * self.chunk_bytes)

    def runs(self) -> list[tuple[int, int]]:
        """Return the gaps as half-open ranges of chunks."""
        gaps = list[tuple[int, int]]()
        for index, is_here in enumerate(self.here):
            if not is_here:
                start = gaps.pop()[0] if gaps and gaps[-1][1] == index else index
                gaps.append((start, index + 1))
        return gaps

    def put(self, index: int, data: bytes) -> bool:
        """Store a chunk and remember it, or return False when it is not the one the release names."""
        if hashlib.sha256(data).hexdigest() != self.blob.chunks[index]:
            return False
        with disk_errors(self.path):
            os.pwrite(self._file, data, index * self.chunk_bytes)
            os.fdatasync(self._file)  # before the map says so
            self.here[index] = 1
            os.pwrite(self._map, b"\1", index)
        return True

    def recheck(self) -> None:
        """Forget every chunk whose bytes on the disk are not what they were when they came."""
        for index in range(len(self.here)):
            data = os.pread(self._file, self.length(index), index * self.chunk_bytes)
            self.here[index] = hashlib.sha256(data).hexdigest() == self.blob.chunks[index]
        os.pwrite(self._map, self.here, 0)

    def is_whole(self) -> bool:
        return all(self.here) and sha256_file(self.path) == self.blob.sha256

    def finished(self) -> Path:
        """Sync the file and return its path."""
        os.fsync(self._file)
        return self.path

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self.map_path.unlink(missing_ok=True)


def _fill(source: Source, part: Part, on_progress: Callable[[int], None]) -> None:
    fruitless = 0
    while not part.is_whole():
        if all(part.here):
            part.recheck()
            if all(part.here):
                part.forget()
                raise TrustError(f"the release contradicts itself about blob {part.blob.sha256}; publish it again")
        before = sum(part.here)
        try:
            for start, stop in part.runs():
                _pull(source, part, start, stop, on_progress)
        except MissingFileError:
            raise
        except LinkError:
            if fruitless + 1 >= ROUNDS:
                raise
        fruitless = 0 if sum(part.here) > before else fruitless + 1
        if fruitless >= ROUNDS:
            raise TrustError(
                f"{source.name} hands out other bytes for blob {part.blob.sha256} than the release names "
                f"(chunk {part.runs()[0][0]}, asked {ROUNDS} times); publish the bundle again"
            )


def _pull(source: Source, part: Part, start: int, stop: int, on_progress: Callable[[int], None]) -> None:
    first, last = start * part.chunk_bytes, min(stop * part.chunk_bytes, part.blob.size)
    with source.open(blob_path(part.blob.sha256), first, last) as reader:
        for index in range(start, stop):
            if part.put(index, reader.read(part.length(index))):
                on_progress(part.bytes_here)
