"""The MQTT 5 client, one connection: paho as a pipe whose events come out of a queue. Made new for every connection."""

import queue
import secrets
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fieldlm.core.errors import UnavailableError
from fieldlm.formats import topics
from fieldlm.network.broker_identity import Identity

MAX_INFLIGHT = 16
KEEPALIVE_S = 60
LEAVE_S = 10.0
MOST_BYTES = 128 << 10
"""What is taken in one packet: a command or a policy of 64 KiB, and its topic."""
MAX_PACKET_BYTES = 268_435_455
"""MQTT's own limit."""


class Received(msgspec.Struct, frozen=True):
    """A message that came."""

    topic: str
    payload: bytes


class Closed(msgspec.Struct, frozen=True):
    """The connection is gone; nothing comes after this."""

    reason: str


Inbox = queue.SimpleQueue[Received | Closed | None]


class Link:
    """A connection that is open inside `with`. Its thread only moves bytes; every decision is the reader's."""

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        session_expiry_s: int,
        inbox: Inbox,
        will: tuple[str, bytes] | None = None,
        identity: Identity | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """The broker keeps back what is larger than `most_bytes`: what is checked after it came was in memory first."""
        self._most_bytes = most_bytes
        self.address = topics.parse_broker(url)
        self.receive_maximum = 65_535
        """Messages that the broker allows on the way; paho does not look at it, so whoever publishes has to."""
        self.max_bytes = MAX_PACKET_BYTES
        """What the broker takes in one packet."""
        self._inbox = inbox
        self._answer = threading.Event()
        self._refusal = ""
        self._expiry_s = session_expiry_s
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        self._client.max_inflight_messages_set(MAX_INFLIGHT)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._refused = (0, "")
        """The last message that the broker did not take, by paho's number, and why."""
        if self.address.tls:
            self._client.tls_set_context((identity or Identity()).context())
        if self.address.user:
            self._client.username_pw_set(self.address.user, self.address.password)
        if will:
            self._client.will_set(will[0], will[1], qos=1, retain=True)

    def __enter__(self) -> Self:
        """Connect; raises UnavailableError when the broker is away or refuses."""
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = self._expiry_s
        properties.ReceiveMaximum = MAX_INFLIGHT
        properties.MaximumPacketSize = self._most_bytes
        host, port = self.address.host, self.address.port
        try:
            self._client.connect(host, port, keepalive=KEEPALIVE_S, clean_start=False, properties=properties)
        except (OSError, ValueError) as error:
            self.close()
            raise UnavailableError(f"the broker {self.address} is away: {error}") from error
        self._client.loop_start()
        if not self._answer.wait(10) or self._refusal:
            self.close()
            raise UnavailableError(f"the broker {self.address} refused: {self._refusal or 'no answer in 10 s'}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect after what is queued has gone out."""
        self._client.disconnect()
        self._client.loop_stop()
        # A connection that was refused half way would stay open until it is collected.
        if sock := self._client.socket():
            sock.close()
        # paho closes two of its sockets when it is collected; without the circle that is now and not some day.
        self._client.on_connect = self._client.on_message = self._client.on_disconnect = None
        self._client.on_publish = None

    def subscribe(self, filters: Sequence[str]) -> None:
        self._client.subscribe([(name, SubscribeOptions(qos=1)) for name in filters])

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: int = 0,
        content_type: str = "",
        wait_s: float = 0.0,
    ) -> None:
        """Queue a QoS 1 message, and wait up to `wait_s` until the broker has it.

        Raises UnavailableError when paho will not take it, or the broker refuses it or keeps silent for `wait_s`.
        """
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = ("v", "1")
        if expiry_s:
            properties.MessageExpiryInterval = expiry_s
        if content_type:
            properties.ContentType = content_type
        done = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if done.rc != mqtt.MQTT_ERR_SUCCESS:
            raise UnavailableError(f"the broker {self.address} took no message: {mqtt.error_string(done.rc)}")
        if wait_s:
            self._wait(done, topic, wait_s)

    def _wait(self, done: mqtt.MQTTMessageInfo, topic: str, wait_s: float) -> None:
        try:
            done.wait_for_publish(wait_s)
        except (RuntimeError, ValueError) as error:
            raise UnavailableError(f"the broker {self.address} took no message: {error}") from error
        if self._refused[0] == done.mid:
            raise UnavailableError(f"the broker {self.address} refuses what is said on {topic}: {self._refused[1]}")
        if not done.is_published():
            raise UnavailableError(f"the broker {self.address} did not take a message on {topic} in {wait_s:g} s")

    def _on_publish(self, _client: mqtt.Client, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refused = (mid, str(reason))

    def _on_connect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refusal = str(reason)
        self.receive_maximum = int(getattr(properties, "ReceiveMaximum", 65_535))
        self.max_bytes = int(getattr(properties, "MaximumPacketSize", MAX_PACKET_BYTES))
        self._answer.set()

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self._inbox.put(Received(message.topic, bytes(message.payload)))

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._answer.is_set():
            # Closed before a word was said: with TLS 1.3 that is how a certificate is refused.
            self._refusal = f"it closed the connection ({reason})"
            self._answer.set()
        self._inbox.put(Closed(str(reason)))


def leave(url: str, topic: str, payload: bytes, *, identity: Identity | None = None) -> None:
    """Leave a message on the broker for whoever comes later, as its URL says: user, password and TLS.

    Raises InputError for a URL that is none, UnavailableError when the broker is away or refuses it.
    """
    client_id = f"fieldlm-{secrets.token_hex(8)}"
    with Link(url, client_id=client_id, session_expiry_s=0, inbox=queue.SimpleQueue(), identity=identity) as link:
        link.publish(topic, payload, retain=True, wait_s=LEAVE_S)
