import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from paho.mqtt import publish
from paho.mqtt.client import MQTTv5

from fieldlm.formats import topics
from fieldlm.formats.record import Record
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync import Sync, Timing
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.parquet import Store
from tests.support import brokers

QUICK = Timing(ack_s=1.0, linger_s=0.1, backoff_base_s=0.1, backoff_cap_s=0.5)
FIELDLM = [sys.executable, "-c", "import sys; from fieldlm.cli.main import main; sys.exit(main())"]


@pytest.fixture(params=brokers.NAMES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[brokers.Broker]:
    made = brokers.make(request.param, tmp_path / "broker")
    made.start()
    yield made
    made.stop()


def soon(holds: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Device:
    """A device in a process of its own; `durable` holds the ids of what it has reported as written to its disk."""

    def __init__(self, folder: Path, url: str, name: str) -> None:
        self.folder, self.url, self.name = folder, url, name
        self.durable: set[str] = set()
        self.last_line = ""
        self.run = 0

    def start(self, count: int, pause_s: float) -> None:
        self.run += 1
        script = Path(__file__).parents[1] / "support/sync_process.py"
        args = [self.folder / "spool.db", self.url, self.name, self.run, count, pause_s]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, args)], stdout=subprocess.PIPE, text=True
        )
        self.reader = threading.Thread(target=self._read, args=(self.run,))
        self.reader.start()

    def _read(self, run: int) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.last_line = line.strip()
            # Of one that was killed the last line may be a part.
            if line.startswith("durable ") and line.endswith("\n"):
                self.durable |= {f"{self.name}-{run}-{i}" for i in range(int(line.split()[1]))}

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        code = self.process.wait(60)
        self.reader.join()
        assert self.process.stdout
        self.process.stdout.close()
        return code


def start_collector(url: str, store: Path | str, *more: str) -> subprocess.Popen[bytes]:
    args = ["collect", "--broker", url, "--store", str(store), "--fleet", "shop", "--json", *more]
    return subprocess.Popen([*FIELDLM, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stored(folder: Path) -> list[str]:
    with Store(folder, read_only=True) as store:
        return [row["response"] for row in store.query("SELECT response FROM records")]


def test_nothing_is_lost_or_doubled_when_device_broker_and_collector_are_killed(
    broker: brokers.Broker, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    devices = [Device(tmp_path / name, broker.url, name) for name in ("kiosk-1", "robot-2")]
    collector = start_collector(broker.url, store)
    try:
        for device in devices:
            device.start(10_000, 0.02)
        assert soon(lambda: (store / "store.db").exists() and len(stored(store)) > 200)

        broker.kill()
        assert soon(lambda: all(len(device.durable) > 400 for device in devices))
        broker.start()
        assert soon(lambda: len(stored(store)) > 900)

        collector.kill()
        collector.wait()
        for device in devices:
            device.kill()
        collector = start_collector(broker.url, store)
        for device in devices:
            device.start(200, 0.01)
        assert [device.wait() for device in devices] == [0, 0]
        assert all(device.last_line.startswith("drained") for device in devices)
    finally:
        for device in devices:
            device.kill()
        collector.send_signal(signal.SIGTERM)
        assert collector.wait(30) == 0

    ids = stored(store)
    assert len(ids) == len(set(ids))
    assert set().union(*(device.durable for device in devices)) <= set(ids)
    with Store(store, read_only=True) as opened:
        assert opened.gaps() == []
        in_store = {(c.device, c.stream): c.records for c in opened.counts()}
    for device in devices:
        with Spool(device.folder / "spool.db") as spool:
            counts = spool.counts()
        assert all(count.held == 0 for count in counts.values())
        assert {s: c.last for s, c in counts.items() if c.last} == {
            s: n for (d, s), n in in_store.items() if d == device.name
        }


def test_a_release_and_a_command_reach_the_device_once_and_its_presence_the_store(
    broker: brokers.Broker, tmp_path: Path
) -> None:
    releases: list[bytes] = []
    commands: list[bytes] = []
    port = int(broker.url.rsplit(":", 1)[1])

    def send(topic: str, payload: bytes, *, retain: bool) -> None:
        publish.single(topic, payload, qos=1, retain=retain, hostname="127.0.0.1", port=port, protocol=MQTTv5)

    send("fieldlm/1/shop/p/rpi5/release", b"release 1", retain=True)
    with Store(tmp_path / "store") as store, Collector(broker.url, "shop", store), Spool(tmp_path / "s.db") as spool:
        sync = Sync(
            spool,
            broker_url=broker.url,
            fleet="shop",
            device="kiosk-1",
            profile="rpi5",
            on_release=releases.append,
            on_command=commands.append,
            timing=QUICK,
        )
        sync.set_presence({"state": "ready", "generation": "abc"})
        sync.start()
        assert soon(lambda: releases == [b"release 1"])
        send("fieldlm/1/shop/kiosk-1/d/cmd", b"blink", retain=False)
        assert soon(lambda: commands == [b"blink"])
        assert soon(lambda: '"generation":"abc"' in store.presence().get("kiosk-1", ""))
        broker.kill()
        assert soon(lambda: not sync.status().connected)
        broker.start()
        send("fieldlm/1/shop/p/rpi5/release", b"release 1", retain=True)
        send("fieldlm/1/shop/p/rpi5/release", b"release 2", retain=True)
        assert soon(lambda: releases == [b"release 1", b"release 2"])
        sync.stop()
        assert soon(lambda: '"stopped"' in store.presence()["kiosk-1"])


def test_the_last_will_tells_that_a_device_is_lost(broker: brokers.Broker, tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store, Collector(broker.url, "shop", store):
        device = Device(tmp_path / "device", broker.url, "kiosk-1")
        device.start(10_000, 0.05)
        assert soon(lambda: "ready" in store.presence().get("kiosk-1", ""))
        device.kill()
        assert soon(lambda: "lost" in store.presence()["kiosk-1"])


def test_a_collector_whose_store_is_new_says_what_it_missed(broker: brokers.Broker, tmp_path: Path) -> None:
    with Spool(tmp_path / "s.db") as spool:
        sync = Sync(spool, broker_url=broker.url, fleet="shop", device="kiosk-1", timing=QUICK)
        sync.start()
        for folder in ("old", "new"):
            with Store(tmp_path / folder) as store, Collector(broker.url, "shop", store):
                for _ in range(50):
                    spool.append(Record(device="kiosk-1", stream="gen", kind="generation"))
                assert sync.drain(30)
        sync.stop()
    with Store(tmp_path / "new", read_only=True) as store:
        assert [(gap.lost, gap.ranges) for gap in store.gaps()] == [(50, ((1, 50),))]
        assert list(store.records_folder.glob("*.parquet"))


@pytest.mark.parametrize("shared", [False, True], ids=["two stores", "one Delta Lake"])
def test_two_collectors_split_a_fleet_and_store_every_record_once(
    broker: brokers.Broker, tmp_path: Path, shared: bool
) -> None:
    stores = [f"delta:{tmp_path / 'lake'}"] * 2 if shared else [str(tmp_path / half) for half in ("low", "high")]
    devices = [Device(tmp_path / f"device-{number}", broker.url, f"device-{number}") for number in range(6)]
    lower = {device.name for device in devices if topics.shard(device.name) < 128}
    assert 0 < len(lower) < 6
    collectors = [
        start_collector(broker.url, store, "--shards", shards)
        for store, shards in zip(stores, ("0-127", "128-255"), strict=True)
    ]
    try:
        for device in devices:
            device.start(200, 0.01)
        assert [device.wait() for device in devices] == [0] * 6
        assert all(device.last_line.startswith("drained") for device in devices)
    finally:
        for collector in collectors:
            collector.send_signal(signal.SIGTERM)
        assert [collector.wait(30) for collector in collectors] == [0, 0]
    found: list[list[str]] = []
    for store in dict.fromkeys(stores):
        with open_sink(store, read_only=True) as sink:
            found.append([row["response"] for row in sink.query("SELECT response FROM records")])
            assert sink.gaps() == []
    assert sorted(name for names in found for name in names) == sorted(set().union(*(d.durable for d in devices)))
    if not shared:
        assert {name.rsplit("-", 2)[0] for name in found[0]} == lower
