"""A collector says once that its broker is away, why and what to look at, and when it is back."""

import contextlib
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.parquet import Store
from tests.support.certificate import certificate
from tests.support.mqtt_gate import MqttGate
from tests.support.waiting import wait_until

USER = "kiosk:secret-word@"


@contextlib.contextmanager
def collecting(tmp_path: Path, url: str) -> Generator[None]:
    with Store(tmp_path / "store") as store, Collector(url, "shop", store):
        yield


def said(logged: pytest.LogCaptureFixture, what: str) -> int:
    return sum(what in record.getMessage() for record in logged.records)


def outages(logged: pytest.LogCaptureFixture) -> int:
    """Return how often it was said that the broker is away, in the words of either end of a connection."""
    return said(logged, "closed the connection") + said(logged, "is away")


def dropped(gate: MqttGate) -> bool:
    """End what is open at the gate, perhaps nothing yet."""
    gate.drop()
    return True


def test_a_broker_that_is_away_is_named_with_what_to_look_at(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    with socket.socket() as nobody:  # holds the port, and listens on none
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with collecting(tmp_path, f"mqtt://{USER}127.0.0.1:{port}"):
            wait_until(lambda: said(logged, "is away (Connection refused): is it running"))
    assert said(logged, f"mqtt://127.0.0.1:{port}") == 1
    assert "secret-word" not in logged.text


def test_an_outage_is_said_once_and_its_end_too(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    with MqttGate("hangs up") as gate, collecting(tmp_path, f"mqtt://{USER}{gate.address}"):
        wait_until(lambda: gate.tried >= 2)
        gate.answer = "open"
        wait_until(lambda: said(logged, "is there"))
        assert outages(logged) == 1
        gate.answer = "hangs up"
        before = gate.tried
        wait_until(lambda: dropped(gate) and gate.tried >= before + 2)
        gate.answer = "open"
        wait_until(lambda: said(logged, "is back"))
        assert outages(logged) == 2
    assert outages(logged) == 2, "the collector's own end is no outage"
    assert "secret-word" not in logged.text


# paho leaves a socket to the collector of garbage when the handshake fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_certificate_that_nobody_vouches_for_is_said_once(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    with MqttGate("open", certificate(tmp_path)) as gate:
        port = gate.address.rpartition(":")[2]
        with collecting(tmp_path, f"mqtts://{USER}localhost:{port}"):
            wait_until(lambda: gate.tried >= 3)
    assert said(logged, "is not trusted: self-signed certificate") == 1
    assert said(logged, "--broker-ca") == 1


def test_a_broker_that_refuses_is_said_once(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    with MqttGate("refuses") as gate, collecting(tmp_path, f"mqtt://{USER}{gate.address}"):
        wait_until(lambda: gate.tried >= 3)
    assert [record.getMessage() for record in logged.records if "refused: Not authorized" in record.getMessage()]
    assert said(logged, "broker") == 1
    assert "secret-word" not in logged.text


def test_a_broker_that_lets_nothing_be_read_is_said_once(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    with MqttGate("lets nothing be read") as gate, collecting(tmp_path, f"mqtt://{gate.address}"):
        wait_until(lambda: dropped(gate) and said(logged, "closed the connection") >= 3)
    assert said(logged, "not read what devices send") == 1
