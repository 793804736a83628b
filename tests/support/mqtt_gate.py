"""A broker's door: it takes, refuses or drops connections as a test says; of MQTT 5 it speaks as much as that takes."""

import contextlib
import socket
import ssl
import threading
from types import TracebackType
from typing import Literal, Self

from fieldlm.network.sockets import Tls

Answer = Literal["open", "refuses", "hangs up", "lets nothing be read"]
NOT_AUTHORISED = 0x87
_SUBSCRIBE = 0x80
_FILTERS = 3
"""What a collector of all shards subscribes to."""


class MqttGate:
    """Listens on a free port of 127.0.0.1; `answer` says what becomes of the next connections."""

    def __init__(self, answer: Answer, tls: Tls | None = None) -> None:
        self.answer: Answer = answer
        self.tried = 0
        """Connections so far, also those that came no further than TLS."""
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(tls.certificate, tls.key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, name="mqtt-gate", daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes up who accepts
        self._thread.join()
        self._listening.close()
        self.drop()

    def drop(self) -> None:
        """End the connections that are open."""
        while self._open:
            self._open.pop().close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.tried += 1
            with contextlib.suppress(OSError):
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            answer = self.answer
            if answer == "hangs up":
                return
            connection.recv(4096)
            connection.sendall(bytes([0x20, 3, 0, NOT_AUTHORISED if answer == "refuses" else 0, 0]))
            if answer == "refuses":
                return
            asked = connection.recv(4096)
            if not asked or asked[0] & 0xF0 != _SUBSCRIBE:
                return
            allowed = NOT_AUTHORISED if answer == "lets nothing be read" else 1
            # The number of the packet stands behind its kind and its length, of one byte or two.
            number = asked[3:5] if asked[1] & 0x80 else asked[2:4]
            connection.sendall(bytes([0x90, 3 + _FILTERS]) + number + bytes([0, *[allowed] * _FILTERS]))
            self._open.append(connection)
            connection = socket.socket()  # closed in its place
        finally:
            connection.close()
