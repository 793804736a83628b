"""What a device says and does on a real Mosquitto, configured as fleets configure theirs."""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.enums import CallbackAPIVersion

from fieldlm.core.signing import key_id
from fieldlm.formats import block, topics
from fieldlm.formats.policy import Policy, sign_policy
from fieldlm.formats.record import Record
from fieldlm.network.broker_identity import Identity
from fieldlm.network.mqtt import Link
from fieldlm.telemetry.effective_policy import EffectivePolicy
from fieldlm.telemetry.recorder import Recorder
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync import Sync
from fieldlm.telemetry.sync_session import Timing
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.parquet import Store
from tests.support.brokers import mosquitto
from tests.support.certificate import Authority
from tests.telemetry.test_recorder import SECRETS, TERMS, Exchange

QUICK = Timing(ack_s=1.0, linger_s=0.05, backoff_base_s=0.05, backoff_cap_s=0.3)


def soon(holds: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


@contextmanager
def listening(url: str, name: str) -> Generator[list[mqtt.MQTTMessage]]:
    """Subscribe to `name` and yield the list in which messages arrive."""
    heard: list[mqtt.MQTTMessage] = []
    is_ready = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=secrets.token_hex(4), protocol=mqtt.MQTTv5)
    client.on_message = lambda _client, _data, message: heard.append(message)
    client.on_subscribe = lambda _client, _data, _id, _reasons, _properties: is_ready.set()
    address = topics.parse_broker(url)
    client.connect(address.host, address.port)
    client.subscribe(name, qos=1)
    client.loop_start()
    try:
        assert is_ready.wait(10)
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()
        client.on_message = client.on_subscribe = None


@contextmanager
def synced(spool: Spool, url: str, **more: Any) -> Generator[Sync]:
    sync = Sync(spool, broker_url=url, fleet="shop", device="kiosk-1", timing=QUICK, **more)
    sync.start()
    try:
        yield sync
    finally:
        sync.stop()


def fill(spool: Spool, count: int, answer: str = "") -> None:
    for _ in range(count):
        assert spool.append(Record(device="kiosk-1", stream="gen", kind="generation", answer=answer))
    assert spool.flush()


class Tap:
    """A wire with an ear on it: passes bytes between a device and a broker and keeps them."""

    def __init__(self, url: str) -> None:
        self.heard = bytearray()
        self._broker = topics.parse_broker(url)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection((self._broker.host, self._broker.port))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while data := one.recv(65536):
                self.heard += data
                other.sendall(data)
            other.shutdown(socket.SHUT_RDWR)


def test_in_metrics_mode_no_text_is_on_the_disk_or_on_the_wire(tmp_path: Path) -> None:
    words = [*SECRETS, "latte", "orders", "yes-please-a-tea"]
    with mosquitto(tmp_path, "allow_anonymous true") as url, listening(url, "fieldlm/#") as heard:
        tap = Tap(url)
        with Store(tmp_path / "store") as store, Collector(url, "shop", store), Spool(tmp_path / "spool.db") as spool:
            recorder = Recorder(spool, device="kiosk-1", mode="metrics", salt=b"salt")
            for number in range(300):
                recorder.exchange(Exchange(id=f"r{number}"))
            assert recorder.feedback("r7", "down", "yes-please-a-tea for Maria")
            recorder.sum_up()
            with synced(spool, tap.url) as sync:
                spool.flush()
                files = [path for path in tmp_path.iterdir() if path.name.startswith("spool.db")]
                disk = b"".join(path.read_bytes() for path in files)
                assert sync.drain(30)
            assert store.query("SELECT count(*) AS n FROM records WHERE kind = 'generation'") == [{"n": 300}]
        tap.close()
    assert {"spool.db", "spool.db-wal"} <= {path.name for path in files}
    blocks = [block.parse(bytes(message.payload)) for message in heard if "/t/" in message.topic]
    assert sum(found.count for found in blocks) == 302
    wire = bytes(tap.heard) + b"".join(zstd.decompress(found.body) for found in blocks)
    assert all(found.body in tap.heard for found in blocks)
    assert b"r123" in disk
    assert b"r123" in wire
    for place in (disk, wire):
        assert not [word for word in words if word.casefold().encode() in place.lower()]


def test_a_block_expires_at_the_broker_and_says_what_it_is(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "allow_anonymous true") as url, listening(url, "fieldlm/#") as heard:
        with Store(tmp_path / "store") as store, Collector(url, "shop", store), Spool(tmp_path / "s.db") as spool:
            fill(spool, 10)
            with synced(spool, url) as sync:
                assert sync.drain(30)
        (sent,) = [message for message in heard if "/t/" in message.topic]
    properties: Any = sent.properties
    assert 86_000 < properties.MessageExpiryInterval <= 86_400
    assert properties.ContentType == topics.CONTENT_TYPE
    assert ("v", "1") in properties.UserProperty


def test_a_broker_that_allows_few_messages_on_the_way_gets_no_more(tmp_path: Path) -> None:
    # Mosquitto closes on whoever exceeds its maximum, and what was on the way is sent again.
    with mosquitto(tmp_path, "allow_anonymous true", "max_inflight_messages 4") as url:
        with Store(tmp_path / "store") as store, Collector(url, "shop", store), Spool(tmp_path / "s.db") as spool:
            fill(spool, 2000)
            with synced(spool, url) as sync:
                assert soon(lambda: sync.status().connected)
                link: Link | None = sync._link  # pyright: ignore[reportPrivateUsage]  # what the broker said is not public
                assert link
                assert link.receive_maximum == 4
                assert sync.drain(30)
                status = sync.status()
        assert (status.acked_records, status.resent_blocks) == (2000, 0)


def test_a_record_too_large_for_the_broker_arrives_without_its_text_and_holds_nothing_up(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "allow_anonymous true", "max_packet_size 20000") as url:
        with Store(tmp_path / "store") as store, Collector(url, "shop", store), Spool(tmp_path / "s.db") as spool:
            fill(spool, 5, "short")
            fill(spool, 1, secrets.token_hex(40_000))
            fill(spool, 300, secrets.token_hex(150))
            with synced(spool, url) as sync:
                assert sync.drain(60)
        with Store(tmp_path / "store", read_only=True) as store:
            rows = store.query("SELECT seq, length(answer) AS size FROM records ORDER BY seq")
            assert store.gaps() == []
    assert [row["size"] for row in rows] == [5] * 5 + [0] + [300] * 300


def test_a_retained_message_without_bound_stays_at_the_broker(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "allow_anonymous true") as url, contextlib.closing(Tap(url)) as tap:
        publish(url, topics.policy_topic("shop"), bytes(8 << 20))
        publish(url, topics.block_topic("shop", "kiosk-1", "gen"), bytes(8 << 20))
        with Store(tmp_path / "store") as store, Collector(tap.url, "shop", store), Spool(tmp_path / "s.db") as spool:
            fill(spool, 10)
            with synced(spool, tap.url) as sync:
                assert sync.drain(30)
        assert len(tap.heard) < 1 << 20


def test_whoever_comes_later_finds_the_presence_and_whoever_waits_the_last_will(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "allow_anonymous true") as url, Spool(tmp_path / "s.db") as spool:
        name = topics.state_topic("shop", "kiosk-1")
        with synced(spool, url) as sync:
            sync.set_presence({"state": "ready", "generation": "abc"})
            assert soon(lambda: sync.status().connected)
            with listening(url, name) as heard:
                assert soon(lambda: any(b'"abc"' in message.payload for message in heard))
            with listening(url, name) as heard:
                assert soon(lambda: bool(heard))
                assert (heard[0].retain, b'"abc"' in heard[0].payload) == (True, True)
                link: Any = sync._link  # pyright: ignore[reportPrivateUsage]  # a cable that is cut says no goodbye
                link._client.socket().shutdown(socket.SHUT_RDWR)
                assert soon(lambda: any(b'"lost"' in message.payload for message in heard))
                assert soon(lambda: b'"abc"' in heard[-1].payload)
        with listening(url, name) as heard:
            assert soon(lambda: bool(heard))
            assert (heard[0].retain, b'"stopped"' in heard[0].payload) == (True, True)


def test_two_devices_of_one_name_both_get_home_and_are_told(tmp_path: Path) -> None:
    with (
        mosquitto(tmp_path, "allow_anonymous true") as url,
        Store(tmp_path / "store") as store,
        Collector(url, "shop", store),
        Spool(tmp_path / "1.db") as one,
        Spool(tmp_path / "2.db") as two,
        synced(one, url) as first,
        synced(two, url) as second,
    ):
        for _ in range(3):
            fill(one, 100)
            fill(two, 100)
            assert first.drain(30)
            assert second.drain(30)
        assert soon(lambda: "kiosk-1" in first.status().problem + second.status().problem)
        assert soon(lambda: "name-doubled" in (first.status().trouble, second.status().trouble))
        assert soon(lambda: first.status().connected and second.status().connected)
        counts = [(count.device, count.records) for count in store.counts() if count.stream == "gen"]
        assert counts == [("kiosk-1", 600)]
        assert store.gaps() == []


def test_a_retained_policy_reaches_the_device_and_only_a_trusted_one_counts(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    terms = EffectivePolicy("full", fleet="shop", path=tmp_path / "policy.json", signer=key_id(key.public_key()))
    quiet = Policy(fleet="shop", version=2, telemetry="metrics", daily_mb=3.0, reconnect_window_s=0.25)
    with mosquitto(tmp_path, "allow_anonymous true") as url, Spool(tmp_path / "s.db") as spool:
        name = topics.policy_topic("shop")
        with listening(url, "nothing"):
            publish(url, name, sign_policy(quiet, key))
        with synced(spool, url, terms=terms, daily_mb=5.0) as sync:
            assert soon(lambda: terms.version == 2)
            assert (terms.mode, sync.budget.daily_mb) == ("metrics", 3.0)
            publish(url, name, sign_policy(Policy(fleet="shop", version=9), Ed25519PrivateKey.generate()))
            publish(url, name, sign_policy(Policy(fleet="shop", version=3, telemetry="off"), key))
            assert soon(lambda: terms.version == 3)
            assert (terms.mode, sync.budget.daily_mb) == ("off", 5.0)


def publish(url: str, name: str, payload: bytes) -> None:
    address = topics.parse_broker(url)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=secrets.token_hex(4), protocol=mqtt.MQTTv5)
    client.connect(address.host, address.port)
    client.loop_start()
    client.publish(name, payload, qos=1, retain=True).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def test_a_forgotten_session_leaves_the_store_too(tmp_path: Path) -> None:
    with (
        mosquitto(tmp_path, "allow_anonymous true") as url,
        Store(tmp_path / "store") as store,
        Collector(url, "shop", store),
        Spool(tmp_path / "s.db") as spool,
        synced(spool, url) as sync,
    ):
        recorder = Recorder(spool, device="kiosk-1", mode="full", salt=b"salt", consents=TERMS)
        for who in ("customer-42", "another"):
            recorder.exchange(Exchange(id=who, session=who, answer=f"tea for {who}"))
        assert sync.drain(30)
        sql = "SELECT answer FROM records WHERE answer <> '' ORDER BY answer"
        assert [row["answer"] for row in store.query(sql)] == ["tea for another", "tea for customer-42"]
        recorder.forget("customer-42")
        assert sync.drain(30)
        assert [row["answer"] for row in store.query(sql)] == ["tea for another"]


# paho leaves a socket to the collector of garbage when the handshake fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_with_a_certificate_on_either_side(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "other")
    server, mine = authority.issue("broker"), authority.issue("kiosk-1")
    lines = [f"cafile {authority.ca}", f"certfile {server[0]}", f"keyfile {server[1]}", "require_certificate true"]
    acl = tmp_path / "acl"
    acl.write_text("user kiosk-1\ntopic readwrite fieldlm/1/shop/#\n")
    lines += ["use_identity_as_username true", f"acl_file {acl}"]
    with mosquitto(tmp_path, *lines, tls=True) as url, Spool(tmp_path / "s.db") as spool:
        foreign = stranger.issue("kiosk-1")
        refused = [
            (Identity(ca=authority.ca), "no certificate"),
            (Identity(ca=stranger.ca, cert=mine[0], key=mine[1]), "a broker that nobody vouches for"),
            (Identity(ca=authority.ca, cert=foreign[0], key=foreign[1]), "a certificate of a stranger"),
            (Identity(ca=authority.ca, cert=str(tmp_path / "none.pem")), "a file that is not there"),
        ]
        for identity, why in refused:
            with synced(spool, url, identity=identity) as sync:
                assert soon(lambda sync=sync: sync.status().problem not in ("", "not connected yet")), why
                assert not sync.status().connected, why
        with synced(spool, url, identity=Identity(ca=authority.ca, cert=mine[0], key=mine[1])) as sync:
            assert soon(lambda: sync.status().connected)
            assert sync.status().problem == ""
