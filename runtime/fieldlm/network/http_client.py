"""A running server as our own commands ask it: over TCP, TLS or a unix socket, with a key where it wants one.

The key comes from FIELDLM_API_KEY, so that it is neither in the history of a shell nor in the list of processes.
"""

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from fieldlm.core.errors import InputError, UnavailableError

DEFAULT_URL = "http://127.0.0.1:8080"
KEY = "FIELDLM_API_KEY"
TIMEOUT_S = 300.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the unix socket at `path`."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


def connect(url: str) -> http.client.HTTPConnection:
    """Return a connection to http://HOST:PORT, https://HOST:PORT or unix:/PATH, which is made when it is used."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return UnixConnection(parts.path)
    if parts.scheme == "http" and parts.hostname:
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)
    if parts.scheme == "https" and parts.hostname:
        return http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=TIMEOUT_S)
    raise InputError(f"{url!r} is not the address of a server; want something like {DEFAULT_URL} or unix:/PATH")


def get(url: str, path: str) -> tuple[int, Any]:
    """Return the status and the document at `path`; raises LinkError when what answers is no server of ours."""
    with closing(connect(url)) as connection:
        response = _send(connection, url, "GET", path)
        document = _document(response, url)
    if response.status == http.client.UNAUTHORIZED:
        raise _refused(response.status, document)
    return response.status, document


def events(url: str, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Post `body` and yield the events of the answer; leaving the loop early hangs up, which stops the answer there.

    Raises InputError for a request that is refused, LinkError when the answer fails or breaks off.
    """
    with closing(connect(url)) as connection:
        response = _send(connection, url, "POST", path, body)
        if response.status != http.client.OK:
            raise _refused(response.status, _document(response, url))
        try:
            for line in response:
                data = line.decode(errors="replace").removeprefix("data: ").strip()
                if data == "[DONE]":
                    return
                if data:
                    event = json.loads(data)
                    if "error" in event:
                        raise UnavailableError(_message(event))
                    yield event
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UnavailableError(f"the answer of {url} broke off: {error}") from error
    raise UnavailableError("the server hung up in the middle of its answer")


def _document(response: http.client.HTTPResponse, url: str) -> Any:
    try:
        return json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnavailableError(f"what answers at {url} is not fieldlm: {error}") from error


def _send(
    connection: http.client.HTTPConnection, url: str, method: str, path: str, body: Any = None
) -> http.client.HTTPResponse:
    headers = {"content-type": "application/json"} if body is not None else {}
    if key := os.environ.get(KEY, "").strip():
        headers["authorization"] = f"Bearer {key}"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"no server answers at {url}: {error}; start one with: fieldlm serve BUNDLE") from error


def _refused(status: int, document: Any) -> InputError:
    hint = f"; put the key into {KEY}" if status == http.client.UNAUTHORIZED else ""
    return InputError(f"{_message(document)}{hint}")


def _message(document: Any) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or "the server gives no reason")
