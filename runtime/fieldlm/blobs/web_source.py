"""A repository behind a web server, and whichever an address names. The HTTP client takes its time to be imported."""

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import urllib3

from fieldlm.blobs.sources import BlobSource, ByteReader, CountedReader, FolderSource, MissingFileError
from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.core.urls import credentials, shown
from fieldlm.network.bounded_http import connections
from fieldlm.network.patience import cause_of

CONNECT_S, READ_S = 10.0, 30.0


def open_source(repository: str, stop: threading.Event | None = None) -> BlobSource:
    """Open the repository at a folder, a file:// or an http(s):// address; nothing is read yet."""
    scheme = urlsplit(repository).scheme
    if scheme in ("http", "https"):
        return WebSource(repository, stop)
    if scheme == "file":
        return FolderSource(Path(unquote(urlsplit(repository).path)), stop)
    if scheme and "://" in repository:
        raise InputError(
            f"repository {shown(repository)!r} has an unknown scheme; want a folder, file://, http:// or https://"
        )
    return FolderSource(Path(repository), stop)


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
            reader = CountedReader(
                self,
                lambda size: response.read1(size, decode_content=False),
                errors=(OSError, urllib3.exceptions.HTTPError),
            )
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
