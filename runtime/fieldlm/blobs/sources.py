"""Repository sources (folder, web server), with a rate limit and hours in which they may be read."""

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import urllib3

from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.core.hours import HourWindow
from fieldlm.core.urls import credentials, shown
from fieldlm.hardware.clock import is_set
from fieldlm.network.bounded_http import MinimumRate, cause_of, connections

CONNECT_S, READ_S = 10.0, 30.0
LEAST_BYTES, LEAST_WITHIN_S = 16 << 10, 60.0  # GPRS brings ten times as much; what is slower only holds the device
SLICE_BYTES = 32 << 10  # read at a time under a cap, so that the line is never taken for longer than that
LOOK_S = 20.0  # how often a closed window is looked at: the clock may be set at any time


class StoppedError(UnavailableError):
    """Who reads is told to stop, by somebody whose wish comes first; what has arrived is no better or worse for it."""

    reason = "stopped"


class MissingFileError(UnavailableError):
    """The repository answers, and has no such file."""


class BlobSource(Protocol):
    """Where a repository is read from.

    `moved` counts every payload byte that came from there; `has_ranges` is False once it has turned out that each
    read begins at the start of the file. Once `stop` is set, every read raises StoppedError.
    """

    @property
    def name(self) -> str: ...
    @property
    def moved(self) -> int: ...
    @property
    def has_ranges(self) -> bool: ...
    @property
    def stop(self) -> threading.Event: ...
    def open(self, path: str, start: int = 0, stop: int | None = None) -> AbstractContextManager["ByteReader"]:
        """Open bytes `start` to `stop` of the file at `path`; raises MissingFileError or LinkError."""
        ...


class ByteReader(Protocol):
    """Bytes on their way."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end; raises LinkError when the source goes away."""
        ...


def open_source(repository: str, stop: threading.Event | None = None) -> BlobSource:
    """Open the repository at a folder, a file:// or an http(s):// address; nothing is read yet."""
    scheme = urlsplit(repository).scheme
    if scheme in ("http", "https"):
        return WebSource(repository, stop)
    if scheme == "file":
        return FolderSource(Path(url2pathname(urlsplit(repository).path)), stop)
    if scheme and "://" in repository:
        raise InputError(
            f"repository {shown(repository)!r} has an unknown scheme; want a folder, file://, http:// or https://"
        )
    return FolderSource(Path(repository), stop)


def check_stop(source: BlobSource) -> None:
    """Raise StoppedError when who reads from `source` is told to stop; what has arrived stays."""
    if source.stop.is_set():
        raise StoppedError(f"reading {source.name} gives way to something more urgent; goes on later")


class FolderSource:
    """A repository in a folder: a disk, a USB stick, a share."""

    has_ranges = True

    def __init__(self, folder: Path, stop: threading.Event | None = None) -> None:
        self.folder = folder
        self.name = str(folder)
        self.moved = 0
        self.stop = stop or threading.Event()

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Generator[ByteReader]:
        """Open bytes `start` to `stop` of the file."""
        del stop
        try:
            file = (self.folder / path).open("rb")
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.folder} has no {path}; is it a repository?") from error
        except OSError as error:
            raise UnavailableError(f"{self.folder / path} cannot be read: {error.strerror or error}") from error
        with file:
            file.seek(start)
            yield _Counted(self, file.read)


class WebSource:
    """A repository behind a web server. Works, slower after an interruption, with one that ignores Range.

    `headers` go with each request, to the server that `url` names and to no other that it sends us to.
    """

    def __init__(
        self, url: str, stop: threading.Event | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        self.name = shown(url).rstrip("/")
        self.moved = 0
        self.has_ranges = True
        self.stop = stop or threading.Event()
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
        self._pool = connections(tls=urlsplit(url).scheme == "https", timeout=timeout)
        known = credentials(url)
        self._headers = {**(urllib3.make_headers(basic_auth=known) if known else {}), **(headers or {})}

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Generator[ByteReader]:
        """Open bytes `start` to `stop` of the file."""
        headers = {"Accept-Encoding": "identity", **self._headers}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        url = f"{self.name}/{quote(path, safe='/%')}"  # names of TUF roles come quoted, and ours need none
        try:
            response = self._pool.request("GET", url, headers=headers, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(f"{self.name} does not answer: {cause_of(error)}; try again later") from error
        is_read = False
        try:
            reader = _Counted(self, lambda size: response.read1(size, decode_content=False))
            self._settle(response, reader, path, start)
            yield reader
            is_read = not response.length_remaining
        finally:
            # A connection that was read to its end serves the next range, too.
            response.release_conn() if is_read else response.close()

    def _settle(self, response: urllib3.BaseHTTPResponse, reader: ByteReader, path: str, start: int) -> None:
        if response.status in (403, 404, 410):
            raise MissingFileError(f"{self.name} has no {path} ({response.status}); is it a repository?")
        if response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return
        if response.status != 200:
            raise UnavailableError(f"{self.name} answers {response.status} for {path}; try again later")
        self.has_ranges = start == 0 and self.has_ranges
        while start > 0:
            skipped = len(reader.read(min(start, 1 << 20)))
            if not skipped:
                raise UnavailableError(f"{self.name} ends {path} early; try again later")
            start -= skipped


class _Counted:
    """A reader that fills each request and adds what it moved to its source."""

    def __init__(self, source: FolderSource | WebSource, read: Callable[[int], bytes]) -> None:
        self._source = source
        self._read = read
        self._patience = MinimumRate(LEAST_BYTES, LEAST_WITHIN_S)

    def read(self, size: int) -> bytes:
        parts, left = list[bytes](), size
        try:
            while left:
                check_stop(self._source)
                began_s = time.monotonic()
                part = self._read(left)
                if not part:
                    break
                self._source.moved += len(part)
                self._patience.count(len(part), time.monotonic() - began_s)
                parts.append(part)
                left -= len(part)
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise UnavailableError(f"{self._source.name} broke off: {cause_of(error)}; try again later") from error
        return b"".join(parts)


def is_within(window: HourWindow, now_s: float) -> bool:
    """Say whether the repository may be read now: at any time by a clock that was never set, or from 0:00 to 0:00."""
    if not is_set(int(now_s * 1000)) or window.opens == window.closes:
        return True
    clock = datetime.fromtimestamp(now_s)
    return window.holds(clock.hour * 60 + clock.minute)


class TokenBucket:
    """A token bucket: hands out bytes at a rate; whoever takes more than there is waits. For any number of threads."""

    def __init__(self, bytes_s: float, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self._bytes_s = bytes_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def take(self, size: int) -> None:
        """Return when `size` bytes may have gone over the line."""
        with self._lock:
            now_s = time.monotonic()
            self._free_at_s = max(self._free_at_s, now_s) + size / self._bytes_s
            wait_s = self._free_at_s - now_s
        if wait_s > 0:
            self._sleep(wait_s)


class PacedSource:
    """A source that is read no faster than its bucket allows, and only while its window is open."""

    def __init__(self, source: BlobSource, *, bucket: TokenBucket | None, window: HourWindow | None) -> None:
        self._source = source
        self._bucket = bucket
        self._window = window

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def moved(self) -> int:
        return self._source.moved

    @property
    def has_ranges(self) -> bool:
        return self._source.has_ranges

    @property
    def stop(self) -> threading.Event:
        return self._source.stop

    @property
    def is_open(self) -> bool:
        return not self._window or is_within(self._window, time.time())

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Generator[ByteReader]:
        """Open bytes `start` to `stop` of the file, as soon as the window is open."""
        self._wait()
        with self._source.open(path, start, stop) as reader:
            yield _Paced(self, reader, self._bucket)

    def _wait(self) -> None:
        while not self.is_open and not self.stop.wait(LOOK_S):
            pass
        check_stop(self)

    def check_window(self) -> None:
        """Raise LinkError when the window has closed meanwhile; what has arrived stays, and the next read waits."""
        if not self.is_open:
            raise UnavailableError(f"the hours in which {self.name} may be read are over; goes on when they begin")


def is_open(source: BlobSource) -> bool:
    """Say whether the source may be read now; one without hours always may."""
    return not isinstance(source, PacedSource) or source.is_open


class _Paced:
    def __init__(self, source: PacedSource, reader: ByteReader, bucket: TokenBucket | None) -> None:
        self._source = source
        self._reader = reader
        self._bucket = bucket

    def read(self, size: int) -> bytes:
        self._source.check_window()
        if self._bucket is None:
            return self._reader.read(size)
        parts, left = list[bytes](), size
        while left and (part := self._reader.read(min(left, SLICE_BYTES))):
            self._bucket.take(len(part))
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
