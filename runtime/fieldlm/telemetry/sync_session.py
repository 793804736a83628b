"""The sync protocol on one connection: hello until the collector answers, then blocks within a window.

Decides and reads the spool; sends nothing itself. A record is deleted in `acknowledged` and nowhere else.
"""

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from fieldlm.formats import block, topics
from fieldlm.formats.record import CRITICAL, STREAMS, Record
from fieldlm.hardware.clock import rebased
from fieldlm.telemetry.data_budget import Budget
from fieldlm.telemetry.hard_examples import is_hard
from fieldlm.telemetry.spool import Spool

WINDOW = 4
"""Blocks on the way at a time: enough to fill a slow link, few enough to send again."""
BLOCK_RECORDS = 128
BLOCK_EXPIRY_S = 86_400
ROW_BYTES = 256 << 10
"""Rows of one block, before they are compressed."""
MESSAGE_BYTES = block.MAX_BLOCK_BYTES
PATIENCE = 3
"""Sendings of a block before smaller ones are tried."""
UNBELIEVABLE = 3
"""Answers in a row that claim more than this device ever gave out, until it begins a new epoch: its spool was restored
from a copy, or somebody else answers. Nothing is deleted either way."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How patient a device is; seconds."""

    ack_s: float = 15.0
    linger_s: float = 2.0
    """How long records that are not critical wait for company."""
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 300.0
    poison_s: float = 3600.0
    """How long a collector that answers may leave one record unacknowledged before it is given up, and told."""


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Something to publish with QoS 1."""

    topic: str
    payload: bytes
    expiry_s: int = 0
    content_type: str = ""


class Flying(msgspec.Struct, frozen=True):
    """A block on the way."""

    stream: str
    last: int
    sent_s: float


@dataclass
class SyncTotals:
    """Counted over all connections of one Sync."""

    blocks: int = 0
    bytes: int = 0
    resent: int = 0
    acked: int = 0
    tries: dict[tuple[int, str, int], "Try"] = field(default_factory=dict[tuple[int, str, int], "Try"])
    """How often a block that begins there was sent to a collector that answers."""
    reached: dict[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int])
    """The last seq ever sent: a second sending is none for the first time, and an acknowledgement goes no further."""
    unbelieved: int = 0
    """Acknowledgements of what was not sent; whoever may publish on a broker can make one up."""


class Try(msgspec.Struct):
    """How often, and since when (monotonic seconds)."""

    since_s: float
    times: int = 0


class SyncSession:
    """The state of one connection."""

    def __init__(
        self,
        spool: Spool,
        fleet: str,
        device: str,
        timing: Timing,
        totals: SyncTotals,
        *,
        window: int = WINDOW,
        max_bytes: int = MESSAGE_BYTES,
        budget: Budget | None = None,
        boot: str = "",
        id_key: bytes = b"",
    ) -> None:
        """`max_bytes` is what the broker takes in one message; `boot` is this boot, whose wrong times can be mended.

        `id_key` is the key of the response ids.
        """
        self.spool = spool
        self.fleet = fleet
        self.device = device
        self.timing = timing
        self.totals = totals
        self.window = window
        self.max_bytes = max_bytes
        self.budget = budget or Budget(spool)
        self.boot = boot
        self.id_key = id_key
        self._begin(spool.epoch)

    def due(self, now_s: float, *, hurry: bool = False) -> Iterator[OutgoingMessage]:
        """Yield what is to be sent now; `hurry` lets no record wait for company."""
        if self._epoch != self.spool.epoch:
            self._begin(self.spool.epoch)
        late = any(now_s - flying.sent_s > self.timing.ack_s for flying in self._flying)
        unanswered = not self._is_answered and now_s - self._greeted_s > self.timing.ack_s
        if late or unanswered:
            yield self._hello(now_s)
        if self._is_answered:
            yield from self._blocks(now_s, hurry=hurry)

    def next_s(self, now_s: float) -> float:
        """Return in how many seconds `due` may have something by the clock alone; below 0 when it is late."""
        ends = [flying.sent_s + self.timing.ack_s for flying in self._flying]
        if not self._is_answered:
            ends.append(self._greeted_s + self.timing.ack_s)
        if len(self._flying) < self.window:
            ends += [since_s + self.timing.linger_s for since_s in self._waiting_since.values()]
        return min(ends, default=math.inf) - now_s

    def acknowledged(self, ack: topics.Ack) -> None:
        """Delete what is committed; the answer to a hello also says from where to go on."""
        if ack.epoch != self._epoch:
            return
        upto = {stream: seq for stream, seq in ack.upto.items() if stream in STREAMS}
        is_answer = bool(self._nonce) and ack.nonce == self._nonce
        if any(seq > self._limit(stream, is_answer=is_answer) for stream, seq in upto.items()):
            # One for what an earlier process sent may come late, and its sender is asked again anyway.
            if any(seq > self._limit(stream, is_answer=True) for stream, seq in upto.items()):
                self._disbelieve(is_answer=is_answer)
            return
        for stream, seq in upto.items():
            self._acknowledge(stream, seq)
        if is_answer and not self._is_answered:
            self._is_answered, self._disbelieved = True, 0
            self._sent = {stream: committed for stream, (_, committed) in self.spool.ends().items()}

    def _limit(self, stream: str, *, is_answer: bool) -> int:
        """Return how far an acknowledgement can go: what was sent, which may have been before this process began."""
        last, committed = self.spool.ends().get(stream, (0, 0))
        return last if is_answer else max(committed, self.totals.reached.get((self._epoch, stream), 0))

    def _disbelieve(self, *, is_answer: bool) -> None:
        self.totals.unbelieved += 1
        self._disbelieved += is_answer
        if self._disbelieved >= UNBELIEVABLE:
            self.spool.begin_anew()

    @property
    def is_answered(self) -> bool:
        """Whether a collector has answered the hello."""
        return self._is_answered

    @property
    def is_owed(self) -> bool:
        """Whether a collector has something to answer or to acknowledge."""
        return bool(self._flying) or not self._is_answered

    def _acknowledge(self, stream: str, upto: int) -> None:
        self.totals.tries = {k: v for k, v in self.totals.tries.items() if k[1] != stream or k[2] > upto}
        self.totals.acked += self.spool.commit(self._epoch, stream, upto)
        self._flying = [flying for flying in self._flying if flying.stream != stream or flying.last > upto]
        self._sent[stream] = max(self._sent.get(stream, 0), upto)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._nonce = ""
        self._greeted_s = float("-inf")
        self._is_answered = False
        self._disbelieved = 0
        self._flying: list[Flying] = []
        self._sent: dict[str, int] = {}
        self._waiting_since: dict[str, float] = {}

    def _hello(self, now_s: float) -> OutgoingMessage:
        ends = self.spool.ends()
        self._nonce = secrets.token_hex(4)
        self._greeted_s = now_s
        self._is_answered = False
        self._flying = []
        hello = topics.Hello(
            device=self.device,
            epoch=self._epoch,
            first={stream: committed + 1 for stream, (_, committed) in ends.items()},
            last={stream: last for stream, (last, _) in ends.items()},
            nonce=self._nonce,
        )
        return OutgoingMessage(topic=topics.hello_topic(self.fleet, self.device), payload=msgspec.json.encode(hello))

    def _blocks(self, now_s: float, *, hurry: bool) -> Iterator[OutgoingMessage]:
        for stream in STREAMS:
            while len(self._flying) < self.window and self._is_due(stream, now_s, hurry=hurry):
                message = self._block(stream, now_s)
                if message is None:
                    break
                yield message

    def _is_due(self, stream: str, now_s: float, *, hurry: bool) -> bool:
        behind = self.spool.ends()[stream][0] - self._sent.get(stream, 0)
        if behind <= 0 or not self.budget.allows(stream):
            self._waiting_since.pop(stream, None)
            return False
        waited_s = now_s - self._waiting_since.setdefault(stream, now_s)
        return hurry or stream in CRITICAL or behind >= BLOCK_RECORDS or waited_s >= self.timing.linger_s

    def _block(self, stream: str, now_s: float) -> OutgoingMessage | None:
        after = self._sent.get(stream, 0)
        tried = self.totals.tries.setdefault((self._epoch, stream, after + 1), Try(now_s))
        # Who answers and does not acknowledge chokes on something: smaller and smaller blocks find out on what.
        limit = max(1, BLOCK_RECORDS >> max(0, tried.times - PATIENCE))
        records = self.spool.pending(stream, after, limit, max_bytes=min(ROW_BYTES, self.max_bytes))
        if not records:
            return None
        if len(records) == 1 and tried.times > 2 * PATIENCE and now_s - tried.since_s > self.timing.poison_s:
            self.spool.dead_letter(self._epoch, stream, records[0].seq, "refused")
            del self.totals.tries[self._epoch, stream, after + 1]
            return self._block(stream, now_s)
        tried.times += 1
        records = [self._prepared(record) for record in records]
        payload = self._encoded(records, after + 1)
        last = block.parse(payload).last
        self.budget.spend(len(payload))
        self._sent[stream] = last
        self._flying.append(Flying(stream, last, now_s))
        self.totals.blocks += 1
        self.totals.bytes += len(payload)
        key = (self._epoch, stream)
        self.totals.resent += last <= self.totals.reached.get(key, 0)
        self.totals.reached[key] = max(last, self.totals.reached.get(key, 0))
        self._waiting_since.pop(stream, None)
        topic = topics.block_topic(self.fleet, self.device, stream)
        return OutgoingMessage(topic=topic, payload=payload, expiry_s=BLOCK_EXPIRY_S, content_type=topics.CONTENT_TYPE)

    def _prepared(self, record: Record) -> Record:
        """Mend its time; leave its text here when bytes are scarce and it was easy."""
        record = rebased(record, self.boot)
        is_easy = record.kind == "generation" and not is_hard(record) and not self.spool.is_disputed(record.response)
        return _without_text(record, "scarce") if is_easy and record.prompt and self.budget.is_tight() else record

    def _encoded(self, records: list[Record], first: int) -> bytes:
        """Return as many of `records` as fit in one message; one that does not fit alone goes without its text."""
        # It starts where the last one ended, so that numbers which were dropped in between are spoken for.
        payload = block.encode(records, first=first, id_key=self.id_key)
        while len(payload) > self.max_bytes and len(records) > 1:
            records = records[: len(records) // 2]
            payload = block.encode(records, first=first, id_key=self.id_key)
        if len(payload) > self.max_bytes:
            payload = block.encode([_without_text(records[0], "too-large")], first=first, id_key=self.id_key)
        return payload


def _without_text(record: Record, why: str) -> Record:
    return msgspec.structs.replace(record, prompt="", answer="", correction="", detail=record.detail | {"text": why})
