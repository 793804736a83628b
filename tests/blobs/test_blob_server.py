"""The blob server by itself: who holds connections open, and what it listens on."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from fieldlm.blobs.server import MOST, MOST_OF_ONE, BlobServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BlobServer]:
    made = BlobServer(tmp_path)
    made.start()
    yield made
    made.stop()


def test_neighbours_that_hold_all_connections_lock_nobody_out(server: BlobServer) -> None:
    threads, held = threading.active_count(), list[socket.socket]()
    try:
        for number in range(2 * MOST):
            source = (f"127.0.0.{2 + number // MOST_OF_ONE}", 0)
            held.append(socket.create_connection(("127.0.0.1", server.port), timeout=60, source_address=source))
            held[-1].sendall(b"GET / HTTP/1.1\r\nX: ")
        url = f"http://127.0.0.1:{server.port}/maps/{'0' * 64}"
        assert urllib3.request("GET", url, retries=False, timeout=60).status == 404
        assert held[0].recv(1) == b"", "the first to come made room"
        assert threading.active_count() <= threads + MOST + MOST_OF_ONE
    finally:
        for one in held:
            one.close()


def test_blobs_are_handed_out_over_ipv6(tmp_path: Path) -> None:
    server = BlobServer(tmp_path, host="::1")
    server.start()
    try:
        assert urllib3.request("GET", f"http://[::1]:{server.port}/maps/{'0' * 64}", retries=False).status == 404
    finally:
        server.stop()
