"""Devices at one site: they share one way out, and nobody's word."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3
from zeroconf import IPVersion, Zeroconf

from fieldlm.blobs import server as blob_server
from fieldlm.blobs.fetch import BlobSource, FetchPolicy, FolderSource, fetch
from fieldlm.blobs.partial_blob import CLAIMED, map_path
from fieldlm.blobs.server import BlobServer
from fieldlm.blobs.sources import PacedSource, TokenBucket
from fieldlm.blobs.store import Blobs
from fieldlm.blobs.swarm import CLAIM_S, SETTLE_S, Nearby, Neighbour, Swarm, is_local
from fieldlm.core.config import load_config
from fieldlm.core.errors import UnavailableError
from fieldlm.core.files import CHUNK_BYTES
from fieldlm.core.hours import HourWindow
from fieldlm.device.fetch_policy import fetching
from fieldlm.formats.release import Blob, Release, blob_path
from fieldlm_compiler.repository.publish import publish
from tests.support.strangers import Babbler, Busy, Claimer, Elsewhere, Fickle, Mumbler, Trickle, dozing
from tests.support.update_simulators import small_bundle
from tests.support.waiting import wait_until

SIZE = 24 * CHUNK_BYTES + 777
WAN_BYTES_S = 50e6


@dataclass
class Device:
    """One device of the site: what it has, what it hands out, what it took from the repository."""

    name: str
    blobs: Blobs
    server: BlobServer
    wan: FolderSource
    swarm: Swarm

    @property
    def neighbour(self) -> Neighbour:
        return Neighbour(self.name, f"http://127.0.0.1:{self.server.port}")


@dataclass
class Place:
    """A repository behind one line, and a network of devices."""

    folder: Path
    release: Release
    stack: ExitStack
    line: TokenBucket = field(default_factory=lambda: TokenBucket(WAN_BYTES_S))
    around: list[Neighbour] = field(default_factory=list[Neighbour])

    @property
    def base(self) -> Blob:
        return self.release.files[0]

    def device(self, name: str, *, is_announced: bool = True, settle_s: float = 0.7, claim_s: float = 2.0) -> Device:
        blobs = Blobs(self.folder / name)
        blobs.folder.mkdir()
        server = BlobServer(blobs.folder)
        server.start()
        self.stack.callback(server.stop)
        swarm = Swarm(name, lambda: self.around, settle_s=settle_s, claim_s=claim_s)
        device = Device(name, blobs, server, FolderSource(self.folder / "repository"), swarm)
        if is_announced:
            self.around.append(device.neighbour)
        return device

    def fetch(self, device: Device, *, wan: BlobSource | None = None) -> None:
        source = wan or PacedSource(device.wan, bucket=self.line, window=None)
        manner = FetchPolicy(neighbours=device.swarm)
        fetch(source, self.release, device.blobs, wanted=[self.base], manner=manner)
        assert device.blobs.holds(self.base.sha256, self.base.size)

    def visit(self, handler: type[BaseHTTPRequestHandler], name: str) -> None:
        """Let a stranger join the network."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.stack.callback(server.server_close)
        self.stack.callback(server.shutdown)
        self.around.append(Neighbour(name, f"http://127.0.0.1:{server.server_port}"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    bundle = small_bundle(tmp_path / "bundle", base_bytes=SIZE)
    release = publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    with ExitStack() as stack:
        yield Place(tmp_path, release, stack)


def together(tasks: Sequence[Callable[[], object]]) -> None:
    """Run all at the same time, and raise what any of them raised."""
    faults = list[BaseException]()

    def run(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


def test_eight_devices_that_begin_together_bring_one_model_over_the_line(place: Place) -> None:
    place.line = TokenBucket(10e6)
    # With the patience that a device has: on a busy machine two seconds pass between two chunks of one of eight.
    devices = [place.device(f"kiosk-{number}", settle_s=SETTLE_S, claim_s=CLAIM_S) for number in range(8)]
    together([partial(place.fetch, device) for device in devices])
    indices = len(devices) * place.base.index_blob.size
    assert sum(device.wan.moved for device in devices) <= 1.1 * SIZE + indices
    assert sum(device.wan.moved > CHUNK_BYTES for device in devices) > 1  # each its share


def test_who_comes_late_takes_everything_from_a_neighbour(place: Place) -> None:
    place.fetch(place.device("first"))
    late = place.device("late")
    place.fetch(late)
    assert late.wan.moved == place.base.index_blob.size
    assert late.swarm.moved == SIZE


def test_a_neighbour_that_now_and_then_does_not_answer_is_asked_again(place: Place) -> None:
    place.visit(dozing(place.folder / "repository"), "dozing")
    device = place.device("kiosk")
    place.fetch(device)
    assert device.wan.moved == place.base.index_blob.size
    assert device.swarm.moved == SIZE


def test_a_neighbour_that_lies_costs_a_chunk(place: Place) -> None:
    liar = place.device("liar")
    path = liar.blobs.path(place.base.sha256)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(SIZE))
    honest = place.device("honest")
    place.fetch(honest)
    assert honest.swarm.moved == 0
    assert honest.wan.moved == SIZE + place.base.index_blob.size


@pytest.mark.parametrize("stranger", [Trickle, Claimer, Busy, Fickle, Babbler, Mumbler, Elsewhere])
def test_a_stranger_holds_nobody_up(place: Place, stranger: type[BaseHTTPRequestHandler]) -> None:
    place.visit(stranger, "stranger")
    device = place.device("kiosk")
    place.fetch(device)
    assert device.wan.moved == SIZE + place.base.index_blob.size
    assert Trickle.asked <= 1


def test_neighbours_that_are_gone_hold_nobody_up(place: Place) -> None:
    place.around += [Neighbour(f"gone-{number}", "http://127.0.0.1:9") for number in range(5)]
    device = place.device("kiosk")
    place.fetch(device)
    assert device.wan.moved == SIZE + place.base.index_blob.size


class Away(FolderSource):
    """A repository that hands out the small files and then is away."""

    def open(self, path: str, start: int = 0, stop: int | None = None):
        if stop is not None and stop - start >= CHUNK_BYTES:
            raise UnavailableError("the line is cut; try again later")
        return super().open(path, start, stop)


def test_a_site_that_is_cut_off_shares_what_it_has(place: Place) -> None:
    place.fetch(place.device("first"))
    late = place.device("late")
    place.fetch(late, wan=Away(place.folder / "repository"))
    assert late.swarm.moved == SIZE


def test_a_site_that_is_cut_off_says_so_when_nobody_has_it(place: Place) -> None:
    place.device("other")
    device = place.device("kiosk")
    with pytest.raises(UnavailableError, match="the line is cut"):
        place.fetch(device, wan=Away(place.folder / "repository"))


def test_two_that_do_not_reach_the_repository_any_more_complete_each_other(place: Place) -> None:
    whole = (place.folder / "repository" / blob_path(place.base.sha256)).read_bytes()
    devices = [place.device(f"half-{number}") for number in range(2)]
    for number, device in enumerate(devices):
        with pytest.raises(UnavailableError):
            fetch(
                Away(place.folder / "repository"),
                place.release,
                device.blobs,
                wanted=[place.base],
            )
        folder = device.blobs.folder / "fetch"
        part = folder / f"{place.base.sha256}.part"
        here = bytearray(map_path(folder, place.base.sha256).read_bytes())
        with part.open("r+b") as file:
            for index in range(number, len(here), 2):
                file.seek(index * CHUNK_BYTES)
                file.write(whole[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
                here[index] = 1
        map_path(folder, place.base.sha256).write_bytes(here)
    together([partial(place.fetch, device, wan=Away(place.folder / "repository")) for device in devices])


def test_a_device_hands_out_chunks_that_are_here_and_nothing_else(place: Place) -> None:
    device = place.device("kiosk")
    folder, sha256 = device.blobs.folder / "fetch", place.base.sha256
    with pytest.raises(UnavailableError):
        fetch(Away(place.folder / "repository"), place.release, device.blobs, wanted=[place.base])
    here = bytearray(map_path(folder, sha256).read_bytes())
    here[3], here[4] = 1, CLAIMED[0]
    map_path(folder, sha256).write_bytes(here)
    (device.blobs.folder / "secret").write_text("secret")

    def get(path: str, asked: str = "") -> int:
        headers = {"Range": f"bytes={asked}"} if asked else {}
        return urllib3.request("GET", f"{device.neighbour.url}{path}", headers=headers, retries=False).status

    blob = f"/{blob_path(sha256)}"
    mib = CHUNK_BYTES
    assert get(blob, f"{3 * mib}-{4 * mib - 1}") == 206
    assert get(blob, f"{3 * mib}-{4 * mib}") == 416  # claimed is not here
    assert get(blob, f"{2 * mib}-{4 * mib - 1}") == 416
    assert get(blob, "0-0") == 416
    assert get(blob, f"{3 * mib}-{2 * mib}") == 416
    assert get(blob, f"-{mib}") == 416
    assert get(blob) == 416
    assert get(f"/maps/{sha256}") == 200
    assert get(f"/maps/{'0' * 64}") == 404
    for path in ("/", "/secret", "/blobs/", "/fetch/", f"/blobs/sha256/../../secret{'0' * 58}", f"/maps/../{'a' * 61}"):
        assert get(path, "0-3") == 404


def test_connections_that_only_lie_open_are_bounded_and_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_server, "MOST_OF_ONE", 8)
    monkeypatch.setattr(blob_server, "IDLE_S", 1.0)
    device = place.device("kiosk")
    threads, held = threading.active_count(), list[socket.socket]()
    try:
        for _ in range(40):
            held.append(socket.create_connection(("127.0.0.1", device.server.port)))
            held[-1].sendall(b"GET / HTTP/1.1\r\nX: ")
        wait_until(lambda: threading.active_count() <= threads + 8)

        def drips() -> bool:
            """Send each a byte; says whether one is still there."""
            for one in [*held]:
                try:
                    one.sendall(b"x")
                except OSError:
                    held.remove(one)
                    one.close()
            return bool(held)

        wait_until(lambda: not drips())
        assert urllib3.request("GET", f"{device.neighbour.url}/maps/{place.base.sha256}").status == 404
    finally:
        for one in held:
            one.close()


def test_neighbours_find_each_other_and_notice_who_leaves() -> None:
    make = partial(Zeroconf, interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only)
    nearby = [Nearby(f"kiosk-{n}", zeroconf=make, addresses=["127.0.0.1"], port=4000 + n) for n in range(2)]
    for one in nearby:
        one.start()
    try:
        first, second = nearby
        wait_until(lambda: "http://127.0.0.1:4001" in {one.url for one in first.neighbours()})
        wait_until(lambda: "http://127.0.0.1:4000" in {one.url for one in second.neighbours()})
        second.stop()
        wait_until(lambda: "http://127.0.0.1:4001" not in {one.url for one in first.neighbours()})
    finally:
        for one in nearby:
            one.stop()


def test_two_devices_with_their_settings_alone_find_and_serve_each_other(place: Place) -> None:
    env = {"HOME": str(place.folder)}
    configs = [load_config({"state": str(place.folder / name), "device": name}, env) for name in ("kiosk-a", "kiosk-b")]
    with ExitStack() as stack:
        manners = [stack.enter_context(fetching(config, host="127.0.0.1")) for config in configs]
        first, second = (Blobs(config.state) for config in configs)
        fetch(FolderSource(place.folder / "repository"), place.release, first, wanted=[place.base])
        swarm = manners[1].neighbours
        assert isinstance(swarm, Swarm)
        wait_until(lambda: "kiosk-a" in {one.name for one in swarm.find()})
        away = Away(place.folder / "repository")
        fetch(away, place.release, second, wanted=[place.base], manner=manners[1])
        assert second.holds(place.base.sha256, place.base.size)
        assert swarm.moved == SIZE


def test_outside_its_hours_a_device_takes_what_its_neighbours_have(place: Place) -> None:
    place.fetch(place.device("first"))
    late = place.device("late")
    now = datetime.now()
    minute = now.hour * 60 + now.minute
    closed = HourWindow(opens=(minute + 600) % 1440, closes=(minute + 660) % 1440)
    manner = FetchPolicy(window=closed, neighbours=late.swarm)
    fetch(late.wan, place.release, late.blobs, wanted=[place.base], manner=manner)
    assert late.swarm.moved == SIZE
    assert late.wan.moved == place.base.index_blob.size


@pytest.mark.parametrize(
    ("address", "is_near"),
    [
        ("192.168.1.7", True), ("10.0.0.1", True), ("127.0.0.1", True), ("169.254.3.3", True), ("fe80::1", True),
        ("8.8.8.8", False), ("2001:4860:4860::8888", False), ("224.0.0.251", False), ("0.0.0.0", False), ("x", False),
    ],
)  # fmt: skip
def test_only_addresses_on_this_side_of_the_router_are_asked(address: str, is_near: bool) -> None:
    assert is_local(address) is is_near
