"""A fleet against one collector: real sockets for a thousand devices, virtual time for a million.

Devices speak the real protocol (hello, blocks, acknowledgements) over connections of their own, but have no spool: what
they send are a few made blocks with new numbers. Every record is counted in the store at the end.
"""

import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import paho.mqtt.client as mqtt
from backports import zstd
from paho.mqtt.enums import CallbackAPIVersion

from fieldlm.core import terminal
from fieldlm.formats import block, topics
from fieldlm.telemetry.sync_session import WINDOW, Timing
from fieldlm_compiler.collect.collect import CollectTotals, MqttMessage, take_in
from fieldlm_compiler.collect.parquet import Store
from tests.support.brokers import Mosquitto
from tests.support.kiosk_records import ID_KEY, morning

FLEET = "bench"
EPOCH = 7
TEMPLATES = 16
REPORT_S = 10.0
PATIENCE_S = 60.0
TICKS_S = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SETTINGS = "max_inflight_messages 1000\nmax_queued_messages 100000\n"
"""As docs/scale.md advises: with Mosquitto's 20 and 1,000 it waits for the collector, and then lets go of blocks."""
EVENTS_A_DAY = 500
"""Of one device of the million: what docs/scale.md counts with."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the collector's process used at a moment."""

    at_s: float
    acked: int
    behind: int
    rss_mb: float
    cpu_s: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to."""

    devices: int
    seconds: float
    made: int
    waiting: int
    """Still on the devices at the end: a collector that keeps up leaves none."""
    resent: int
    stored: int
    doubled: int
    lost: int
    records_per_s: float
    bytes_per_record: float
    core_share: float
    us_per_record: float
    rss_mb: tuple[float, ...]
    load: float


class Blocks:
    """Makes blocks cheaply: the columns are made once, only the numbers are new."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.count = count
        self._columns = [self._template(seed + number) for number in range(TEMPLATES)]

    def make(self, device: str, first: int) -> bytes:
        last = first + self.count - 1
        # As block.encode does it: the first number, then steps of one.
        columns = [["d", _varint(2 * first) + b"\2" * (self.count - 1)], *self._columns[first % TEMPLATES]]
        body = zstd.compress(msgspec.msgpack.encode(columns), level=3)
        schema = max(block.SCHEMAS)
        head = block.Block(block.MAGIC, block.VERSION, schema, device, "gen", EPOCH, first, last, self.count, body)
        return msgspec.msgpack.encode(head)

    def _template(self, seed: int) -> list[Any]:
        made = [msgspec.structs.replace(r, epoch=EPOCH, seq=i) for i, r in enumerate(morning(self.count, seed), 1)]
        body = block.parse(block.encode(made, id_key=ID_KEY)).body
        return msgspec.msgpack.decode(zstd.decompress(body))[1:]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


# ── real sockets ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Device:
    """One connection that says hello and sends blocks within the window, as telemetry/sync_session.py does."""

    def __init__(self, name: str, port: int, blocks: Blocks) -> None:
        self.name, self.blocks = name, blocks
        self.made = self.sent = self.acked = self.resent = 0
        self.bytes = 0
        self._heard_s = time.monotonic()
        self.is_answered = False
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        self.client.connect("127.0.0.1", port, keepalive=600)

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        client.subscribe(topics.ack_topic(FLEET, self.name), qos=1)
        self.hello()

    def hello(self) -> None:
        hello = topics.Hello(device=self.name, epoch=EPOCH, first={"gen": 1}, last={"gen": self.sent}, nonce=self.name)
        self.client.publish(topics.hello_topic(FLEET, self.name), msgspec.json.encode(hello), qos=1)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        ack = topics.parse_ack(bytes(message.payload))
        if ack.upto.get("gen", 0) > self.acked:
            self._heard_s = time.monotonic()
            self.acked = ack.upto["gen"]
        self.is_answered = True

    def send(self) -> None:
        """Send what is made, as far as the window allows; from the last acknowledgement on when none comes for long."""
        if self.sent > self.acked and time.monotonic() - self._heard_s > Timing().ack_s:
            self._heard_s = time.monotonic()
            self.resent += self.sent - self.acked
            self.sent = self.acked
        while self.is_answered and self.sent < min(self.made, self.acked + WINDOW * self.blocks.count):
            if self.sent == self.acked:
                self._heard_s = time.monotonic()  # Only now somebody owes an answer.
            payload = self.blocks.make(self.name, self.sent + 1)
            self.client.publish(topics.block_topic(FLEET, self.name, "gen"), payload, qos=1)
            self.sent += self.blocks.count
            self.bytes += len(payload)


class Wire:
    """All connections on one thread."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._selector = selectors.DefaultSelector()
        for device in devices:
            self._selector.register(cast(socket.socket, device.client.socket()), selectors.EVENT_READ, device)

    def turn(self, devices: Sequence[Device], wait_s: float) -> None:
        """Send what these have and read what has come."""
        for device in devices:
            device.send()
            while device.client.want_write():
                if device.client.loop_write() != mqtt.MQTT_ERR_SUCCESS:
                    break
        for key, _ in self._selector.select(wait_s):
            key.data.client.loop_read(16)
            key.data.client.loop_write()


def real(devices: int, rate: int, seconds: float, block_records: int) -> Result:
    """Send `rate` records a second for `seconds` from `devices` connections, and count them in the store."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        broker = Mosquitto(Path(folder) / "broker", SETTINGS)
        broker.start()
        command = [
            sys.executable,
            "-c",
            "import sys; from fieldlm_compiler.collect.collect import main; sys.exit(main(sys.argv[1:]))",
        ]
        options = ["--broker", broker.url, "--fleet", FLEET, "--store", f"{folder}/store", "--json"]
        collector = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        try:
            blocks = Blocks(block_records)
            fleet = [Device(f"device-{number}", broker.port, blocks) for number in range(devices)]
            began_s = time.monotonic()
            usages = _drive(fleet, rate, seconds, collector.pid)
            spent_s = time.monotonic() - began_s
        finally:
            collector.terminate()
            collector.wait(60)
            broker.kill()
        return _result(Path(folder) / "store", fleet, usages, spent_s)


def _drive(fleet: Sequence[Device], rate: int, seconds: float, pid: int) -> list[Usage]:
    wire = Wire(fleet)
    greeted_s = time.monotonic()
    while waiting := [device for device in fleet if not device.is_answered]:
        wire.turn(fleet, 0.05)
        if time.monotonic() - greeted_s > Timing().linger_s:  # Nobody listened yet.
            greeted_s = time.monotonic()
            for device in waiting:
                device.hello()
    began_s = time.monotonic()
    usages = [_usage(fleet, 0.0, pid)]
    turn = 0
    while (now_s := time.monotonic() - began_s) < seconds:
        busy = [device for device in fleet if device.sent < device.made]
        while turn * fleet[0].blocks.count < now_s * rate:
            device = fleet[turn % len(fleet)]
            device.made += device.blocks.count
            busy.append(device)
            turn += 1
        wire.turn(busy, 0.005)
        if now_s - usages[-1].at_s >= REPORT_S:
            usages.append(_usage(fleet, now_s, pid))
            _tell(usages)
    while (busy := [d for d in fleet if d.acked < d.made]) and time.monotonic() - began_s < seconds + PATIENCE_S:
        wire.turn(busy, 0.05)
    usages.append(_usage(fleet, time.monotonic() - began_s, pid))
    _tell(usages)
    return usages


def _usage(fleet: Sequence[Device], at_s: float, pid: int) -> Usage:
    acked = sum(device.acked for device in fleet)
    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return Usage(
        at_s=at_s,
        acked=acked,
        behind=sum(device.made for device in fleet) - acked,
        rss_mb=int(stat[21]) * PAGE / 1e6,
        cpu_s=(int(stat[11]) + int(stat[12])) / TICKS_S,
    )


def _tell(usages: Sequence[Usage]) -> None:
    before, now = usages[-2:]
    span_s = now.at_s - before.at_s
    print(
        f"  {now.at_s:5.0f} s  {(now.acked - before.acked) / span_s:8,.0f} records/s  behind {now.behind:7,}  "
        f"collector {now.rss_mb:6.1f} MB, {(now.cpu_s - before.cpu_s) / span_s:.0%} of a core",
        file=sys.stderr,
        flush=True,
    )


def _result(folder: Path, fleet: Sequence[Device], usages: Sequence[Usage], spent_s: float) -> Result:
    stored, distinct, lost = _count(folder)
    sent = sum(device.made for device in fleet)
    cpu_s = usages[-1].cpu_s - usages[0].cpu_s
    return Result(
        devices=len(fleet),
        seconds=round(spent_s, 1),
        made=sent,
        waiting=usages[-1].behind,
        resent=sum(device.resent for device in fleet),
        stored=stored,
        doubled=stored - distinct,
        lost=lost + max(0, usages[-1].acked - distinct),
        records_per_s=round(usages[-1].acked / (usages[-1].at_s - usages[0].at_s)),
        bytes_per_record=round(sum(device.bytes for device in fleet) / usages[-1].acked, 1),
        core_share=round(cpu_s / (usages[-1].at_s - usages[0].at_s), 3),
        us_per_record=round(cpu_s / usages[-1].acked * 1e6, 1),
        rss_mb=tuple(round(usage.rss_mb, 1) for usage in usages),
        load=round(os.getloadavg()[0], 1),
    )


def _count(folder: Path) -> tuple[int, int, int]:
    with Store(folder, read_only=True) as store:
        sql = "SELECT count(*) AS n, count(DISTINCT (device, epoch, stream, seq)) AS d FROM records"
        (row,) = store.query(sql)
        return row["n"], row["d"], sum(gap.lost for gap in store.gaps())


# ── virtual time ─────────────────────────────────────────────────────────────────────────────────────────────────────


def virtual(devices: int, minutes: float, block_records: int) -> Result:
    """Hand a fleet's messages of `minutes` to the collector's own code, second by virtual second."""
    per_s = devices * EVENTS_A_DAY / 86_400 / block_records
    rng = np.random.default_rng(1)
    sent = size = 0
    ends: dict[int, int] = {}
    blocks = Blocks(block_records)
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.monotonic()
        usages = [_own(0, 0.0)]
        with (
            Store(Path(folder) / "store") as store,
            terminal.progress("virtual seconds", round(minutes * 60)) as progress,
        ):
            for second in range(round(minutes * 60)):
                who = rng.integers(devices, size=rng.poisson(per_s)).tolist()
                batch = list(_messages(who, ends, blocks))
                take_in(store, FLEET, batch, CollectTotals())
                store.tidy()
                sent += len(who) * block_records
                size += sum(len(message.payload) for message in batch)
                if second % 60 == 59:
                    usages.append(_own(sent, time.monotonic() - began_s))
                progress.update(second + 1)
            store.tidy(finish=True)
            usages.append(_own(sent, time.monotonic() - began_s))
        spent_s = time.monotonic() - began_s
        stored, distinct, lost = _count(Path(folder) / "store")
    cpu_s = usages[-1].cpu_s - usages[0].cpu_s
    since = usages[-1].acked - usages[0].acked
    return Result(
        devices=devices,
        seconds=round(spent_s, 1),
        made=sent,
        waiting=0,
        resent=0,
        stored=stored,
        doubled=stored - distinct,
        lost=lost + sent - distinct,
        records_per_s=round(sent / spent_s),
        bytes_per_record=round(size / sent, 1),
        core_share=round(cpu_s / (usages[-1].at_s - usages[0].at_s), 3),
        us_per_record=round(cpu_s / since * 1e6, 1),
        rss_mb=tuple(round(usage.rss_mb, 1) for usage in usages),
        load=round(os.getloadavg()[0], 1),
    )


def _messages(who: Sequence[int], ends: dict[int, int], blocks: Blocks) -> Iterator[MqttMessage]:
    for number in who:
        name, end = f"device-{number}", ends.get(number, 0)
        if not end:
            hello = topics.Hello(device=name, epoch=EPOCH, first={"gen": 1}, last={"gen": 0})
            yield MqttMessage(topics.hello_topic(FLEET, name), msgspec.json.encode(hello))
        yield MqttMessage(topics.block_topic(FLEET, name, "gen"), blocks.make(name, end + 1))
        ends[number] = end + blocks.count


def _own(sent: int, at_s: float) -> Usage:
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6
    return Usage(at_s=at_s, acked=sent, behind=0, rss_mb=rss, cpu_s=time.process_time())
