"""The collector: MQTT in, store filled, acknowledgements out.

A record is acknowledged only after its transaction. paho's thread hands messages to a bounded queue and so slows down
the broker when the disk is slow; several collectors share a fleet by shards. What does not fit its topic is refused.
"""

import contextlib
import queue
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fieldlm.core import options, terminal
from fieldlm.core.errors import FieldlmError, InputError
from fieldlm.core.logs import logger
from fieldlm.core.urls import shown
from fieldlm.core.wording import counted
from fieldlm.formats import block, topics
from fieldlm.formats.record import WireError
from fieldlm.network.broker_identity import Identity, add_identity_options, identity_of
from fieldlm_compiler.collect.broker_watch import BrokerWatch
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.rewrite import age_ms
from fieldlm_compiler.collect.sealed_text import TextSealer, sealer_of
from fieldlm_compiler.collect.sink import Sink

log = logger(__name__)

QUEUE_MESSAGES = 256
SESSION_EXPIRY_S = 3600
ACK_EXPIRY_S = 3600
EXPIRE_EVERY_S = 3600.0
"""So often text is looked for that is too old."""
TIDY_EVERY_S = 1.0
"""So often the store is asked what is due, also while nothing comes in: what is to be forgotten has a time."""
MOST_BYTES = block.MAX_BLOCK_BYTES + (4 << 10)
"""What the broker may hand out in one packet: a block and its topic."""


class MqttMessage(msgspec.Struct, frozen=True):
    """What came over MQTT."""

    topic: str
    payload: bytes


class CollectTotals(msgspec.Struct, kw_only=True):
    """What a collector has seen since it started."""

    messages: int = 0
    bytes: int = 0
    refused: int = 0
    last_refusal: str = ""


class Acknowledgement(msgspec.Struct, frozen=True, kw_only=True):
    """An acknowledgement and where it goes."""

    topic: str
    ack: topics.Ack


class Collector:
    """Takes in a fleet's blocks until stopped. Opens by `with` or `start`; reconnects by itself."""

    def __init__(
        self,
        broker_url: str,
        fleet: str,
        store: Sink,
        *,
        shards: range = range(topics.SHARDS),
        keep_text_ms: int | None = None,
        sealer: TextSealer | None = None,
        identity: Identity | None = None,
    ) -> None:
        """`keep_text_ms` is how long text is kept, None for ever; `sealer` encrypts it before it is stored.

        `identity` is for a broker with TLS whose certificate, or whose demand for one, the system does not cover.
        """
        self.url = broker_url
        self.fleet = fleet
        self.store = store
        self.totals = CollectTotals()
        self.error: BaseException | None = None
        """Why it ended by itself, if it did: a full disk, for example."""
        self._filters = topics.collector_filters(fleet, shards)
        self._queue: queue.Queue[MqttMessage] = queue.Queue(QUEUE_MESSAGES)
        self._stop = threading.Event()
        self._sealer = sealer
        self._keep_text_ms = keep_text_ms
        self._expired_s = self._tidied_s = float("-inf")
        self._client = _client(
            broker_url, f"fieldlm-collector-{fleet}-{shards.start}-{shards.stop}", identity or Identity()
        )
        self._watch = BrokerWatch(broker_url)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = lambda _client, _data, _number, reasons, _properties: self._watch.subscribed(
            reasons
        )
        self._client.on_message = self._on_message
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start; a broker that is away is tried again until it is there."""
        address = topics.parse_broker(self.url)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.MaximumPacketSize = MOST_BYTES
        self._client.connect_async(address.host, address.port, clean_start=False, properties=properties)
        self._client.loop_start()
        self._thread.start()

    def stop(self) -> None:
        """Take in what has arrived, end, and write the journal to Parquet."""
        self._stop.set()
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()
        # paho closes two of its sockets when it is collected; without the circle that is now and not some day.
        self._client.on_connect = self._client.on_message = self._client.on_subscribe = None
        self._client.on_connect_fail = self._client.on_disconnect = None
        self.store.tidy(finish=True)

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._watch.refused(reason)
            return
        self._watch.connected()
        client.subscribe([(name, SubscribeOptions(qos=1)) for name in self._filters])

    def _on_connect_fail(self, _client: mqtt.Client, _data: Any) -> None:
        self._watch.failed(sys.exception())  # paho calls from where it catches it

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._stop.is_set():
            self._watch.lost(reason)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        # Blocks when the queue is full: the broker then keeps the rest.
        arrived = MqttMessage(message.topic, bytes(message.payload))
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(arrived, timeout=0.2)
                return

    def _run(self) -> None:
        try:
            while not self._stop.is_set() or not self._queue.empty():
                if batch := self._batch():
                    for reply in take_in(self.store, self.fleet, batch, self.totals, self._sealer):
                        self._send(reply)
                if batch or time.monotonic() - self._tidied_s > TIDY_EVERY_S:
                    self.store.tidy()
                    self._tidied_s = time.monotonic()
                if self._keep_text_ms is not None and time.monotonic() - self._expired_s > EXPIRE_EVERY_S:
                    expire(self.store, self._keep_text_ms)
                    self._expired_s = time.monotonic()
        except (FieldlmError, sqlite3.Error) as error:
            log.warning(f"collect: stopped: {error}")
            self.error = error

    def _batch(self) -> list[MqttMessage]:
        """Wait for a message, and take all that are there: one transaction for them all."""
        batch: list[MqttMessage] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._queue.get(timeout=0.2))
            until_s = time.monotonic() + self.store.linger_s
            while len(batch) < QUEUE_MESSAGES:
                batch.append(self._queue.get(timeout=max(0.0, until_s - time.monotonic())))
        return batch

    def _send(self, reply: Acknowledgement) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.MessageExpiryInterval = ACK_EXPIRY_S
        # QoS 0: a lost one costs a second sending, while paho would hold back all but twenty behind what comes in.
        self._client.publish(reply.topic, msgspec.json.encode(reply.ack), qos=0, properties=properties)


def expire(store: Sink, keep_text_ms: int) -> int:
    """Blank text that is older; return how many records lost theirs."""
    count = store.expire(time.time_ns() // 1_000_000 - keep_text_ms)
    if count:
        log.info(f"collect: {counted(count, 'record')} lost their text, which was too old")
    return count


def take_in(
    store: Sink,
    fleet: str,
    batch: Sequence[MqttMessage],
    totals: CollectTotals,
    sealer: TextSealer | None = None,
) -> list[Acknowledgement]:
    """Commit a batch to the store and return the acknowledgements to send. Bad messages are counted and left out."""
    blocks: list[block.Block] = []
    hellos: list[topics.Hello] = []
    for message in batch:
        totals.messages += 1
        totals.bytes += len(message.payload)
        try:
            _sort(message, blocks, hellos, store)
        except WireError as error:
            totals.refused += 1
            totals.last_refusal = str(error)
            log.warning(f"collect: refused a message: {error}")
    upto: dict[tuple[str, int], dict[str, int]] = {}
    for (device, epoch, stream), mark in store.append(sealer.seal(blocks) if sealer else blocks).items():
        upto.setdefault((device, epoch), {})[stream] = mark
    replies = [_reply(fleet, device, epoch, marks) for (device, epoch), marks in upto.items()]
    for hello in hellos:
        marks = store.greet(hello.device, hello.epoch, hello.first, hello.last)
        replies.append(_reply(fleet, hello.device, hello.epoch, marks, hello.nonce))
    return replies


def _sort(message: MqttMessage, blocks: list[block.Block], hellos: list[topics.Hello], store: Sink) -> None:
    source = topics.parse_up(message.topic)
    if source.part == "state":
        store.note_presence(source.device, topics.parse_state(message.payload))
    elif source.part == "hello":
        hello = topics.parse_hello(message.payload)
        _check_speaker(source, hello.device)
        hellos.append(hello)
    else:
        made = block.parse(message.payload)
        _check_speaker(source, made.device)
        if made.stream != source.stream:
            raise WireError(
                f"{source.device} sent a block of {made.stream} on the topic of {source.stream or source.part}"
            )
        blocks.append(made)


def _check_speaker(source: topics.TopicSource, device: str) -> None:
    if device != source.device:
        raise WireError(f"{source.device} speaks for {device[:80]!r}")


def _reply(fleet: str, device: str, epoch: int, upto: dict[str, int], nonce: str = "") -> Acknowledgement:
    return Acknowledgement(topic=topics.ack_topic(fleet, device), ack=topics.Ack(epoch=epoch, upto=upto, nonce=nonce))


def _client(url: str, client_id: str, identity: Identity) -> mqtt.Client:
    address = topics.parse_broker(url)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
    client.reconnect_delay_set(min_delay=1, max_delay=8)
    if address.tls:
        client.tls_set_context(identity.context())
    if address.user:
        client.username_pw_set(address.user, address.password)
    return client


def parse_shards(text: str) -> range:
    """Read "0-127" or "5"; raises InputError."""
    first, _, last = text.partition("-")
    try:
        shards = range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise InputError(f"--shards {text!r} is no range; write 0-255, 0-127 or 5") from error
    if not shards or shards.start < 0 or shards.stop > topics.SHARDS:
        raise InputError(f"--shards {text!r} is outside 0-{topics.SHARDS - 1}")
    return shards


def main(argv: Sequence[str]) -> int:
    """Fill a store from a broker, or look into one."""
    parser = terminal.parser(
        "collect",
        "Fill a store with a fleet's records, or look into one.",
        "fieldlm collect --store store --broker mqtt://broker.local",
        "fieldlm collect --store store --show",
    )
    parser.add_argument(
        "--store", required=True, metavar="FOLDER|delta:URI|kafka:BROKERS/TOPIC", help="where records are kept"
    )
    parser.add_argument("--broker", default="mqtt://127.0.0.1:1883", help="where the devices publish")
    parser.add_argument("--fleet", default="default", help="whose records to collect")
    parser.add_argument("--shards", default="0-255", help="part of the fleet that this collector owns")
    parser.add_argument(
        "--forget", choices=("text", "rows"), default="text", help="what of a session goes when it is to be forgotten"
    )
    parser.add_argument(
        "--keep-text", type=age_ms, metavar="AGE", help="blank text that is older, as 30d or 12h; figures stay"
    )
    parser.add_argument(
        "--seal-text", type=options.existing_file, metavar="PEM", help="encrypt text for this X25519 key as it comes"
    )
    add_identity_options(parser)
    looking = parser.add_mutually_exclusive_group()
    looking.add_argument("--show", action="store_true", help="print counts and gaps of the store, and end")
    looking.add_argument("--compact", action="store_true", help="make few large files of many small ones, and end")
    looking.add_argument("--query", metavar="SQL", help="run SQL over the view `records`, and end")
    args = parser.parse_args(argv)
    if args.show:
        return _show(args.store, as_json=args.json)
    if args.query:
        return _query(args.store, args.query, as_json=args.json)
    shards = parse_shards(args.shards)
    topics.parse_broker(args.broker)
    topics.collector_filters(args.fleet, shards)  # raises InputError for what is no name
    identity = identity_of(args, broker=args.broker)
    sealer = sealer_of(args.seal_text) if args.seal_text else None
    with open_sink(args.store, forget=args.forget) as store:
        if args.compact:
            if args.keep_text is not None:
                expire(store, args.keep_text)
            store.compact()
            terminal.show({"compacted": args.store}, f"{args.store} is compacted", as_json=args.json)
            return 0
        collector = Collector(
            args.broker,
            args.fleet,
            store,
            shards=shards,
            keep_text_ms=args.keep_text,
            sealer=sealer,
            identity=identity,
        )
        return _collect(collector, args.store, as_json=args.json)


def _collect(collector: Collector, where: str, *, as_json: bool) -> int:
    ended = threading.Event()
    _on_signal(ended.set)
    with collector:
        log.info(f"collecting fleet {collector.fleet} from {shown(collector.url)} into {where}, stop with Ctrl-C")
        while collector.is_running() and not ended.wait(0.5):
            pass
    document = _summary(collector.store) | {"totals": msgspec.to_builtins(collector.totals)}
    terminal.show(document, _describe(document), as_json=as_json)
    if collector.error:
        raise collector.error
    return 0


def _on_signal(stop: Callable[[], None]) -> None:
    def handle(_number: int, _frame: FrameType | None) -> None:
        stop()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _show(where: str, *, as_json: bool) -> int:
    with open_sink(where, read_only=True) as store:
        document = _summary(store)
    terminal.show(document, _describe(document), as_json=as_json)
    return 1 if document["lost"] else 0


def _query(where: str, sql: str, *, as_json: bool) -> int:
    with open_sink(where, read_only=True) as store:
        rows = store.query(sql)
    text = terminal.table([list(row.values()) for row in rows], list(rows[0])) if rows else "no rows"
    terminal.show(msgspec.to_builtins(rows, enc_hook=str), text, as_json=as_json)
    return 0


def _summary(store: Sink) -> dict[str, Any]:
    counts, gaps = store.counts(), store.gaps()
    return {
        "records": sum(count.records for count in counts),
        "lost": sum(gap.lost for gap in gaps),
        "told": sum(gap.told for gap in gaps),
        "streams": msgspec.to_builtins(counts),
        "gaps": msgspec.to_builtins(gaps),
        "presence": store.presence(),
    }


def _describe(document: dict[str, Any]) -> str:
    rows = [(c["device"], c["stream"], f"{c['records']:,}", c["raw"]) for c in document["streams"]]
    table = terminal.table(rows, ("device", "stream", "records", "kept raw"))
    return (
        f"{table}\n\n{counted(document['records'], 'record')}, "
        f"{document['lost']} lost, {document['told']} dropped and told"
    )
