"""Kafka, the sink that other systems read as it grows: a topic, also Redpanda's, in which a block is a message.

    kafka:HOST:PORT[,HOST:PORT…]/TOPIC[?config=FILE]      FILE has librdkafka's properties, key=value in each line

    key                                     value
    b/<device>/<epoch>/<stream>/<first>-<last>   the block, as `formats.block` has it
    s/<device>/<epoch>/<stream>                  the seq up to which nothing will come, in digits, or empty: unknown
    p/<device>                                   the last presence message

A message is written whole or not at all, and a block says by itself up to which seq it speaks: so rows and watermark
are one commit, and no transaction is needed. Whoever reads takes the last message of each key, a stream's blocks by
their first seq, and of each block what lies beyond the blocks before: that is every record once, also when a collector
that was thought dead has written a block a second time. The topic is compacted, which lets a block without a forgotten
session's text take the place of the one with it; when the broker does that is the topic's `max.compaction.lag.ms`.

A collector reads the topic once, when it starts, to know its watermarks. What the topic's retention deletes is gone
from here too; without retention it keeps everything.
"""

import contextlib
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import msgspec

from fieldlm.core.errors import FieldlmError, InputError, MissingDependencyError
from fieldlm.core.extras import install_advice
from fieldlm.formats import block as blocks_of
from fieldlm.formats.block import Block
from fieldlm.formats.record import Record, WireError
from fieldlm_compiler.collect.arrow import arrow_table, schema, sessions_table, without_forgotten
from fieldlm_compiler.collect.kafka_place import Place, parse_place
from fieldlm_compiler.collect.sink import (
    Hearsay,
    Key,
    Policy,
    Raw,
    Session,
    Sink,
    blanked,
    forgets,
    read,
    stripped,
    tell_lie,
)

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic
except ImportError as error:
    raise MissingDependencyError(
        f"the Kafka client is not installed; {install_advice('fieldlm-compiler', 'kafka')}"
    ) from error

PARTITIONS = 16
"""Of a topic that is made here; more mean more collectors and readers side by side."""
PATIENCE_S = 60.0
"""How long brokers may take to commit what was sent."""
ANSWER_S = 10.0
PRESENCE_EVERY_S = 5.0
COMPACTION_LAG_MS = 3_600_000
"""How long a forgotten text may lie in a topic that was made here; a broker's own default is for ever."""
MESSAGE_BYTES = blocks_of.MAX_BLOCK_BYTES + 4096
_TOPIC_CONFIG = {
    "cleanup.policy": "compact",
    "max.compaction.lag.ms": str(COMPACTION_LAG_MS),
    "max.message.bytes": str(MESSAGE_BYTES),
}


class KafkaStore(Sink):
    """One topic. Several collectors write to it, each device's by one at a time."""

    linger_s = 0.05  # a commit is a round trip to the brokers

    def __init__(self, where: str, *, read_only: bool = False, forget: Policy = "text") -> None:
        self.place = parse_place(where)
        self.forget: Policy = forget
        self._lock = threading.RLock()
        self._stored: dict[Key, int] = {}
        self._stepped: dict[Key, int] = {}
        self._hearsay = Hearsay()
        self._forgotten: set[Session] = set()
        self._states: dict[str, str] = {}
        self._unsaid: dict[str, str] = {}
        self._said_s = time.monotonic()
        with self._errors():
            self._partitions = _partitions(self.place, make=not read_only)
            self._producer = None if read_only else Producer(_producing(self.place))
            for entry in self._scan():
                self._learn(entry)
        self._has_to_erase = not read_only and bool(self._forgotten)

    def close(self) -> None:
        """Say what is left to say of presence; everything else is committed."""
        with self._lock:
            self._say_presence()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, blocks: Iterable[Block]) -> dict[Key, int]:
        with self._lock, self._errors():
            touched: dict[Key, int] = {}
            taken: list[Block] = []
            for block in blocks:
                key = _key(block)
                upto = touched[key] = self._believed(key, touched.get(key, self.watermark(key)), block)
                if block.first <= upto + 1 and block.last > upto:
                    taken.append(block)
                    touched[key] = block.last
            asked = {session for block in taken for session in _asked(block)} - self._forgotten
            self._forgotten |= asked
            self._has_to_erase = self._has_to_erase or bool(asked)
            for wave in _waves(taken):
                self._write({_name(block): _message(self._clean(block)) for block in wave})
            for block in taken:
                self._mark(block)
            return touched

    def greet(
        self, device: str, epoch: int, first: dict[str, int], last: dict[str, int] | None = None
    ) -> dict[str, int]:
        said = last or {}
        with self._lock, self._errors():
            moved: dict[Key, int] = {}
            for stream, begin in first.items():
                key = (device, epoch, stream)
                if said.get(stream, self.watermark(key)) < self.watermark(key):
                    self._step_back(key)
                if begin - 1 > self.watermark(key):
                    moved[key] = begin - 1
            self._step(moved)
            return {stream: self.watermark((device, epoch, stream)) for stream in first}

    def _step(self, marks: Mapping[Key, int]) -> None:
        gone = [each for key, upto in marks.items() for each in self._hear(key, upto)]
        told = {key: str(upto).encode() for key, upto in marks.items()} | dict.fromkeys(gone)
        self._write({f"s/{d}/{e}/{s}": value for (d, e, s), value in told.items()})

    def _hear(self, key: Key, upto: int) -> list[Key]:
        """Take in a step, 0 for none; return those over streams without a record that are forgotten for it."""
        self._stepped[key] = upto
        gone = [] if self._stored.get(key) else self._hearsay.note(key, upto)
        for each in [*gone, *([] if upto else [key])]:
            self._stepped.pop(each, None)
        return gone

    def _believed(self, key: Key, upto: int, block: Block) -> int:
        """Return the watermark, from before the last step where `block` shows that the hello behind it was a lie."""
        is_gone = self._stored.get(key, 0) < block.last and block.first <= self._stepped.get(key, 0) == upto
        return self._step_back(key) if is_gone else upto

    def _step_back(self, key: Key) -> int:
        """Take a step back beyond which nothing is stored; return the watermark."""
        if self._stepped.get(key, 0) > self._stored.get(key, 0):
            tell_lie(key)
            self._step({key: 0})
        return self.watermark(key)

    def expire(self, before_ms: int) -> int:
        raise InputError("a topic keeps text as long as its retention.ms says; set that, and leave --keep-text out")

    def keep_presence(self, device: str, state: str) -> None:
        with self._lock:
            self._unsaid[device] = state

    def tidy(self, *, finish: bool = False) -> None:
        with self._lock, self._errors():
            if finish or time.monotonic() - self._said_s > PRESENCE_EVERY_S:
                self._say_presence()
            self._erase()

    def compact(self) -> None:
        """Do nothing: the brokers compact by themselves."""

    def _say_presence(self) -> None:
        self._said_s = time.monotonic()
        self._write({f"p/{device}": state.encode() for device, state in self._unsaid.items()})
        self._states |= self._unsaid
        self._unsaid = {}

    def _write(self, messages: Mapping[str, bytes | None]) -> None:
        """Return when every broker that has to has every message; raises FieldlmError when that is in doubt.

        None takes away what has the key.

        What is in doubt is found out by whoever opens the sink next.
        """
        if not messages:
            return
        if self._producer is None:
            raise FieldlmError(f"{self.place.topic} was opened to read only")
        problems: list[str] = []

        def told(error: KafkaError | None, _message: Message) -> None:
            if error:
                problems.append(error.str())

        for name, value in messages.items():
            partition = zlib.crc32(name.split("/")[1].encode()) % self._partitions
            self._producer.produce(self.place.topic, value, name.encode(), partition, on_delivery=told)
        left = self._producer.flush(PATIENCE_S)
        if left or problems:
            why = problems[0] if problems else f"no answer in {PATIENCE_S:g} s"
            raise FieldlmError(f"the Kafka topic {self.place.topic} took no commit: {why}")

    def _clean(self, block: Block, *, sessions: set[Session] | None = None) -> Block:
        """Return the block, written anew when it holds something of a forgotten session."""
        gone = self._forgotten if sessions is None else sessions
        if block.device not in {device for device, _ in gone}:
            return block
        found = read(block, 0)
        if isinstance(found, str):
            return blanked(block, gone)
        clean = stripped(found, gone, self.forget)
        return block if clean == found else blocks_of.parse(blocks_of.encode(clean, first=block.first))

    def _erase(self) -> None:
        """Put a block without its text in the place of each one that holds something of a forgotten session."""
        if not self._has_to_erase:
            return
        for name, block in self._blocks().items():
            clean = self._clean(block)
            if clean is not block:
                self._write({name: _message(clean)})
        self._has_to_erase = False

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def watermark(self, key: Key) -> int:
        return max(self._stored.get(key, 0), self._stepped.get(key, 0))

    def watermarks(self) -> dict[Key, int]:
        with self._reading():
            marks = {key: self.watermark(key) for key in sorted(self._stored.keys() | self._stepped.keys())}
            return {key: upto for key, upto in marks.items() if upto}

    def presence(self) -> dict[str, str]:
        with self._reading():
            return dict(sorted((self._states | self._unsaid).items()))

    def raw(self) -> list[Raw]:
        return [raw for _, raws in self._rows() for raw in raws]

    @contextlib.contextmanager
    def connect(self) -> Generator[duckdb.DuckDBPyConnection]:
        records = [record for found, _ in self._rows() for record in found]
        with duckdb.connect() as duck:
            duck.register("stored", arrow_table(records))
            duck.register("forgotten", sessions_table(self._forgotten))
            shown = without_forgotten(self.forget) if self._forgotten else "*"
            duck.execute(f"CREATE VIEW records AS SELECT {shown} FROM (SELECT {', '.join(schema().names)} FROM stored)")
            yield duck

    @contextlib.contextmanager
    def _reading(self) -> Generator[None]:
        """Know what the topic knows by now: another process may write."""
        with self._lock, self._errors():
            for entry in self._scan():
                self._learn(entry)
            yield

    def _rows(self) -> Iterator[tuple[list[Record], list[Raw]]]:
        """Yield, stream by stream, every record once and the blocks that cannot be read."""
        streams: dict[Key, list[Block]] = defaultdict(list)
        with self._lock, self._errors():
            for block in self._blocks().values():
                streams[_key(block)].append(block)
        for found in streams.values():
            yield _once(sorted(found, key=lambda block: (block.first, block.last)))

    def _blocks(self) -> dict[str, Block]:
        """Return the topic's blocks: of each key the last."""
        found: dict[str, Block] = {}
        for name, value in self._scan():
            self._learn((name, value))
            if name.startswith("b/"):
                found[name] = self._block(value)
        return found

    def _learn(self, entry: tuple[str, bytes]) -> None:
        """Take watermarks, presence and who wants to be forgotten from a message."""
        name, value = entry
        match name.split("/"):
            case ["b", *_]:
                block = self._block(value)
                self._mark(block)
                self._forgotten |= set(_asked(block))
            case ["s", device, epoch, stream]:
                self._hear((device, int(epoch), stream), int(value or 0))
            case ["p", device]:
                self._states[device] = value.decode("utf-8", "replace")
            case _:
                raise FieldlmError(f"the Kafka topic {self.place.topic} is no store: it has a message {name[:80]!r}")

    def _mark(self, block: Block) -> None:
        key = _key(block)
        self._stored[key] = max(block.last, self._stored.get(key, 0))
        self._hearsay.note(key, 0)

    def _block(self, value: bytes) -> Block:
        try:
            return blocks_of.parse(value)
        except WireError as error:
            raise FieldlmError(f"the Kafka topic {self.place.topic} holds what is {error}") from error

    def _scan(self) -> Iterator[tuple[str, bytes]]:
        """Yield every message that is in the topic now, each partition's in its order."""
        consumer = Consumer(_consuming(self.place))
        try:
            waiting = set(range(self._partitions))
            consumer.assign([TopicPartition(self.place.topic, number, 0) for number in waiting])
            heard_s = time.monotonic()
            while waiting:
                message = consumer.poll(0.5)
                if message is None:
                    if time.monotonic() - heard_s > PATIENCE_S:
                        raise FieldlmError(f"the Kafka topic {self.place.topic} does not answer")
                    continue
                heard_s = time.monotonic()
                problem = message.error()
                if problem and problem.code() == KafkaError._PARTITION_EOF:
                    waiting.discard(message.partition() or 0)
                elif problem:
                    raise KafkaException(problem)
                else:
                    name, value = str(message.key() or b"", "utf-8", "replace"), bytes(message.value() or b"")
                    if value or name.startswith("s/"):
                        yield name, value
        finally:
            consumer.close()

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (KafkaException, BufferError) as error:
            raise FieldlmError(f"the Kafka topic {self.place.topic} at {self.place.brokers}: {error}") from error


def _common(place: Place) -> dict[str, Any]:
    # Its own log would tell on stderr what an exception or a second try tells anyway.
    return {"bootstrap.servers": place.brokers, "log_level": 0, "error_cb": _ignored} | place.properties


def _ignored(_error: KafkaError) -> None:
    return


def _producing(place: Place) -> dict[str, Any]:
    return _common(place) | {
        "enable.idempotence": True,  # and so acks=all, and no reordering or doubling by the client's own retries
        "linger.ms": 0,
        "message.timeout.ms": int(PATIENCE_S * 1000),
        "message.max.bytes": 2 * MESSAGE_BYTES,
    }


def _consuming(place: Place) -> dict[str, Any]:
    # The group is never used: partitions are assigned and no offset is kept.
    return _common(place) | {
        "group.id": "fieldlm",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 20,  # until a broker says that there is no more: nobody waits for news here
    }


def _partitions(place: Place, *, make: bool) -> int:
    """Return how many partitions the topic has; raises InputError when it is not there and not to be made."""
    admin = AdminClient(_common(place))
    # To ask for it by name would make it, on a broker that makes topics by itself: without compaction.
    topic = admin.list_topics(timeout=ANSWER_S).topics.get(place.topic)
    if topic is None and not make:
        raise InputError(
            f"there is no topic {place.topic}; fill one with: fieldlm collect --store kafka:HOST:PORT/TOPIC"
        )
    if topic is None:
        asked = NewTopic(place.topic, num_partitions=PARTITIONS, replication_factor=-1, config=_TOPIC_CONFIG)
        try:
            admin.create_topics([asked])[place.topic].result(ANSWER_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another collector was first
                raise
        topic = _made(admin, place)
    return len(topic.partitions)


def _made(admin: AdminClient, place: Place) -> Any:
    """Wait until the brokers know the topic."""
    until_s = time.monotonic() + ANSWER_S
    while time.monotonic() < until_s:
        topic = admin.list_topics(timeout=ANSWER_S).topics.get(place.topic)
        if topic and topic.partitions:
            return topic
        time.sleep(0.1)
    raise FieldlmError(f"the Kafka topic {place.topic} was made at {place.brokers} and did not appear")


def _key(block: Block) -> Key:
    return block.device, block.epoch, block.stream


def _name(block: Block) -> str:
    return f"b/{block.device}/{block.epoch}/{block.stream}/{block.first}-{block.last}"


def _waves(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Yield `blocks` so that none is sent before the one before it in its stream is there.

    A watermark is the end of the last block in the topic: one that gives out on the way must not be passed by the next.
    """
    left = list(blocks)
    while left:
        first = {_key(block): block for block in reversed(left)}
        yield list(first.values())
        left = [block for block in left if block is not first[_key(block)]]


def _message(block: Block) -> bytes:
    return msgspec.msgpack.encode(block)


def _asked(block: Block) -> Iterator[Session]:
    # Devices ask on other streams than that of their answers, which is most of the traffic.
    found = read(block, 0) if block.stream != "gen" else []
    return forgets([] if isinstance(found, str) else found)


def _once(blocks: Sequence[Block]) -> tuple[list[Record], list[Raw]]:
    """Return of one stream's blocks, in order, what each has beyond those before."""
    records: list[Record] = []
    raws: list[Raw] = []
    upto = 0
    for block in blocks:
        found = read(block, upto) if block.last > upto else []
        if isinstance(found, str):
            raws.append(Raw(block=block, after=upto, problem=found))
        else:
            records += found
        upto = max(upto, block.last)
    return records, raws
