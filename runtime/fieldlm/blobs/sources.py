"""Repository sources: a folder, or a web server (`web_source`), with a rate limit and the hours to read them in."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from fieldlm.core.errors import UnavailableError
from fieldlm.core.hours import HourWindow
from fieldlm.hardware.clock import is_set
from fieldlm.network.patience import MinimumRate, cause_of

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
        """Open bytes `start` to `stop` of the file at `path`; raises MissingFileError or UnavailableError."""
        ...


class _Moving(Protocol):
    """A source whose bytes are counted."""

    name: str
    moved: int
    stop: threading.Event


class ByteReader(Protocol):
    """Bytes on their way."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer only at the end; raises UnavailableError when the source goes away."""
        ...


def check_stop(source: BlobSource) -> None:
    """Raise StoppedError when who reads from `source` is told to stop; what has arrived stays."""
    _check(source.stop, source.name)


def _check(stop: threading.Event, name: str) -> None:
    if stop.is_set():
        raise StoppedError(f"reading {name} gives way to something more urgent; goes on later")


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
            yield CountedReader(self, file.read)


class CountedReader:
    """A reader that fills each request and adds what it moved to its source; `errors` are how `read` breaks off."""

    def __init__(
        self, source: "_Moving", read: Callable[[int], bytes], *, errors: tuple[type[Exception], ...] = (OSError,)
    ) -> None:
        self._source = source
        self._read = read
        self._errors = errors
        self._patience = MinimumRate(LEAST_BYTES, LEAST_WITHIN_S)

    def read(self, size: int) -> bytes:
        parts, left = list[bytes](), size
        try:
            while left:
                _check(self._source.stop, self._source.name)
                began_s = time.monotonic()
                part = self._read(left)
                if not part:
                    break
                self._source.moved += len(part)
                self._patience.count(len(part), time.monotonic() - began_s)
                parts.append(part)
                left -= len(part)
        except self._errors as error:
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
        """Raise UnavailableError when the window has closed; what has arrived stays, and the next read waits."""
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
