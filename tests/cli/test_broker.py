import queue
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.cli.broker import EmbeddedBroker, check_free, free_port, main
from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.network.mqtt import Closed, Inbox, Link, Received


@pytest.fixture
def broker(tmp_path: Path) -> Generator[EmbeddedBroker]:
    with EmbeddedBroker(port=0, folder=tmp_path) as made:
        yield made


def link(broker: EmbeddedBroker, name: str, inbox: Inbox, will: tuple[str, bytes] | None = None) -> Link:
    return Link(broker.url, client_id=name, session_expiry_s=60, inbox=inbox, will=will)


def test_messages_retained_messages_and_payloads_of_a_block_get_through(broker: EmbeddedBroker) -> None:
    inbox: Inbox = queue.SimpleQueue()
    with link(broker, "one", queue.SimpleQueue()) as one:
        one.publish("kept", b"1", retain=True)
        with link(broker, "two", inbox) as two:
            two.subscribe(["kept", "big"])
            assert inbox.get(timeout=10) == Received("kept", b"1")
            one.publish("big", bytes(1 << 20), expiry_s=60, content_type="x")
            assert inbox.get(timeout=10) == Received("big", bytes(1 << 20))


def test_the_session_of_a_device_that_is_away_keeps_its_messages(broker: EmbeddedBroker) -> None:
    inbox: Inbox = queue.SimpleQueue()
    with link(broker, "two", queue.SimpleQueue()) as two:
        two.subscribe(["cmd", "ready"])
        two.publish("ready", b"")
    with link(broker, "one", queue.SimpleQueue()) as one:
        one.publish("cmd", b"blink")
    with link(broker, "two", inbox):
        found = {inbox.get(timeout=10)}
        while Received("cmd", b"blink") not in found:
            found.add(inbox.get(timeout=10))


def test_a_killed_broker_ends_its_links_and_starts_again_on_the_same_port(broker: EmbeddedBroker) -> None:
    inbox: Inbox = queue.SimpleQueue()
    with link(broker, "one", inbox):
        broker.kill()
        assert isinstance(inbox.get(timeout=10), Closed)
    broker.start()
    with link(broker, "one", queue.SimpleQueue()):
        pass


def test_a_taken_port_is_a_clear_error(broker: EmbeddedBroker) -> None:
    with pytest.raises(UnavailableError, match=f"port {broker.port} .* is taken"):
        main(["--port", str(broker.port)])


def test_a_broker_that_is_away_is_a_clear_error() -> None:
    port = free_port()
    away = Link(f"mqtt://127.0.0.1:{port}", client_id="x", session_expiry_s=0, inbox=queue.SimpleQueue())
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port} is away"):
        away.__enter__()


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70_000), ("no.such.host.invalid", 1883)])
def test_an_address_that_cannot_be_is_an_input_error(host: str, port: int) -> None:
    with pytest.raises(InputError):
        check_free(host, port)


def test_the_broker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    port = free_port()
    script = (
        "import os, sys; from fieldlm.cli.broker import EmbeddedBroker\n"
        f"EmbeddedBroker(port={port}).start(); print('up', flush=True); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return
    pytest.fail("it still accepts connections")
