"""Blobs on their way: from a folder, from a web server, through kills and damage."""

import base64
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fieldlm.blobs.fetch import ByteReader, FolderSource, fetch
from fieldlm.blobs.sources import MissingFileError, PacedSource, TokenBucket, is_within
from fieldlm.blobs.store import Blobs
from fieldlm.blobs.web_source import WebSource, open_source
from fieldlm.core.errors import NoSpaceError, TrustError, UnavailableError
from fieldlm.core.files import CHUNK_BYTES
from fieldlm.core.hours import parse_hours
from fieldlm.formats.release import Blob, Release, blob_path
from fieldlm_compiler.repository.publish import publish
from tests.support.update_simulators import BASE_BYTES, small_bundle

ROOT = Path(__file__).parents[2]


@dataclass
class Shop:
    """A repository with one release, and an empty device beside it."""

    repository: Path
    release: Release
    blobs: Blobs

    @property
    def base(self) -> Blob:
        return self.release.files[0]

    def fetch(self, source: FolderSource | WebSource) -> None:
        fetch(source, self.release, self.blobs, wanted=self.release.blobs)

    @property
    def bytes(self) -> int:
        """What travels when nothing is here: the files and the lists of their chunks."""
        return self.release.size + sum(blob.index_blob.size for blob in self.release.blobs if blob.index)

    def holds_everything(self) -> bool:
        return all(self.blobs.holds(blob.sha256, blob.size) for blob in self.release.blobs)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    bundle = small_bundle(tmp_path / "bundle", adapter="coffee")
    release = publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    return Shop(tmp_path / "repository", release, Blobs(tmp_path / "state"))


class Ranged(SimpleHTTPRequestHandler):
    """A static web server that knows Range and keeps connections open, as the common ones do."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked = self.headers.get("Range", "")
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first or 0) : int(last) + 1 if last else None]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {int(first)}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None: ...


class Plain(SimpleHTTPRequestHandler):
    """A web server without Range: `python -m http.server`."""

    def log_message(self, format: str, *args: object) -> None: ...


class Hasty(Ranged):
    """Closes the connection in the middle of every answer that is longer than 1.5 MB."""

    def do_GET(self) -> None:
        write = self.wfile.write
        self.wfile.write = lambda data: write(data[:1_500_000])  # type: ignore[method-assign]
        self.close_connection = True
        super().do_GET()


class Broken(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    def log_message(self, format: str, *args: object) -> None: ...


class Busy(BaseHTTPRequestHandler):
    """Says to come again in three years, or sends to where that is said."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        is_moved = self.path.startswith("/moved")
        self.send_response(302 if is_moved else 503)
        self.send_header("Location" if is_moved else "Retry-After", "/elsewhere" if is_moved else "100000000")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


class Locked(Ranged):
    """Wants to know who asks."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") == "Basic " + base64.b64encode(b"pub:p@ss").decode():
            super().do_GET()
        else:
            self.send_error(401)


@pytest.fixture
def serve(shop: Shop) -> Iterator["Serve"]:
    with Serve(shop.repository) as serve:
        yield serve


@dataclass
class Serve:
    """Starts web servers over a folder; stops them in the end."""

    folder: Path
    servers: list[ThreadingHTTPServer] = field(default_factory=list[ThreadingHTTPServer])

    def __enter__(self) -> "Serve":
        return self

    def __call__(self, handler: type[BaseHTTPRequestHandler]) -> WebSource:
        made = (
            partial(handler, directory=str(self.folder)) if issubclass(handler, SimpleHTTPRequestHandler) else handler
        )
        server = ThreadingHTTPServer(("127.0.0.1", 0), made)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.servers.append(server)
        return WebSource(f"http://127.0.0.1:{server.server_port}/")

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


def test_everything_arrives_once_from_a_folder(shop: Shop) -> None:
    source = FolderSource(shop.repository)
    shop.fetch(source)
    assert shop.holds_everything()
    assert source.moved == shop.bytes
    shop.fetch(source)
    assert source.moved == shop.bytes


@pytest.mark.parametrize("handler", [Ranged, Plain])
def test_everything_arrives_once_from_a_web_server(shop: Shop, serve: Serve, handler: type[Ranged]) -> None:
    source = serve(handler)
    shop.fetch(source)
    assert shop.holds_everything()
    assert source.moved == shop.bytes


def test_a_connection_that_breaks_costs_no_chunk_that_arrived(shop: Shop, serve: Serve) -> None:
    source = serve(Hasty)
    shop.fetch(source)
    assert shop.holds_everything()
    assert source.moved < shop.release.size + 3 * CHUNK_BYTES


def test_a_server_in_trouble_is_a_reason_to_try_later(shop: Shop, serve: Serve) -> None:
    with pytest.raises(UnavailableError, match="answers 500"):
        shop.fetch(serve(Broken))


@pytest.mark.parametrize("path", ["", "/moved"])
def test_how_long_a_device_waits_is_not_the_servers_to_say(shop: Shop, serve: Serve, path: str) -> None:
    with pytest.raises(UnavailableError, match="answers 503"), open_source(serve(Busy).name + path).open("x"):
        raise AssertionError("it was opened")


def test_a_password_in_the_address_opens_the_repository_and_is_told_to_nobody_else(shop: Shop, serve: Serve) -> None:
    host = serve(Locked).name.removeprefix("http://")
    source = open_source(f"http://pub:p%40ss@{host}")
    with source.open(blob_path(shop.base.sha256), 0, 4) as reader:
        assert len(reader.read(4)) == 4
    with pytest.raises(MissingFileError, match="has no nothing") as caught, source.open("nothing"):
        pass
    assert "p%40ss" not in f"{caught.value} {source.name}"


def test_a_server_that_is_not_there_is_a_reason_to_try_later(shop: Shop) -> None:
    with pytest.raises(UnavailableError, match="try again later"):
        shop.fetch(WebSource("http://127.0.0.1:9"))


def test_a_blob_that_the_repository_lacks_is_named(shop: Shop, serve: Serve) -> None:
    (shop.repository / blob_path(shop.base.sha256)).unlink()
    with pytest.raises(UnavailableError, match=shop.base.sha256):
        shop.fetch(serve(Ranged))


def test_only_the_bad_chunk_is_fetched_again(shop: Shop, tmp_path: Path) -> None:
    path = shop.repository / blob_path(shop.base.sha256)
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[CHUNK_BYTES + 5] ^= 1
    path.write_bytes(damaged)
    source = FolderSource(shop.repository)
    with pytest.raises(TrustError, match=r"chunk 1, asked 3 times"):
        shop.fetch(source)
    path.write_bytes(good)
    source = FolderSource(shop.repository)
    fetch(source, shop.release, shop.blobs, wanted=[shop.base])
    assert source.moved == CHUNK_BYTES
    assert shop.blobs.holds(shop.base.sha256, BASE_BYTES)


def test_a_chunk_that_the_disk_forgot_of_a_killed_fetch_is_fetched_again(shop: Shop) -> None:
    _fetch_and_die(shop, after=3)
    part = next((shop.blobs.folder / "fetch").glob("*.part"))
    with part.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(bytes(CHUNK_BYTES))
    source = FolderSource(shop.repository)
    fetch(source, shop.release, shop.blobs, wanted=[shop.base])
    assert shop.blobs.holds(shop.base.sha256, BASE_BYTES)
    assert source.moved == BASE_BYTES - 3 * CHUNK_BYTES + CHUNK_BYTES


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_killed_fetch_goes_on_at_the_chunk(shop: Shop, after: int) -> None:
    _fetch_and_die(shop, after=after)
    source = FolderSource(shop.repository)
    fetch(source, shop.release, shop.blobs, wanted=[shop.base])
    assert shop.blobs.holds(shop.base.sha256, BASE_BYTES)
    assert source.moved == BASE_BYTES - after * CHUNK_BYTES


class CutSource(FolderSource):
    """A repository whose reader is killed once so many bytes have come."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder)
        self.left = after

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Generator[ByteReader]:
        with super().open(path, start, stop) as reader:
            yield CutReader(self, reader)


@dataclass
class CutReader:
    source: CutSource
    reader: ByteReader

    def read(self, size: int) -> bytes:
        data = self.reader.read(min(size, self.source.left))
        self.source.left -= len(data)
        if len(data) < size and not self.source.left:
            raise KeyboardInterrupt
        return data


def test_forty_kills_at_random_points_cost_a_chunk_each_at_most(tmp_path: Path) -> None:
    size, kills, dice = 32 * CHUNK_BYTES + 12_345, 40, random.Random(7)
    bundle = small_bundle(tmp_path / "bundle", base_bytes=size)
    release = publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    blobs, moved = Blobs(tmp_path / "state"), 0
    for _ in range(kills):
        source = CutSource(tmp_path / "repository", dice.randrange(1, 3 * CHUNK_BYTES // 2))
        with suppress(KeyboardInterrupt):
            fetch(source, release, blobs, wanted=release.files)
        moved += source.moved
    source = FolderSource(tmp_path / "repository")
    fetch(source, release, blobs, wanted=release.files)
    assert blobs.holds(release.files[0].sha256, size)
    assert moved + source.moved <= 1.02 * sum(file.size for file in release.files) + kills * CHUNK_BYTES
    assert moved > size / 4


def test_a_blob_that_was_damaged_here_is_fetched_again(shop: Shop) -> None:
    shop.fetch(FolderSource(shop.repository))
    path = shop.blobs.path(shop.base.sha256)
    path.write_bytes(bytes(BASE_BYTES))
    shop.fetch(FolderSource(shop.repository))
    assert shop.holds_everything()


def test_a_disk_that_is_too_small_is_said_with_numbers_before_the_first_byte(shop: Shop) -> None:
    source = FolderSource(shop.repository)
    with pytest.raises(NoSpaceError, match=r"needs 3\.5 MB and \d+ MB to spare"):
        fetch(source, shop.release, shop.blobs, wanted=shop.release.blobs, reserve_bytes=1 << 60)
    assert source.moved == 0


def test_progress_counts_up_to_the_size_of_what_is_missing(shop: Shop) -> None:
    seen = list[tuple[int, int]]()
    fetch(
        FolderSource(shop.repository),
        shop.release,
        shop.blobs,
        wanted=shop.release.files,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(file.size for file in shop.release.files)


def test_a_reader_fills_what_it_is_asked_for(shop: Shop, serve: Serve) -> None:
    source = serve(Ranged)
    reader: ByteReader
    with source.open(blob_path(shop.base.sha256), 10, 2_000_010) as reader:
        assert len(reader.read(2_000_000)) == 2_000_000


def test_a_repository_is_a_folder_or_an_address(tmp_path: Path) -> None:
    assert isinstance(open_source("https://example.org/models"), WebSource)
    for name in (str(tmp_path), tmp_path.as_uri()):
        source = open_source(name)
        assert isinstance(source, FolderSource)
        assert source.folder == tmp_path


def test_a_cap_makes_the_reader_wait_as_long_as_the_bytes_take(shop: Shop) -> None:
    slept = list[float]()
    bucket = TokenBucket(1e6, sleep=slept.append)
    source = PacedSource(FolderSource(shop.repository), bucket=bucket, window=None)
    with source.open(blob_path(shop.base.sha256)) as reader:
        assert len(reader.read(BASE_BYTES)) == BASE_BYTES == source.moved
    # Nobody really slept, so the last one of them has to wait for all.
    assert 0.9 * BASE_BYTES / 1e6 < max(slept) <= BASE_BYTES / 1e6


@pytest.mark.parametrize(
    ("window", "clock", "is_open"),
    [
        ("01:00-05:30", "2030-05-01 01:00", True), ("01:00-05:30", "2030-05-01 05:29", True),
        ("01:00-05:30", "2030-05-01 05:30", False), ("01:00-05:30", "2030-05-01 00:59", False),
        ("22:00-04:00", "2030-05-01 23:10", True), ("22:00-04:00", "2030-05-01 03:10", True),
        ("22:00-04:00", "2030-05-01 12:00", False), ("00:00-00:00", "2030-05-01 12:00", True),
        ("01:00-05:30", "1970-01-02 12:00", True), ("01:00-05:30", "2100-01-01 12:00", False),
    ],
)  # fmt: skip
def test_the_hours_count_by_the_devices_clock_once_it_was_set(window: str, clock: str, is_open: bool) -> None:
    assert is_within(parse_hours(window), datetime.fromisoformat(clock).timestamp()) is is_open


@pytest.mark.parametrize("text", ["1-5", "25:00-01:00", "01:00", "01:00-02:00-03:00", "ab:cd-01:00"])
def test_hours_that_are_none_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="write HH:MM-HH:MM"):
        parse_hours(text)


def test_an_index_that_is_damaged_on_the_way_is_asked_for_again_and_then_refused(shop: Shop) -> None:
    path = shop.repository / blob_path(shop.base.index)
    good = path.read_bytes()
    path.write_bytes(good[::-1])
    with pytest.raises(TrustError, match="another index"):
        shop.fetch(FolderSource(shop.repository))
    path.write_bytes(good)
    shop.fetch(FolderSource(shop.repository))
    assert shop.holds_everything()


def test_what_an_older_release_left_half_fetched_makes_room(shop: Shop) -> None:
    folder = shop.blobs.folder / "fetch"
    folder.mkdir(parents=True)
    old = folder / f"{'f' * 64}.part"
    old.write_bytes(bytes(4_000_000))
    slot = shop.blobs.path("e" * 64)
    slot.parent.mkdir(parents=True)
    slot.write_bytes(b"a generation that a slot names")
    with pytest.raises(NoSpaceError):
        fetch(FolderSource(shop.repository), shop.release, shop.blobs, wanted=shop.release.blobs, reserve_bytes=1 << 60)
    assert not old.exists()
    assert slot.exists()


def _fetch_and_die(shop: Shop, *, after: int) -> None:
    """Fetch the base in a process that is killed once `after` chunks have arrived."""
    program = f"""
import os, signal, sys
from pathlib import Path
from fieldlm.formats.release import parse_release
from fieldlm.blobs.store import Blobs
from fieldlm.blobs.fetch import FolderSource, fetch
release = parse_release(Path(sys.argv[1], "releases/test/1.json").read_bytes(), what="release")
def die(done, total):
    if done >= {after} * {CHUNK_BYTES}:
        os.kill(os.getpid(), signal.SIGKILL)
fetch(FolderSource(Path(sys.argv[1])), release, Blobs(Path(sys.argv[2])), wanted=[release.files[0]], on_progress=die)
"""
    command = [sys.executable, "-c", program, str(shop.repository), str(shop.blobs.folder)]
    child = subprocess.run(command, check=False, cwd=ROOT, env=os.environ.copy())
    assert child.returncode == -signal.SIGKILL
