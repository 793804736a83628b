"""Answers of a fieldlm server on this machine, over its unix socket; Python's standard library is all it needs."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

PATIENCE_S = 120.0
"""Without a byte; a server says every ten seconds that it is there."""


class ServerError(Exception):
    """There is no answer, or no whole one; `outcome` is what the server calls it."""

    def __init__(self, message: str, outcome: str = "error") -> None:
        super().__init__(message)
        self.outcome = outcome


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def is_ready(path: str) -> bool:
    """Whether a server answers at `path`, and has its model loaded."""
    connection = _UnixConnection(path, 5.0)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Answer:
    """A running answer: iterate over it for its text as it comes. `cancel` may be called from any thread."""

    def __init__(self, path: str, body: Mapping[str, Any]) -> None:
        self.text = ""
        self.outcome = ""
        self.confidence: float | None = None
        self.is_cancelled = False
        self._connection = _UnixConnection(path, PATIENCE_S)
        self._socket: socket.socket | None = None
        self._body = json.dumps({**body, "stream": True})

    def __iter__(self) -> Iterator[str]:
        """Yield pieces; raises ServerError where the answer does not become whole."""
        try:
            self._connection.request(
                "POST", "/v1/chat/completions", self._body, {"content-type": "application/json", "connection": "close"}
            )
            self._socket = self._connection.sock  # which forgets it once there is a response
            if self.is_cancelled:
                raise ServerError("cancelled", "cancelled")
            response = self._connection.getresponse()
            if response.status != 200:
                raise _error(json.loads(response.read()), f"the server answered {response.status}")
            for line in response:
                if line.startswith(b"data: {"):
                    yield from self._event(json.loads(line[6:]))
            if not self.outcome:
                raise ServerError("cancelled", "cancelled") if self.is_cancelled else ServerError("it was cut off")
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = "cancelled" if self.is_cancelled else "error"
            raise ServerError(why if self.is_cancelled else f"the server cannot be asked: {error}", why) from error
        finally:
            self._connection.close()

    def _event(self, event: dict[str, Any]) -> Iterator[str]:
        if "error" in event:
            raise _error(event, "the answer failed")
        self.confidence = event.get("fieldlm", {}).get("confidence", self.confidence)
        for choice in event["choices"][:1]:
            self.outcome = choice["finish_reason"] or self.outcome
            if piece := choice["delta"].get("content"):
                self.text += piece
                yield piece

    def cancel(self) -> None:
        """End it: the server stops computing, and who reads gets a ServerError."""
        self.is_cancelled = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def decide(path: str, question: str, schema: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
    """Return an object of the form `schema`; raises ServerError when there is no whole one after `deadline_s`."""
    form = {"type": "json_schema", "json_schema": {"name": "decision", "schema": schema, "strict": True}}
    asked = [{"role": "user", "content": question}]
    terms = {"deadline_ms": max(1, round(1000 * deadline_s)), "priority": "safety"}
    answer = Answer(path, {"messages": asked, "response_format": form, **terms})
    for _ in answer:
        pass
    if answer.outcome != "stop":
        raise ServerError(f"the object is not whole: {answer.outcome}", answer.outcome)
    return json.loads(answer.text)


def _error(body: Any, otherwise: str) -> ServerError:
    told: dict[str, Any] = body.get("error", {}) if isinstance(body, dict) else {}
    return ServerError(str(told.get("message") or otherwise), str(told.get("code") or "error"))
