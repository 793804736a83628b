"""Servers that send a byte now and then, for ever: nobody waits for them, and the owner comes first."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fieldlm.blobs import sources, web_source
from fieldlm.blobs.web_source import WebSource
from fieldlm.core.errors import UnavailableError
from fieldlm.updates.updater import Updater
from tests.support.update_simulators import ServingSimulator, Site, make_site, small_bundle

DROP_S = 0.02


class Trickle(SimpleHTTPRequestHandler):
    """Sends the small files as they are, and a byte now and then of those that are larger."""

    drop = 1
    most_at_once = 100_000

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if self.most_at_once and not (path.is_file() and path.stat().st_size > self.most_at_once):
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", "4000000000")
        self.end_headers()
        self.trickle(b"x" * self.drop)

    def trickle(self, drop: bytes) -> None:
        try:
            while True:
                self.wfile.write(drop)
                time.sleep(DROP_S)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


class TrickleAll(Trickle):
    most_at_once = 0


class TrickleHead(Trickle):
    """Never comes to the end of its headers."""

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
        self.trickle(b"x")


class Slow(Trickle):
    """Comes at a speed that is slow, and none that is a reason to give up."""

    drop = 256


Start = Callable[[type[Trickle]], str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers = list[ThreadingHTTPServer]()

    def begin(handler: type[Trickle]) -> str:
        made = partial(handler, directory=str(tmp_path / "repository"))
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), made))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A device that took an adapter, and is offered another base."""
    site = make_site(tmp_path, small_bundle(tmp_path / "base"))
    site.publish(small_bundle(tmp_path / "tuned", adapter="coffee"))
    site.update()
    site.publish(small_bundle(tmp_path / "other", base="other"))
    yield site
    site.slots.close()


@pytest.mark.parametrize(("handler", "step"), [(Trickle, "fetch"), (TrickleAll, "check"), (TrickleHead, "check")])
def test_a_repository_that_trickles_for_ever_is_given_up_and_a_better_one_is_taken(
    site: Site, start: Start, monkeypatch: pytest.MonkeyPatch, handler: type[Trickle], step: str
) -> None:
    monkeypatch.setattr(sources, "LEAST_WITHIN_S", 0.3)
    monkeypatch.setattr(web_source, "READ_S", 0.5)
    updater = site.updater()
    result = updater.check_and_update(repository=start(handler))
    assert (result.outcome, result.reason) == ("failed", "link")
    assert result.timeline[-1].step == step
    assert updater.check_and_update(repository=str(site.repository)).outcome == "updated"


def test_a_connection_that_trickles_says_how_little_came(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LEAST_WITHIN_S", 0.3)
    source = WebSource(start(TrickleAll))
    with source.open("large") as reader, pytest.raises(UnavailableError, match=r"no more than \d+ bytes came in \d+ s"):
        reader.read(1_000_000)


def under_way(updater: Updater[ServingSimulator], address: str) -> threading.Thread:
    """Let the device find a release by itself, and wait until it comes from a repository that takes days for it."""
    updater.repository = address
    updater.on_hint()
    while updater.state.step != "fetch" or not updater.state.running:
        time.sleep(0.01)
    return next(thread for thread in threading.enumerate() if thread.name == "hear")


def test_who_owns_the_device_does_not_wait_for_what_is_being_fetched(site: Site, start: Start) -> None:
    updater = site.updater()
    thread = under_way(updater, start(Slow))
    assert updater.roll_back("asked: by the owner").id == site.base.id
    thread.join()
    assert updater.state.last
    assert (updater.state.last.outcome, updater.state.last.reason) == ("failed", "stopped")
    assert site.slots.current().id == site.base.id
    assert updater.check_and_update(repository=str(site.repository)).outcome == "updated"


def test_an_update_that_somebody_asks_for_does_not_wait_for_one_that_nobody_did(site: Site, start: Start) -> None:
    updater = site.updater()
    thread = under_way(updater, start(Slow))
    updater.start(repository=str(site.repository))
    thread.join()
    while updater.state.running or updater.state.runs < 2:
        time.sleep(0.01)
    assert updater.state.last
    assert updater.state.last.outcome == "updated"


def test_a_device_that_is_stopped_does_not_wait_for_what_is_being_fetched(site: Site, start: Start) -> None:
    updater = site.updater()
    thread = under_way(updater, start(Slow))
    updater.close()
    thread.join()
    assert updater.state.last
    assert updater.state.last.reason == "stopped"
