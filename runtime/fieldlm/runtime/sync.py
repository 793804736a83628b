"""Spool → broker → collector: a record leaves the spool only when the collector says that it has committed it.

paho is a pipe: at most WINDOW blocks are on the way, and when the connection breaks the client object is thrown away.
On each connection the device says hello with what it still holds; the collector answers with what it has; sending goes
on after that. What is not acknowledged in time is sent again, so a broker may forget everything at any moment.
"""

import contextlib
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from fieldlm.formats import topics
from fieldlm.formats.errors import FieldlmError, LinkError
from fieldlm.formats.record import WireError
from fieldlm.runtime.conversation import WINDOW, Conversation, Timing, Totals
from fieldlm.runtime.link import Closed, Inbox, Link, Received
from fieldlm.runtime.spool import Spool
from fieldlm.runtime.terminal import log

SESSION_EXPIRY_S = 7 * 86_400
"""How long the broker keeps commands for a device that is away."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a Sync has done since it was made; `problem` is why it is not connected."""

    connected: bool
    sent_blocks: int
    sent_bytes: int
    resent_blocks: int
    acked_records: int
    problem: str


class Sync:
    """A thread that empties the spool towards one broker, and brings releases and commands in."""

    def __init__(
        self,
        spool: Spool,
        *,
        broker_url: str,
        fleet: str,
        device: str,
        profile: str = "",
        on_release: Callable[[bytes], None] | None = None,
        on_command: Callable[[bytes], None] | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Callbacks run one after the other on a thread of their own; the same release is handed over only once."""
        topics.parse_broker(broker_url)
        self.spool = spool
        self.url = broker_url
        self.fleet = topics.check_name(fleet, "fleet")
        self.device = topics.check_name(device, "device")
        self.profile = profile and topics.check_name(profile, "profile")
        self.timing = timing or Timing()
        self._callbacks = {"release": on_release, "command": on_command}
        self._incoming: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._last_release = b""
        self._state: dict[str, Any] = {"state": "ready"}
        self._stop = threading.Event()
        self._inbox: Inbox = queue.SimpleQueue()
        self._link: Link | None = None
        self._hurry = threading.Event()
        self._totals = Totals()
        self._problem = "not connected yet"
        self._threads = [
            threading.Thread(target=self._run, name="sync", daemon=True),
            threading.Thread(target=self._deliver, name="sync-callbacks", daemon=True),
        ]

    def start(self) -> None:
        self.spool.on_durable = self.wake
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Say goodbye and end; what is not acknowledged stays in the spool."""
        self._stop.set()
        self.wake()
        self._incoming.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)

    def wake(self) -> None:
        """Look at the spool now instead of later."""
        self._inbox.put(None)

    def set_presence(self, state: dict[str, Any]) -> None:
        """Publish `state` as the device's retained presence, now and on every connection."""
        self._state = state
        link = self._link
        if link:
            self._publish_presence(link)

    def tell(self, part: str, payload: bytes) -> None:
        """Publish `payload` under the device's own topics, now or never."""
        link = self._link
        if link:
            with contextlib.suppress(LinkError):
                link.publish(topics.up(self.fleet, self.device, part), payload)

    def status(self) -> Status:
        return Status(
            connected=self._link is not None,
            sent_blocks=self._totals.blocks,
            sent_bytes=self._totals.bytes,
            resent_blocks=self._totals.resent,
            acked_records=self._totals.acked,
            problem="" if self._link else self._problem,
        )

    def drain(self, timeout_s: float) -> bool:
        """Wait until the collector has committed everything that is durable now; False when time is up."""
        self.spool.flush()
        goal = {stream: last for stream, (last, _) in self.spool.ends().items()}
        deadline = time.monotonic() + timeout_s
        self._hurry.set()
        try:
            while any(self.spool.ends()[stream][1] < last for stream, last in goal.items()):
                if time.monotonic() > deadline:
                    return False
                self.wake()
                time.sleep(0.02)
        finally:
            self._hurry.clear()
        return True

    # ── connecting ───────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                with self._connect() as link:
                    self._link = link
                    failures = 0
                    self._converse(link)
            except (FieldlmError, OSError, sqlite3.Error) as error:
                self._problem = str(error)
            finally:
                self._link = None
            # Full jitter: a fleet that lost its broker does not come back in step.
            ceiling_s = min(self.timing.backoff_cap_s, self.timing.backoff_base_s * 2 ** min(failures, 30))
            failures += 1
            self._stop.wait(random.uniform(0, ceiling_s))

    def _connect(self) -> Link:
        self._inbox = queue.SimpleQueue()
        return Link(
            self.url,
            client_id=f"fieldlm-{self.fleet}-{self.device}",
            session_expiry_s=SESSION_EXPIRY_S,
            inbox=self._inbox,
            will=(topics.state_topic(self.fleet, self.device), self._presence({"state": "lost"})),
        )

    def _converse(self, link: Link) -> None:
        wanted = [topics.ack_topic(self.fleet, self.device), topics.command_topic(self.fleet, self.device)]
        if self.profile:
            wanted.append(topics.release_topic(self.fleet, self.profile))
        link.subscribe(wanted)
        self._publish_presence(link)
        # Hello and presence are on the way too, and a broker may close on whoever exceeds its maximum.
        window = max(1, min(WINDOW, link.receive_maximum - 3))
        conversation = Conversation(self.spool, self.fleet, self.device, self.timing, self._totals, window=window)
        while not self._stop.is_set():
            for message in conversation.due(time.monotonic(), hurry=self._hurry.is_set()):
                link.publish(
                    message.topic, message.payload, expiry_s=message.expiry_s, content_type=message.content_type
                )
            self._receive(conversation)
        link.publish(topics.state_topic(self.fleet, self.device), self._presence({"state": "stopped"}), retain=True)

    def _receive(self, conversation: Conversation) -> None:
        """Wait for one event, and take all that are there."""
        wait_s = min(0.5, self.timing.linger_s / 2, self.timing.ack_s / 2)
        try:
            event = self._inbox.get(timeout=wait_s)
            while True:
                if isinstance(event, Closed):
                    raise LinkError(f"the broker {self.url} closed the connection: {event.reason}")
                if event:
                    self._sort(event, conversation)
                event = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _sort(self, event: Received, conversation: Conversation) -> None:
        if event.topic == topics.ack_topic(self.fleet, self.device):
            try:
                conversation.acknowledged(topics.parse_ack(event.payload))
            except WireError as error:
                log(f"sync: ignored an acknowledgement: {error}")
        elif event.topic == topics.command_topic(self.fleet, self.device):
            self._incoming.put(("command", event.payload))
        elif event.payload and event.payload != self._last_release:
            # A retained release comes again with every connection.
            self._last_release = event.payload
            self._incoming.put(("release", event.payload))

    def _deliver(self) -> None:
        while (item := self._incoming.get()) is not None:
            kind, payload = item
            callback = self._callbacks[kind]
            if callback is None:
                continue
            try:
                callback(payload)
            except Exception as error:  # the callback is somebody else's; its failure must not end the telemetry
                log(f"sync: the {kind} callback failed: {type(error).__name__}: {error}")

    def _presence(self, state: dict[str, Any]) -> bytes:
        return msgspec.json.encode({"device": self.device} | state)

    def _publish_presence(self, link: Link) -> None:
        link.publish(topics.state_topic(self.fleet, self.device), self._presence(self._state), retain=True)
