"""HTTP client to our own server: over TCP, TLS or a unix socket, with a key where it wants one; server-sent events.

The key comes from FIELDLM_API_KEY, so that it is neither in the history of a shell nor in the list of processes. A
certificate counts when the system's authorities vouch for it (SSL_CERT_FILE adds others), or when its SHA-256 is known.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from fieldlm.core.config import NO_NETWORK, Config, load_config
from fieldlm.core.errors import ConfigError, InputError, TrustError, UnavailableError
from fieldlm.core.urls import shown
from fieldlm.network.api_keys import CLIENT_KEY
from fieldlm.network.bounded_http import connections
from fieldlm.network.certificates import certificate_at, certificate_sha256
from fieldlm.network.patience import cause_of

EXAMPLE = "http://127.0.0.1:8080"
CONNECT_S = 10.0
ANSWER_S = 300.0
AT_ONCE = 128
"""Connections that are kept; a server lets no more requests than these wait at a time."""
MOST_BYTES = 64 << 20
"""Of one answer; a stranger's may have no end."""
UNAUTHORIZED, OK = 401, 200


class NobodyAnswersError(UnavailableError):
    """Nobody listens at the address."""


class HttpClient:
    """A server at http://HOST:PORT, https://HOST:PORT or unix:/PATH, connected to when it is asked. Any thread may ask.

    `fingerprint` is how the SHA-256 of its certificate begins, in hex: that certificate counts, whoever vouches for it.
    `key` "" sends none, None the environment's. `timeout_s` is how long nothing may come.
    """

    def __init__(self, url: str, *, fingerprint: str = "", key: str | None = None, timeout_s: float = ANSWER_S) -> None:
        parts = _parts(url)
        self.url = shown(url)
        self._how: dict[str, Any] = {
            "timeout": Timeout(connect=min(CONNECT_S, timeout_s), read=timeout_s),
            "maxsize": AT_ONCE,
        }
        if parts.scheme == "unix":
            self._pool: HTTPConnectionPool | None = _UnixPool("localhost", path=parts.path, **self._how)
        elif fingerprint and parts.scheme == "https":
            self._pool = None  # who answers is looked at when there is something to ask
        else:
            self._pool = connections(tls=parts.scheme == "https", **self._how).connection_from_url(url)
        self._fingerprint = fingerprint
        self._streams = set[BaseHTTPResponse]()
        given = os.environ.get(CLIENT_KEY, "").strip() if key is None else key
        self._headers = {"authorization": f"Bearer {given}"} if given else {}

    def get(self, path: str) -> tuple[int, Any]:
        """Return the status and the document at `path`; raises what `request` raises."""
        return self._document(*self.request("GET", path))

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Send `body` as JSON and return the status and the document; raises what `request` raises."""
        return self._document(*self.request("POST", path, msgspec.json.encode(body)))

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Return the status and what was answered, whole; `body` is JSON.

        Raises NobodyAnswersError, TrustError for a certificate that nobody vouches for, InputError without the right
        key, and UnavailableError when no answer comes or one that is not ours.
        """
        response = self._send(method, path, body)
        try:
            answer = response.read(MOST_BYTES + 1)
            if len(answer) > MOST_BYTES:
                raise UnavailableError(f"{self.url} answers with more than {MOST_BYTES >> 20} MiB; is it fieldlm?")
            return response.status, answer
        except HTTPError as error:
            raise UnavailableError(f"the answer of {self.url} broke off: {cause_of(error)}") from error
        finally:
            response.close()

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Post `body` and yield the events of the answer; leaving the loop early hangs up, which stops the answer.

        Raises InputError for a request that is refused, UnavailableError when the answer fails or breaks off.
        """
        response = self._send("POST", path, msgspec.json.encode(body))
        self._streams.add(response)
        try:
            if response.status != OK:
                raise InputError(refusal(self._document(response.status, response.read(MOST_BYTES))[1]))
            for line in _lines(response):
                field, _, data = line.decode(errors="replace").strip().partition(":")
                data = data.strip()
                if data == "[DONE]":
                    return
                # Of a line without a field before its colon nothing is meant but that somebody is there.
                if field == "data" and data:
                    event = msgspec.json.decode(data, type=dict[str, Any])
                    if event.get("error"):
                        raise UnavailableError(refusal(event))
                    yield event
        except (HTTPError, msgspec.MsgspecError, RecursionError) as error:
            raise UnavailableError(f"the answer of {self.url} broke off: {cause_of(error)}") from error
        finally:
            self._streams.discard(response)
            response.close()
        raise UnavailableError("the server hung up in the middle of its answer")

    def hang_up(self) -> None:
        """End every stream of events that is being read, in whatever thread."""
        for response in list(self._streams):
            with suppress(HTTPError, OSError, ValueError, RuntimeError):
                response.shutdown()

    def _send(self, method: str, path: str, body: bytes | None) -> BaseHTTPResponse:
        if self._pool is None:
            self._pool = self._pinned()
        headers = self._headers | ({} if body is None else {"content-type": "application/json"})
        try:
            return self._pool.request(
                method, path, body=body, headers=headers, retries=False, redirect=False, preload_content=False
            )
        except (NewConnectionError, ConnectTimeoutError) as error:
            raise self._nobody(error) from error
        except SSLError as error:
            hint = "SSL_CERT_FILE may name a PEM file of who vouches for it"
            raise TrustError(f"{self.url} cannot be trusted: {cause_of(error)}; {hint}") from error
        except HTTPError as error:
            raise UnavailableError(f"{self.url} gives no answer: {cause_of(error)}; is it fieldlm?") from error

    def _pinned(self) -> HTTPConnectionPool:
        """Return connections to who has the certificate that is known."""
        parts = urlsplit(self.url)
        try:
            whole = certificate_at(parts.hostname or "", parts.port or 443)
        except (ConnectionRefusedError, TimeoutError) as error:
            raise self._nobody(error) from error
        except OSError as error:
            raise UnavailableError(f"{self.url} shows no certificate: {error}") from error
        if not whole.startswith(self._fingerprint):
            raise TrustError(
                f"the certificate of {self.url} is {whole[:16]}, {self._fingerprint} was announced or configured"
            )
        known = connections(tls=False, assert_fingerprint=whole, cert_reqs="CERT_NONE", **self._how)
        return known.connection_from_url(self.url)

    def _nobody(self, error: Exception) -> NobodyAnswersError:
        start = "start one with: fieldlm serve MODEL"
        return NobodyAnswersError(f"no server answers at {self.url}: {cause_of(error)}; {start}")

    def _document(self, status: int, data: bytes) -> tuple[int, Any]:
        try:
            document = msgspec.json.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UnavailableError(f"what answers at {self.url} is not fieldlm: {error}") from error
        if status == UNAUTHORIZED:
            raise InputError(f"{refusal(document)}; put the key into {CLIENT_KEY}")
        return status, document


def _parts(url: str) -> SplitResult:
    """Return the parts of a server's address; raises InputError when it is none."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
        if parts.scheme == "unix" and parts.path:
            return parts
    raise InputError(f"{shown(url)!r} is not the address of a server; want something like {EXAMPLE} or unix:/PATH")


def own_server(config: Config, *, key: str | None = None, timeout_s: float = ANSWER_S) -> HttpClient:
    """Return the server that this machine's settings describe: on its socket where this user may use that."""
    if config.socket and (config.host == NO_NETWORK or os.access(config.socket, os.W_OK)):
        return HttpClient(f"unix:{config.socket}", key=key, timeout_s=timeout_s)
    if config.host == NO_NETWORK:
        raise ConfigError('host is "none" and no socket is set: no server can be reached; give --url')
    if not config.port:
        raise NobodyAnswersError("port is 0, any that is free: nobody knows which one a server has; give --url")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    address = f"{f'[{host}]' if ':' in host else host}:{config.port}"
    if not config.tls_cert:
        return HttpClient(f"http://{address}", key=key, timeout_s=timeout_s)
    fingerprint = certificate_sha256(Path(config.tls_cert))
    return HttpClient(f"https://{address}", fingerprint=fingerprint, key=key, timeout_s=timeout_s)


def server_at(url: str | None) -> HttpClient:
    """Return the server at `url`; without one, the server of this machine's settings."""
    # A name is given, so that nobody who only asks makes one up for the device and keeps it.
    return HttpClient(url) if url else own_server(load_config())


def refusal(document: Any) -> str:
    """Return the reason in a document that refuses."""
    error = document.get("error") if isinstance(document, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or "the server gives no reason")


def _lines(response: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the lines of an answer as they come, also where its end is that of the connection."""
    if getattr(response, "chunked", False):
        yield from response
        return
    rest = b""
    while data := response.read1(1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    yield rest


class _UnixConnection(HTTPConnection):
    """HTTP over the unix socket at `path`."""

    def __init__(self, *where: Any, path: str, **how: Any) -> None:
        super().__init__(*where, **how)
        self._path = path

    def _new_conn(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(self.timeout)
        try:
            made.connect(self._path)
        except OSError as error:
            made.close()
            raise NewConnectionError(self, str(error)) from error
        return made


class _UnixPool(HTTPConnectionPool):
    ConnectionCls = _UnixConnection  # pyright: ignore[reportAssignmentType]


def is_here(url: str) -> bool:
    """Return whether the server at `url` is on this machine, so that its heat is this machine's."""
    host = urlsplit(url).hostname or ""
    return url.startswith("unix:") or host == "localhost" or host.startswith("127.") or host == "::1"
