"""Fetches that are killed in the middle, and many devices that fetch the same file at one site.

`kill_often` fetches a file in processes that end by SIGKILL after a random number of bytes. In `one_site` devices, each
with a server and a folder of its own, begin at the same moment; one line of a set speed leads to the repository.
"""

import mmap
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from fieldlm.blobs.fetch import ByteReader, FetchPolicy, FolderSource, fetch
from fieldlm.blobs.server import BlobServer
from fieldlm.blobs.sources import PacedSource, TokenBucket
from fieldlm.blobs.store import Blobs
from fieldlm.blobs.swarm import Neighbour, Swarm
from fieldlm.core import terminal
from fieldlm.core.files import CHUNK_BYTES
from fieldlm.formats.release import Release
from fieldlm_compiler.repository.publish import publish
from tests.support.update_simulators import small_bundle


class Kills(msgspec.Struct, frozen=True, kw_only=True):
    """What a fetch that was killed so often came to; bytes read against the file's, and the limit."""

    seed: int
    size_bytes: int
    kills: int
    moved_bytes: int
    limit_bytes: int
    lost_bytes_a_kill: float
    seconds: float


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What so many devices took over one line."""

    devices: int
    size_bytes: int
    line_bytes: int
    times_the_model: float
    from_neighbours_bytes: int
    seconds: float
    seconds_of_the_line_for_one: float


class DeadlySource(FolderSource):
    """Counts what is read in memory that outlives the process, and kills the process after so many bytes."""

    def __init__(self, folder: Path, counter: mmap.mmap, after: int) -> None:
        super().__init__(folder)
        self._counter = counter
        self._left = after

    @contextmanager
    def open(self, path: str, start: int = 0, stop: int | None = None) -> Generator[ByteReader]:
        with super().open(path, start, stop) as reader:
            yield _DeadlyReader(self, reader)

    def read(self, reader: ByteReader, size: int) -> bytes:
        data = reader.read(min(size, self._left) if self._left else size)
        (before,) = struct.unpack("q", self._counter[:8])
        self._counter[:8] = struct.pack("q", before + len(data))
        if self._left:
            self._left -= len(data)
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
        return data


class _DeadlyReader:
    def __init__(self, source: DeadlySource, reader: ByteReader) -> None:
        self._source = source
        self._reader = reader

    def read(self, size: int) -> bytes:
        return self._source.read(self._reader, size)


def kill_often(folder: Path, *, size: int, kills: int, seed: int) -> Kills:
    """Fetch one file of `size` bytes, killed `kills` times at random points."""
    release = offer(folder, size)
    dice, counter, began_s = random.Random(seed), mmap.mmap(-1, 8), time.monotonic()
    # On average a kill comes after what leaves some of the file for the last run.
    most = max(2, min(2 * CHUNK_BYTES, 2 * size // max(1, kills)))
    with terminal.progress("kills", kills) as progress:
        for number in range(kills):
            assert _in_a_child(folder, release, counter, dice.randrange(1, most)) == signal.SIGKILL
            progress.update(number + 1)
    assert _in_a_child(folder, release, counter, 0) == 0
    assert Blobs(folder / "state").holds(release.files[0].sha256, size)
    (moved,) = struct.unpack("q", counter[:8])
    return Kills(
        seed=seed,
        size_bytes=size,
        kills=kills,
        moved_bytes=moved,
        limit_bytes=int(1.02 * size) + kills * CHUNK_BYTES,
        lost_bytes_a_kill=round((moved - size) / max(1, kills), 1),
        seconds=round(time.monotonic() - began_s, 1),
    )


def _in_a_child(folder: Path, release: Release, counter: mmap.mmap, after: int) -> int:
    """Fetch in a process of its own; return the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        source = DeadlySource(folder / "repository", counter, after)
        fetch(source, release, Blobs(folder / "state"), wanted=[release.files[0]])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def one_site(folder: Path, *, devices: int, size: int, line_bytes_s: float) -> Site:
    """Let `devices` fetch the same file at the same moment over one line."""
    release, line = offer(folder, size), TokenBucket(line_bytes_s)
    around, sources, swarms = list[Neighbour](), list[FolderSource](), list[Swarm]()
    with ExitStack() as stack:
        for number in range(devices):
            blobs = Blobs(folder / f"device-{number}")
            blobs.folder.mkdir()
            server = BlobServer(blobs.folder)
            server.start()
            stack.callback(server.stop)
            around.append(Neighbour(f"device-{number}", f"http://127.0.0.1:{server.port}"))
            sources.append(FolderSource(folder / "repository"))
            swarms.append(Swarm(f"device-{number}", lambda: around))

        def run(number: int) -> None:
            source = PacedSource(sources[number], bucket=line, window=None)
            blobs, manner = Blobs(folder / f"device-{number}"), FetchPolicy(neighbours=swarms[number])
            fetch(source, release, blobs, wanted=[release.files[0]], manner=manner)

        began_s = time.monotonic()
        threads = [threading.Thread(target=run, args=(number,)) for number in range(devices)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    base = release.files[0]
    for number in range(devices):
        assert Blobs(folder / f"device-{number}").holds(base.sha256, size), f"device {number} has no model"
    moved = sum(source.moved for source in sources)
    return Site(
        devices=devices,
        size_bytes=size,
        line_bytes=moved,
        times_the_model=round(moved / size, 4),
        from_neighbours_bytes=sum(swarm.moved for swarm in swarms),
        seconds=round(time.monotonic() - began_s, 1),
        seconds_of_the_line_for_one=round(size / line_bytes_s, 1),
    )


def offer(folder: Path, size: int) -> Release:
    """Publish a bundle whose base has `size` bytes."""
    bundle = small_bundle(folder / "bundle", base_bytes=size)
    return publish(bundle.folder, folder / "repository", keys=folder / "keys")
