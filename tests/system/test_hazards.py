"""A whole device while its disk, its clock, its card or its broker is not what it should be.

Each time the device answers as before, names what is wrong in its own health, and is well again by itself.
"""

import functools
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from fieldlm.cli.broker import EmbeddedBroker, free_port
from fieldlm.core.config import load_config
from fieldlm.device import device as parts
from fieldlm.device.device import Device
from fieldlm.device.startup import Start
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import load_profile
from fieldlm.formats.record import Record
from fieldlm.hardware import clock as clocks
from fieldlm.hardware.clock import DAY_MS, Clock
from fieldlm.telemetry import spool as spool_module
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync import Sync
from fieldlm.telemetry.sync_session import Timing
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.parquet import Store
from tests.device.test_service import PROFILE, ask, chat
from tests.support import material
from tests.support.sqlite_power_cuts import Call, Disk

QUICK = Timing(ack_s=0.3, linger_s=0.05, backoff_base_s=0.05, backoff_cap_s=0.2)
YEAR_NS = 31_557_600 * 10**9


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "RETRY_S", 0.01)
    # A loaded machine's disk is slow, and that is not what is tried here.
    monkeypatch.setattr(spool_module, "HANG_S", 60.0)


@pytest.fixture(scope="module")
def bundle(base_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material.compiled_for(base_bundle, PROFILE, tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[Disk]:
    """The disk under the device's spool."""
    made = Disk(request.node.name)
    monkeypatch.setattr(parts, "Spool", functools.partial(Spool, connect=made.connect))
    yield made
    made.unregister()


@contextmanager
def serving(bundle: Path, state: Path, **flags: str) -> Generator[tuple[Device, int]]:
    port = free_port()
    wanted = {"state": str(state), "device": "kiosk", "context": "256", "discovery": "false", "port": str(port)}
    wanted |= {"threads": "1"} | flags
    config, profile = load_config(wanted), load_profile(PROFILE)
    device = Device(config, profile, Start(config, profile, bundle))
    thread = threading.Thread(target=device.run)
    thread.start()
    try:
        assert soon(lambda: ask(port, "GET", "/ready")[0] == 200)
        yield device, port
    finally:
        device.http.stop()  # what a signal does in the main thread
        thread.join()
        device.close()


def soon(holds: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 60
    while not (held := holds()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return held


def names(port: int) -> list[str]:
    return [trouble["name"] for trouble in ask(port, "GET", "/v1/fieldlm/status")[1]["health"]]


def answers(port: int) -> str:
    """Ask as people do, rate the answer, and return its id."""
    status, answer = chat(port)
    assert status == 200
    assert answer["choices"][0]["message"]["content"]
    body = msgspec.json.encode({"id": answer["id"], "rating": "up"}).decode()
    assert ask(port, "POST", "/v1/feedback", body)[0] == 200
    return answer["id"]


def recorded(device: Device) -> list[str]:
    return [record.response for record in device.spool.pending("gen", 0, 100)]


def writing(then: Callable[[], Any]) -> Callable[[Call], None]:
    def refuse(call: Call) -> None:
        if call.what in ("write", "sync", "create"):
            then()

    return refuse


@pytest.mark.parametrize(
    ("error", "name"),
    [(apsw.FullError, "disk-full"), (apsw.ReadOnlyError, "read-only"), (apsw.IOError, "disk-error")],
)
def test_a_disk_that_refuses(bundle: Path, tmp_path: Path, disk: Disk, error: type[apsw.Error], name: str) -> None:
    def refuse() -> None:
        raise error

    with serving(bundle, tmp_path) as (device, port):
        told = [answers(port)]
        assert device.spool.flush(60)
        assert names(port) == []
        disk.refuse = writing(refuse)
        told += [answers(port), answers(port)]
        assert soon(lambda: names(port) == [name])
        disk.refuse = lambda call: None
        assert soon(lambda: names(port) == [])
        assert device.spool.flush(60)
        assert recorded(device) == told


def test_a_disk_that_hangs(bundle: Path, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "HANG_S", 0.2)
    is_well = threading.Event()
    with serving(bundle, tmp_path) as (device, port):
        told = [answers(port)]
        assert device.spool.flush(60)
        disk.refuse = writing(is_well.wait)
        try:
            told += [answers(port), answers(port)]
            assert soon(lambda: names(port) == ["disk-hangs"])
            told.append(answers(port))
        finally:
            is_well.set()
        assert soon(lambda: names(port) == [])
        assert device.spool.flush(60)
        assert recorded(device) == told


def test_a_damaged_spool(bundle: Path, tmp_path: Path, disk: Disk) -> None:
    def refuse() -> None:
        raise apsw.CorruptError

    with serving(bundle, tmp_path) as (device, port):
        answers(port)
        assert device.spool.flush(60)
        disk.refuse = writing(refuse)
        told = [answers(port)]
        assert soon(lambda: "quarantined" in names(port))
        disk.refuse = lambda call: None
        told.append(answers(port))
        assert device.spool.flush(60)
        assert soon(lambda: names(port) == ["quarantined"])
        assert recorded(device) == told


@pytest.mark.parametrize(("years", "name"), [(50, "clock-jumped"), (-50, "clock-unset")])
def test_a_clock_that_jumps(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int, name: str
) -> None:
    now_ns, now_s = time.time_ns, time.time
    with serving(bundle, tmp_path) as (device, port):
        told = [answers(port)]
        assert names(port) == []
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + years * YEAR_NS)
        monkeypatch.setattr(time, "time", lambda: now_s() + years * YEAR_NS / 1e9)
        told.append(answers(port))
        assert names(port) == [name]
        monkeypatch.setattr(time, "time_ns", now_ns)
        monkeypatch.setattr(time, "time", now_s)
        told.append(answers(port))
        assert names(port) == []
        assert device.spool.flush(60)
        assert recorded(device) == told


def test_a_card_that_was_copied(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "Spool", functools.partial(Spool, machine="this board"))
    with Spool(tmp_path / "spool.db", machine="another board") as spool:
        spool.append(Record(device="kiosk-1", stream="gen", kind="generation", response="theirs"))
        assert spool.flush(60)
        epoch = spool.epoch
    with serving(bundle, tmp_path) as (device, port):
        told = answers(port)
        assert names(port) == ["card-moved"]
        assert device.spool.flush(60)
        assert device.spool.epoch != epoch
        assert recorded(device) == ["theirs", told]


def test_a_broker_that_takes_everything_and_passes_nothing_on(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldlm.telemetry.sync.Sync", functools.partial(Sync, timing=QUICK))
    broker = EmbeddedBroker(port=0, folder=tmp_path / "broker")
    broker.start()
    try:
        with serving(bundle, tmp_path / "state", broker=broker.url, fleet="shop", device="kiosk-1") as (device, port):
            told = [answers(port)]
            assert soon(lambda: names(port) == ["not-acknowledged"])
            told.append(answers(port))
            with Store(tmp_path / "store") as store, Collector(broker.url, "shop", store):
                assert device.sync
                assert device.sync.drain(60)
                assert soon(lambda: names(port) == [])
                found = store.query("SELECT response FROM records WHERE stream = 'gen' ORDER BY seq")
                assert [row["response"] for row in found] == told
                assert store.gaps() == []
            broker.stop()
            assert soon(lambda: names(port) == ["broker-away"])
            answers(port)
    finally:
        broker.stop()


def test_a_clock_is_believed_after_a_day_and_one_that_is_set_has_not_jumped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 1_000, "boot": 0}

    def boot_ns(_clock: int) -> int:
        return now["boot"] * 1_000_000

    monkeypatch.setattr(time, "time_ns", lambda: now["wall"] * 1_000_000)
    monkeypatch.setattr(time, "clock_gettime_ns", boot_ns)
    clock = Clock()
    assert clock.trouble()[0] == "clock-unset"
    now |= {"wall": clocks.OLDEST_CLOCK_MS + 400 * DAY_MS, "boot": 60_000}
    assert clock.trouble() == ("", "")
    now |= {"wall": now["wall"] + 9 * DAY_MS, "boot": now["boot"] + 9 * DAY_MS}
    assert clock.trouble() == ("", "")
    now["wall"] += 2 * DAY_MS
    assert clock.trouble()[0] == "clock-jumped"
    now |= {"wall": now["wall"] + DAY_MS + 1, "boot": now["boot"] + DAY_MS + 1}
    assert clock.trouble() == ("", "")


def test_a_repository_that_nobody_renews(bundle: Path, tmp_path: Path) -> None:
    seen = tmp_path / "state" / "trust" / "metadata" / "timestamp.json"
    seen.parent.mkdir(parents=True)
    seen.write_bytes(b'{"signed": {"expires": "2026-01-20T00:00:00Z", "fieldlm-days": 14}}')
    with serving(bundle, tmp_path / "state", repository=str(tmp_path / "repository")) as (_, port):
        assert "repository-expired" in names(port)
        assert answers(port)
