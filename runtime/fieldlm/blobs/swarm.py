"""A swarm of neighbours: what one of them has is taken from there, and what nobody has is fetched by one of us.

Neighbours are found by zeroconf and trusted in nothing: each chunk is checked against the digest in the signed
release, whoever hands it out. Who wants the same file shares the way out to the repository. A file is cut in
stretches, and rendezvous (HRW) hashing assigns each to a neighbour: all who see each other agree on that without a
word; what somebody has begun is marked in the map that the others read. One that lies costs a chunk, one that is slow
two seconds, one that claims and does nothing half a minute; after that it is asked no more. All of them together, busy
or changing their maps as they like, cost a minute without a byte.
"""

import ipaddress
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import urllib3
from zeroconf import ServiceInfo, ServiceListener, Zeroconf

from fieldlm.blobs.fetch import OnBytes, pull
from fieldlm.blobs.partial_blob import CLAIMED, PartialBlob, runs
from fieldlm.blobs.server import WHOLE
from fieldlm.blobs.sources import BlobSource, StoppedError, check_stop, is_open
from fieldlm.core.errors import UnavailableError
from fieldlm.core.logs import logger
from fieldlm.core.tasks import Tasks
from fieldlm.formats.release import blob_path
from fieldlm.network.bounded_http import connections
from fieldlm.network.discovery import BLOCKED_S, nearest, register
from fieldlm.network.patience import TricklingError

log = logger(__name__)

SERVICE = "_fieldlm-blob._tcp.local."
MOST = 64  # neighbours that are asked
STRETCH_BYTES = 4 << 20  # belongs to one of us; asked for at once
LOOK_S = 0.5  # between two looks at what the others have
SETTLE_S = 2.0  # before the first byte from the repository, so that those who begin together see each other
PATIENCE_S = 3.0  # without news, after which the next one fetches a stretch instead
MOST_TURNS = 5
CLAIM_S = 30.0  # without a new chunk, after which what a neighbour has claimed is fetched by another
HELD_UP = 2  # times as long without a byte of our own, after which neighbours are asked no more
CONNECT_S, READ_S = 0.5, 2.0
GRACE_S, LEAST_BYTES_S = 2.0, 64 << 10  # slower than this, a neighbour is no help
MOST_FAULTS = 3  # broken connections and refusals of one neighbour; looks in a row without an answer
MOST_LIARS = 8  # after which this network is not asked at all
FAILURES = 3  # of the repository in a row
SLICE_BYTES = 64 << 10


_FURTHER = {CLAIMED[0]: 1, 1: 2}  # than a chunk that nobody began


@dataclass(frozen=True)
class Neighbour:
    """Another device; `name` is what it is announced as, `url` where its blobs are."""

    name: str
    url: str


class Lying(Exception):
    """A neighbour handed out something else than it should."""


@dataclass
class _Peer:
    neighbour: Neighbour
    claim_s: float
    map: bytes = b""
    furthest: bytes = b""
    is_out: bool = False
    faults: int = 0
    silent: int = 0  # looks in a row that it did not answer: whoever restarts, or is busy, is back soon
    changed_s: float = field(default_factory=time.monotonic)
    pool: urllib3.PoolManager = field(
        default_factory=lambda: connections(
            tls=False, retries=False, timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S), maxsize=1
        )
    )

    @property
    def is_fetching(self) -> bool:
        return bool(self.map) and self.map != WHOLE and time.monotonic() - self.changed_s < self.claim_s

    def has(self, index: int) -> bool:
        return not self.is_out and (self.map == WHOLE or (index < len(self.map) and self.map[index] == 1))

    def claims(self, index: int) -> bool:
        return self.is_fetching and not self.is_out and self.map[index] == CLAIMED[0]

    def look(self, part: PartialBlob) -> None:
        """Ask what it has; for one that does not answer, what it had the last time counts."""
        try:
            with self._get(f"maps/{part.blob.sha256}") as response:
                if response.status == 503:
                    return
                data = _read(response, len(part.chunks) + 1) if response.status == 200 else b""
        except (OSError, urllib3.exceptions.HTTPError):
            self.silent += 1
            self.is_out = self.silent >= MOST_FAULTS
            return
        self.silent = 0
        self.map = data if data == WHOLE or len(data) == len(part.chunks) else b""
        if self._grew(len(part.chunks)):
            self.changed_s = time.monotonic()

    def _grew(self, chunks: int) -> bool:
        """Say whether a chunk is further than ever: a map that only changes to and fro is no progress."""
        now = bytes(_FURTHER.get(byte, 0) for byte in (b"\1" * chunks if self.map == WHOLE else self.map))
        before = self.furthest.ljust(len(now), b"\0")
        self.furthest = bytes(map(max, before, now)) + before[len(now) :]
        return self.furthest != before

    def pull(self, part: PartialBlob, start: int, stop: int, on_bytes: OnBytes) -> None:
        """Bring chunks `start` to `stop`; raises Lying, or an error of the network."""
        first, last = part.chunks[start].start, part.chunks[stop - 1].start + part.chunks[stop - 1].size
        headers = {"Range": f"bytes={first}-{last - 1}"}
        with self._get(blob_path(part.blob.sha256), headers) as response:
            if response.status == 503:
                time.sleep(random.uniform(0, LOOK_S))
                return
            if response.status != 206:
                raise OSError(f"answers {response.status} for what it said it had")
            began_s, moved = time.monotonic(), 0
            for index in range(start, stop):
                data = bytearray()
                while len(data) < part.chunks[index].size:
                    slice_ = response.read1(min(SLICE_BYTES, part.chunks[index].size - len(data)))
                    data += slice_
                    moved += len(slice_)
                    took_s = time.monotonic() - began_s
                    if not slice_ or (took_s > GRACE_S and moved < LEAST_BYTES_S * took_s):
                        raise Lying("ends early" if not slice_ else "is too slow")
                if not part.put(index, bytes(data)):
                    raise Lying("hands out other bytes")
                on_bytes(part.bytes_here)

    def _get(self, path: str, headers: dict[str, str] | None = None) -> Any:
        return self.pool.request(
            "GET", f"{self.neighbour.url}/{path}", headers=headers or {}, preload_content=False, redirect=False
        )


def _read(response: Any, size: int) -> bytes:
    """Read up to `size` bytes, a map's; raises TricklingError when a neighbour takes longer than one may."""
    data, end_s = b"", time.monotonic() + GRACE_S
    while len(data) < size and (part := response.read1(size - len(data))):
        data += part
        if time.monotonic() > end_s:
            raise TricklingError(f"only {len(data)} bytes came in {GRACE_S:.0f} s")
    return data


class Swarm:
    """The neighbours of one device, as `fetch` asks them. `find` names those that are there now."""

    def __init__(
        self,
        me: str,
        find: Callable[[], Sequence[Neighbour]],
        *,
        settle_s: float = SETTLE_S,
        claim_s: float = CLAIM_S,
    ) -> None:
        self.me = me
        self.find = find
        self.settle_s = settle_s
        self.claim_s = claim_s
        self.moved = 0  # bytes that came from neighbours

    def fill(self, part: PartialBlob, source: BlobSource, on_bytes: OnBytes) -> None:
        """Bring what is missing of `part`; returns early when there is nobody to share it with."""
        _Together(self, part, source, on_bytes).run()


class _Together:
    """One part on its way, with everybody who wants it too."""

    def __init__(self, swarm: Swarm, part: PartialBlob, source: BlobSource, on_bytes: OnBytes) -> None:
        self._swarm = swarm
        self._part = part
        self._source = source
        self._on_bytes = on_bytes
        self._peers = dict[str, _Peer]()
        self._looked_s = -LOOK_S
        self._look_took_s = 0.0
        self._news_s = self._grew_s = time.monotonic()
        self._begins_s = self._news_s + swarm.settle_s
        self._failures = 0

    def run(self) -> None:
        while self._part.missing():
            check_stop(self._source)
            self._look()
            liars = sum(peer.is_out for peer in self._peers.values())
            if not self._asked() or liars >= MOST_LIARS or self._failures >= FAILURES or self._is_held_up():
                return
            if not self._from_a_neighbour() and not self._from_the_repository():
                time.sleep(0.1)

    def _is_held_up(self) -> bool:
        """Say whether nothing has come for so long that the rest is better fetched alone, whatever the others say."""
        if not is_open(self._source):
            self._grew_s = time.monotonic()
        return time.monotonic() - self._grew_s > HELD_UP * self._swarm.claim_s

    def _asked(self) -> list[_Peer]:
        return [peer for peer in self._peers.values() if not peer.is_out]

    def _look(self) -> None:
        began_s = time.monotonic()
        if began_s - self._looked_s < max(LOOK_S, 2 * self._look_took_s):
            return
        here = {one.name: one for one in list(self._swarm.find())[:MOST] if one.name != self._swarm.me}
        for name, neighbour in here.items():
            known = self._peers.get(name)
            if known is None or (known.neighbour != neighbour and not known.is_out):
                self._peers[name] = _Peer(neighbour, self._swarm.claim_s)
        for peer in self._asked():
            before = peer.furthest
            if peer.neighbour.name in here:
                peer.look(self._part)
            else:
                peer.map = b""
            if peer.furthest != before:
                self._news_s = time.monotonic()  # somebody gets on: nobody's turn is over
        self._looked_s = time.monotonic()
        self._look_took_s = self._looked_s - began_s

    def _from_a_neighbour(self) -> bool:
        """Take a stretch from one of those who have it; says whether there was one."""
        missing = self._part.missing()
        peers = self._asked()
        random.shuffle(peers)
        for peer in peers:
            has = [index for index in missing if peer.has(index)]
            if not has:
                continue
            # Anywhere, so that those who ask the same neighbour have something for each other afterwards.
            start, stop = self._stretch(has, random.choice(has))
            before = self._part.bytes_here
            try:
                peer.pull(self._part, start, stop, self._on_bytes)
            except Lying as error:
                self._put_out(peer, str(error))
            except (OSError, urllib3.exceptions.HTTPError) as error:
                peer.faults += 1
                if peer.faults >= MOST_FAULTS:
                    self._put_out(peer, str(error))
            self._news(before)
            self._swarm.moved += self._part.bytes_here - before
            return True
        return False

    def _from_the_repository(self) -> bool:
        """Fetch a stretch that nobody has or claims and whose turn is ours; says whether there was one."""
        if time.monotonic() < self._begins_s or not is_open(self._source):
            return False
        peers = self._asked()
        names = [self._swarm.me, *(peer.neighbour.name for peer in peers if peer.is_fetching)]
        # Looking at many takes its time, and what was seen is as old as that.
        turn = int((time.monotonic() - self._news_s) / max(PATIENCE_S, 4 * self._look_took_s))
        free = [i for i in self._part.missing() if not any(peer.has(i) or peer.claims(i) for peer in peers)]
        mine = [index for index in free if self._rank(names, index) <= turn]
        if not mine:
            return False
        start, stop = self._stretch(mine, mine[0])
        if self._is_begun(names, start):
            return True
        before = self._part.bytes_here
        self._part.claim(start, stop)
        try:
            pull(self._source, self._part, start, stop, self._on_bytes)
        except StoppedError:
            raise
        except UnavailableError:
            self._failures += 1
            if self._failures >= FAILURES:
                raise
        finally:
            self._part.settle()
            self._part.unclaim(start, stop)
        if self._part.bytes_here == before:
            self._failures += 1
        self._news(before)
        return True

    def _is_begun(self, names: Sequence[str], index: int) -> bool:
        """Ask once more those whose turn is next to ours, who may have begun since they were looked at."""
        near = self._order(names, index)[: MOST_TURNS + 1]
        asked = [peer for peer in self._asked() if peer.neighbour.name in near]
        for peer in asked:
            peer.look(self._part)
        return any(peer.has(index) or peer.claims(index) for peer in asked)

    def _news(self, before: int) -> None:
        if self._part.bytes_here > before:
            self._news_s = self._grew_s = time.monotonic()
            self._failures = 0

    def _rank(self, names: Sequence[str], index: int) -> int:
        """Return how many come before us for the stretch that holds the chunk; never more than a few turns."""
        return min(self._order(names, index).index(self._swarm.me), MOST_TURNS)

    def _order(self, names: Sequence[str], index: int) -> list[str]:
        seed = f"{self._part.blob.sha256}{self._part.chunks[index].start // STRETCH_BYTES}"
        return sorted(names, key=lambda name: sha256(f"{seed}\0{name}".encode()).digest())

    def _stretch(self, indices: Sequence[int], index: int) -> tuple[int, int]:
        """Return the chunks around `index` that are in `indices` and in the same stretch, without gaps."""
        number = self._part.chunks[index].start // STRETCH_BYTES
        near = [i for i in indices if self._part.chunks[i].start // STRETCH_BYTES == number]
        return next((start, stop) for start, stop in runs(near) if start <= index < stop)

    def _put_out(self, peer: _Peer, why: str) -> None:
        peer.is_out = True
        peer.pool.clear()
        log.warning(f"neighbour {peer.neighbour.name} is not asked any more: {why}")


class Nearby(ServiceListener):
    """Announces where this device's blobs are, and knows where others' are, from `start` to `stop`.

    Whatever goes wrong here is a line on stderr, never a reason not to serve or to fetch.
    """

    def __init__(
        self,
        me: str,
        *,
        zeroconf: Callable[[], Zeroconf],
        addresses: Sequence[str],
        port: int,
        tasks: Tasks | None = None,
    ) -> None:
        self._me = me
        self._tasks = Tasks(tasks)
        self._is_stopped = False
        self._make = zeroconf
        self._addresses = addresses
        self._port = port
        self._lock = threading.Lock()
        self._found = dict[str, Neighbour]()
        self._zeroconf: Zeroconf | None = None
        self._registration: Future[None] | None = None

    def start(self) -> None:
        """Announce and look around, in a thread of its own: asking whether a name is free takes a second."""
        self._tasks.start("nearby", self._register)

    def stop(self) -> None:
        """Take the announcement back."""
        with self._lock:
            self._is_stopped = True
            zeroconf, self._zeroconf = self._zeroconf, None
            if self._registration is not None:
                self._registration.cancel()
        if zeroconf is not None:
            zeroconf.close()
        self._tasks.close()

    def neighbours(self) -> list[Neighbour]:
        """Return who is there now."""
        with self._lock:
            return list(self._found.values())

    def _register(self) -> None:
        try:
            zeroconf = self._make()
            info = ServiceInfo(
                SERVICE,
                f"{self._me}.{SERVICE}",
                port=self._port,
                parsed_addresses=list(self._addresses),
                properties={"txtvers": "1"},
                server=f"{self._me}-blob.local.",
            )
            with self._lock:
                self._zeroconf = None if self._is_stopped else zeroconf
                if self._zeroconf is not None:
                    # The listener ends with zeroconf, as a ServiceBrowser of our own would not.
                    zeroconf.add_service_listener(SERVICE, self)
                    self._registration = register(zeroconf, info)
            if self._registration is None:
                zeroconf.close()
                return
            self._registration.result(BLOCKED_S)
        except Exception as error:  # zeroconf raises what it likes for a network it does not
            if not self._is_stopped:
                log.warning(f"updates are not shared on this network: {error or type(error).__name__}")

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        info = zc.get_service_info(type_, name, timeout=2000)
        addresses = info.parsed_addresses() if info else []
        usable = [address for address in addresses if is_local(address)]
        if info and info.port and usable:
            with self._lock:
                self._found[name] = Neighbour(name.removesuffix(f".{SERVICE}"), _url(nearest(usable), info.port))

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        with self._lock:
            self._found.pop(name, None)


def is_local(address: str) -> bool:
    """Say whether an announced address lies on this side of the router: nobody sends us out into the world."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (ip.is_private or ip.is_link_local or ip.is_loopback) and not ip.is_multicast and not ip.is_unspecified


def _url(address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{port}"
    assert urlsplit(url).port == port
    return url
