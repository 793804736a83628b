"""Sync, spool → broker → collector: a record leaves the spool only when the collector says that it has committed it.

paho is a pipe: at most WINDOW blocks are on the way, and when the connection breaks the client object is thrown away.
On each connection the device says hello with what it still holds; the collector answers with what it has; sending goes
on after that. What is not acknowledged in time is sent again, so a broker may forget everything at any moment.
"""

import contextlib
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from fieldlm.core.errors import FieldlmError, UnavailableError
from fieldlm.core.logs import logger
from fieldlm.core.tasks import Tasks
from fieldlm.core.urls import shown
from fieldlm.formats import topics
from fieldlm.formats.policy import Policy
from fieldlm.formats.record import WireError
from fieldlm.hardware.board_id import boot_id
from fieldlm.network.broker_identity import Identity
from fieldlm.network.mqtt import Closed, Inbox, Link, Received
from fieldlm.telemetry.backoff import Backoff
from fieldlm.telemetry.data_budget import Budget
from fieldlm.telemetry.effective_policy import EffectivePolicy
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync_session import MESSAGE_BYTES, WINDOW, SyncSession, SyncTotals, Timing

log = logger(__name__)

SESSION_EXPIRY_S = 7 * 86_400
"""How long the broker keeps commands for a device that is away."""


SHORT = 4
"""Connections in a row that ended before SETTLED_S. Not every broker says that another client came with our name."""
SETTLED_S = 30.0
"""A connection that lasted so long was one, whether a collector answered or not."""
SILENT = 3
"""Patiences without an answer from any collector, until the health names it."""
GOODBYE_S = 2.0
"""How long a stop waits for the broker to take the last presence."""
MOST_WAITING = 32
"""Commands, policies and releases that wait for those before them; what comes then has come too fast."""
STEP_S, LOOK_S = 0.5, 15.0
"""What is owed by the clock is late by no more than the first; the second is between two looks at an idle connection:
a quiet hour or a day's budget is over without anybody saying so. What is new in the spool or comes in wakes it."""
HEAD_BYTES = 1024
"""Room for topic and properties beside a message."""


class SyncStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a Sync has done since it was made.

    trouble: empty, or broker-away, name-doubled (another device connects under it), not-acknowledged (the broker takes
    everything, and no collector answers), acknowledgements-forged (somebody acknowledged what was never sent, and was
    not believed); `problem` says more.
    """

    connected: bool
    sent_blocks: int
    sent_bytes: int
    resent_blocks: int
    acked_records: int
    problem: str
    trouble: str = ""
    today_mb: float = 0.0


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
        terms: EffectivePolicy | None = None,
        identity: Identity | None = None,
        daily_mb: float = 0.0,
        id_key: bytes = b"",
        tasks: Tasks | None = None,
    ) -> None:
        """Callbacks run one after the other on a thread of their own; the same release is handed over only once.

        `terms` hear the fleet's policy; of its bytes a day and `daily_mb` (0 is no limit) the lesser counts. `id_key`
        is the key of the response ids, which makes them small.
        """
        topics.parse_broker(broker_url)
        self.spool = spool
        self.url = broker_url
        self.fleet = topics.check_name(fleet, "fleet")
        self.device = topics.check_name(device, "device")
        self.profile = profile and topics.check_name(profile, "profile")
        self.timing = timing or Timing()
        self.terms = terms or EffectivePolicy("full", fleet=fleet)
        self.identity = identity
        self.daily_mb = daily_mb
        self._id_key = id_key
        self.budget = Budget(spool)
        self._backoff = Backoff(base_s=self.timing.backoff_base_s, cap_s=self.timing.backoff_cap_s)
        self._obey(self.terms.policy)
        self.terms.on_change.append(self._obey_now)
        self._callbacks = {"release": on_release, "command": on_command, "policy": self.terms.take}
        self._suffix = ""
        self._incoming: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._last_release = b""
        self._state: dict[str, Any] = {"state": "ready"}
        self._stop = threading.Event()
        self._inbox: Inbox = queue.SimpleQueue()
        self._link: Link | None = None
        self._hurry = threading.Event()
        self._totals = SyncTotals()
        self._problem, self._doubled = "not connected yet", ""
        self._heard_s = time.monotonic()
        self._is_answered = self._is_open = False
        self._boot = boot_id()
        self._tasks = Tasks(tasks)

    def start(self) -> None:
        self.spool.on_durable = self.wake
        # Both again after a crash: nothing is lost, since the spool keeps what is not acknowledged.
        self._tasks.start("sync", self._run, restarts=True)
        self._tasks.start("sync-callbacks", self._deliver, restarts=True)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Say goodbye and end; what is not acknowledged stays in the spool."""
        self._stop.set()
        self.wake()
        self._incoming.put(None)
        self._tasks.close(timeout_s)

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
            with contextlib.suppress(UnavailableError):
                link.publish(topics.up(self.fleet, self.device, part), payload)

    def status(self) -> SyncStatus:
        trouble, problem = self._trouble()
        return SyncStatus(
            connected=self._link is not None,
            sent_blocks=self._totals.blocks,
            sent_bytes=self._totals.bytes,
            resent_blocks=self._totals.resent,
            acked_records=self._totals.acked,
            problem=problem,
            trouble=trouble,
            today_mb=round(self.budget.sent_mb(), 3),
        )

    def _trouble(self) -> tuple[str, str]:
        silent_s = time.monotonic() - self._heard_s
        if not self._link:
            return "broker-away", self._problem
        if silent_s > SILENT * self.timing.ack_s:
            return "not-acknowledged", f"no collector has answered for {silent_s:.0f} s; does one run for {self.fleet}?"
        if self._doubled:
            return "name-doubled", self._doubled
        if count := self._totals.unbelieved:
            return "acknowledgements-forged", f"{count} were for what was never sent; who may publish for {self.fleet}?"
        return "", ""

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
        failures = short = 0
        self._stop.wait(self._backoff.start_s())
        while not self._stop.is_set():
            began_s = time.monotonic()
            self._is_answered = self._is_open = False
            try:
                with self._connect() as link:
                    self._link = link
                    self._is_open = True
                    self._converse(link)
            except (FieldlmError, OSError, sqlite3.Error) as error:
                self._problem = str(error)
            finally:
                self._link = None
            lasted = time.monotonic() - began_s > SETTLED_S
            # A broker that takes everybody in and throws them out again is no broker yet.
            failures = 0 if self._is_answered or lasted else failures
            short = short + 1 if self._is_open and not lasted else 0
            if short >= SHORT:
                self._take_own_name()
                short = 0
            self._stop.wait(self._backoff.delay_s(failures))
            failures += 1

    def _obey_now(self, policy: Policy) -> None:
        self._obey(policy)
        self.wake()

    def _obey(self, policy: Policy) -> None:
        limits = [mb for mb in (self.daily_mb, policy.daily_mb) if mb]
        self.budget.daily_mb = min(limits, default=0.0)
        self.budget.quiet_hours = policy.quiet_hours
        self._backoff = msgspec.structs.replace(self._backoff, window_s=policy.reconnect_window_s)

    def _connect(self) -> Link:
        self._inbox = queue.SimpleQueue()
        return Link(
            self.url,
            client_id=f"fieldlm-{self.fleet}-{self.device}{self._suffix}",
            identity=self.identity,
            session_expiry_s=SESSION_EXPIRY_S,
            inbox=self._inbox,
            will=(topics.state_topic(self.fleet, self.device), self._presence({"state": "lost"})),
        )

    def _converse(self, link: Link) -> None:
        wanted = [topics.ack_topic(self.fleet, self.device), topics.command_topic(self.fleet, self.device)]
        if self.profile:
            wanted.append(topics.release_topic(self.fleet, self.profile))
        wanted.append(topics.policy_topic(self.fleet))
        link.subscribe(wanted)
        self._publish_presence(link)
        # Hello and presence are on the way too, and a broker may close on whoever exceeds its maximum.
        window = max(1, min(WINDOW, link.receive_maximum - 3))
        conversation = SyncSession(
            self.spool,
            self.fleet,
            self.device,
            self.timing,
            self._totals,
            window=window,
            max_bytes=max(HEAD_BYTES, min(MESSAGE_BYTES, link.max_bytes - HEAD_BYTES)),
            budget=self.budget,
            boot=self._boot,
            id_key=self._id_key,
        )
        while not self._stop.is_set():
            for message in conversation.due(time.monotonic(), hurry=self._hurry.is_set()):
                link.publish(
                    message.topic, message.payload, expiry_s=message.expiry_s, content_type=message.content_type
                )
            self._receive(conversation)
            self._is_answered |= conversation.is_answered
            if not conversation.is_owed:
                self._heard_s = time.monotonic()
        goodbye = self._presence({"state": "stopped"})
        # A socket that is closed over an unread answer is reset, and the broker then gives out the will over this.
        link.publish(topics.state_topic(self.fleet, self.device), goodbye, retain=True, wait_s=GOODBYE_S)

    def _receive(self, conversation: SyncSession) -> None:
        """Wait for one event, and take all that are there."""
        step_s = min(STEP_S, self.timing.linger_s / 2, self.timing.ack_s / 2)
        wait_s = max(step_s, min(LOOK_S, conversation.next_s(time.monotonic())))
        try:
            event = self._inbox.get(timeout=wait_s)
            while True:
                if isinstance(event, Closed):
                    if "taken over" in event.reason.casefold():
                        self._take_own_name()
                    raise UnavailableError(f"the broker {shown(self.url)} closed the connection: {event.reason}")
                if event:
                    self._sort(event, conversation)
                event = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _take_own_name(self) -> None:
        """Connect under a name that nobody else has: ours is on a copied card, or was given twice."""
        self._suffix = f"-{secrets.token_hex(4)}"
        self._doubled = f"connections are cut off; does another device connect as {self.device}? Give each its own name"
        log.warning(f"sync: {self._doubled}")

    def _sort(self, event: Received, conversation: SyncSession) -> None:
        if event.topic == topics.ack_topic(self.fleet, self.device):
            try:
                conversation.acknowledged(topics.parse_ack(event.payload))
                self._heard_s = time.monotonic()
            except WireError as error:
                log.warning(f"sync: ignored an acknowledgement: {error}")
        elif self._incoming.qsize() >= MOST_WAITING:
            log.warning(f"sync: left out a message on {event.topic}: {MOST_WAITING} wait already")
        elif event.topic == topics.policy_topic(self.fleet):
            self._incoming.put(("policy", event.payload))
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
                self._tasks.crashed(f"sync-callbacks[{kind}]", error)

    def _presence(self, state: dict[str, Any]) -> bytes:
        return msgspec.json.encode({"device": self.device} | state)

    def _publish_presence(self, link: Link) -> None:
        link.publish(topics.state_topic(self.fleet, self.device), self._presence(self._state), retain=True)
