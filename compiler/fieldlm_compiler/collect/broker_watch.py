"""What a collector says of its broker: once per outage that it is away, why, what to look at; when it is back."""

import ssl
from collections.abc import Sequence

from paho.mqtt.reasoncodes import ReasonCode

from fieldlm.core.logs import logger
from fieldlm.core.urls import shown
from fieldlm.network.patience import cause_of

log = logger(__name__)

TAKEN_OVER = 142
"""MQTT 5's reason for a connection that ends because another client has the same name."""
_FOR_GOOD = {"doubled", "unread"}
"""What every new connection would show again: said once."""
_AGAIN = "; it is tried again until it answers"


class BrokerWatch:
    """Told, by paho's one thread, what becomes of the connections; says each kind of trouble once until one stands."""

    def __init__(self, url: str) -> None:
        self._broker = f"the broker {shown(url)}"
        self._said: set[str] = set()
        self._is_connected = False
        self._has_begun = False

    def connected(self) -> None:
        """The broker took the connection."""
        if self._said - _FOR_GOOD:
            log.info(f"collect: {self._broker} is {'back' if self._has_begun else 'there'}")
        self._said &= _FOR_GOOD
        self._is_connected = self._has_begun = True

    def refused(self, reason: ReasonCode) -> None:
        """The broker answered that it does not want this collector."""
        check = "are user and password in --broker right, and may they connect?"
        self._say("refused", f"{self._broker} refused: {reason}; {check}{_AGAIN}")

    def failed(self, error: BaseException | None) -> None:
        """No connection came about."""
        if isinstance(error, ssl.SSLCertVerificationError):
            self._say(
                "untrusted",
                f"the certificate of {self._broker} is not trusted: {error.verify_message}; this system's authorities "
                "have to vouch for it, or those in the file of --broker-ca, and it has to be "
                f"for the name in --broker{_AGAIN}",
            )
            return
        why = f" ({cause_of(error)})" if error else ""
        check = "is it running, and are mqtt:// or mqtts://, name and port in --broker right?"
        self._say("away", f"{self._broker} is away{why}: {check}{_AGAIN}")

    def lost(self, reason: ReasonCode) -> None:
        """A connection ended that nobody here has ended. paho tells of one twice where the broker said why."""
        was_connected, self._is_connected = self._is_connected, False
        if reason.value == TAKEN_OVER:
            check = "another collector has the same shards of the fleet: stop one, or part them with --shards"
            self._say("doubled", f"{self._broker} gave the connection away: {check}")
        elif was_connected or not (self._has_begun or self._said):
            check = "is it running, and is it mqtt:// or mqtts://?"
            self._say("away", f"{self._broker} closed the connection ({reason}): {check}{_AGAIN}")

    def subscribed(self, reasons: Sequence[ReasonCode]) -> None:
        """The broker answered what of the fleet may be read."""
        if refused := next((reason for reason in reasons if reason.is_failure), None):
            check = "allow it to read fieldlm/1/FLEET/#"
            self._say("unread", f"{self._broker} lets this collector not read what devices send ({refused}): {check}")

    def _say(self, kind: str, what: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            log.warning(f"collect: {what}")
