"""What the device says next on one connection: hello until the collector answers, then blocks within a window.

Decides and reads the spool; sends nothing itself. A record is deleted in `acknowledged` and nowhere else.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from fieldlm.formats import block, topics
from fieldlm.formats.record import CRITICAL, STREAMS
from fieldlm.runtime.spool import Spool

WINDOW = 4
"""Blocks on the way at a time: enough to fill a slow link, few enough to send again."""
BLOCK_RECORDS = 128
BLOCK_EXPIRY_S = 86_400


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How patient a device is; seconds."""

    ack_s: float = 15.0
    linger_s: float = 2.0
    """How long records that are not critical wait for company."""
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 300.0


class Message(msgspec.Struct, frozen=True, kw_only=True):
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
class Totals:
    """Counted over all connections of one Sync."""

    blocks: int = 0
    bytes: int = 0
    resent: int = 0
    acked: int = 0
    reached: dict[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int])
    """The last seq ever sent, to tell a second sending from a first."""


class Conversation:
    """The state of one connection."""

    def __init__(
        self, spool: Spool, fleet: str, device: str, timing: Timing, totals: Totals, *, window: int = WINDOW
    ) -> None:
        self.spool = spool
        self.fleet = fleet
        self.device = device
        self.timing = timing
        self.totals = totals
        self.window = window
        self._begin(spool.epoch)

    def due(self, now_s: float, *, hurry: bool = False) -> Iterator[Message]:
        """Yield what is to be sent now; `hurry` lets no record wait for company."""
        if self._epoch != self.spool.epoch:
            self._begin(self.spool.epoch)
        late = any(now_s - flying.sent_s > self.timing.ack_s for flying in self._flying)
        unanswered = not self._is_answered and now_s - self._greeted_s > self.timing.ack_s
        if late or unanswered:
            yield self._hello(now_s)
        if self._is_answered:
            yield from self._blocks(now_s, hurry=hurry)

    def acknowledged(self, ack: topics.Ack) -> None:
        """Delete what is committed; the answer to a hello also says from where to go on."""
        if ack.epoch != self._epoch:
            return
        for stream, upto in ack.upto.items():
            if stream in STREAMS:
                self._acknowledge(stream, upto)
        if ack.nonce == self._nonce and not self._is_answered:
            self._is_answered = True
            self._sent = {stream: committed for stream, (_, committed) in self.spool.ends().items()}

    def _acknowledge(self, stream: str, upto: int) -> None:
        self.totals.acked += self.spool.commit(self._epoch, stream, upto)
        self._flying = [flying for flying in self._flying if flying.stream != stream or flying.last > upto]
        self._sent[stream] = max(self._sent.get(stream, 0), upto)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._nonce = ""
        self._greeted_s = float("-inf")
        self._is_answered = False
        self._flying: list[Flying] = []
        self._sent: dict[str, int] = {}
        self._waiting_since: dict[str, float] = {}

    def _hello(self, now_s: float) -> Message:
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
        return Message(topic=topics.hello_topic(self.fleet, self.device), payload=msgspec.json.encode(hello))

    def _blocks(self, now_s: float, *, hurry: bool) -> Iterator[Message]:
        for stream in STREAMS:
            while len(self._flying) < self.window and self._is_due(stream, now_s, hurry=hurry):
                message = self._block(stream, now_s)
                if message is None:
                    break
                yield message

    def _is_due(self, stream: str, now_s: float, *, hurry: bool) -> bool:
        behind = self.spool.ends()[stream][0] - self._sent.get(stream, 0)
        if behind <= 0:
            self._waiting_since.pop(stream, None)
            return False
        waited_s = now_s - self._waiting_since.setdefault(stream, now_s)
        return hurry or stream in CRITICAL or behind >= BLOCK_RECORDS or waited_s >= self.timing.linger_s

    def _block(self, stream: str, now_s: float) -> Message | None:
        after = self._sent.get(stream, 0)
        records = self.spool.pending(stream, after, BLOCK_RECORDS)
        if not records:
            return None
        # It starts where the last one ended, so that numbers which were dropped in between are spoken for.
        payload = block.encode(records, first=after + 1)
        last = records[-1].seq
        self._sent[stream] = last
        self._flying.append(Flying(stream, last, now_s))
        self.totals.blocks += 1
        self.totals.bytes += len(payload)
        key = (self._epoch, stream)
        self.totals.resent += last <= self.totals.reached.get(key, 0)
        self.totals.reached[key] = max(last, self.totals.reached.get(key, 0))
        self._waiting_since.pop(stream, None)
        topic = topics.block_topic(self.fleet, self.device, stream)
        return Message(topic=topic, payload=payload, expiry_s=BLOCK_EXPIRY_S, content_type=topics.CONTENT_TYPE)
