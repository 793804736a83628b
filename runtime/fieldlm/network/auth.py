"""Authentication: bearer API keys out of a file; without keys, checks of Origin and Host (CSRF, DNS rebinding).

A server without keys still refuses what a foreign web page sends through a local browser: a request whose `Origin` is
another site, and one whose `Host` is not a name of this machine (a page that had its own name resolve to this device:
whoever runs the network can do so with any name, also with one that looks local). Origins that the owner has named are
let in (CORS).
"""

import hashlib
import hmac
import ipaddress
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fieldlm.core.errors import ConfigError
from fieldlm.core.urls import host_name
from fieldlm.network import cors
from fieldlm.network.host_names import own_names
from fieldlm.network.json_api import ApiError, error_response

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/health", "/ready", "/v1/fieldlm/command"})
"""Answered without a key: whether it lives, whether it is ready, the page, which asks for the key itself, and commands,
which are signed."""
SHORTEST_KEY = 16
TRUSTED = "fieldlm.trusted"
"""A connection state that says: the kernel has vouched for who is on the other end."""


class Keys:
    """The keys that open the API. Only their digests are kept."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Read a file of keys, one a line, a name after it if one likes; raises ConfigError for a file that leaks."""
        try:
            mode = path.stat().st_mode
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            make = f"(umask 077; head -c 24 /dev/urandom | base64 > {path})"
            raise ConfigError(f"the keys in {path} cannot be read: {error}; to make one: {make}") from error
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigError(f"every user of this machine can open the keys in {path}; run: chmod 600 {path}")
        keys = {number: line.split()[0] for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"}
        for number, key in keys.items():
            if len(key) < SHORTEST_KEY:
                raise ConfigError(f"the key in line {number} of {path} is shorter than {SHORTEST_KEY} characters")
        if not keys:
            raise ConfigError(f"{path} holds no key; write one a line")
        return cls(list(keys.values()))

    def holds(self, key: str) -> bool:
        """Whether `key` is one of them. Takes as long for a near miss as for any other."""
        given = _digest(key)
        return sum(hmac.compare_digest(given, known) for known in self._digests) > 0


class AuthMiddleware:
    """Middleware: bearer keys; without keys, Origin and Host checks (CSRF, DNS rebinding); CORS for named origins.

    `names` are answered to beside addresses and the machine's own names; with None every name and page is answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys | None,
        names: frozenset[str] | None,
        on_status: Callable[[int], None],
        origins: cors.AllowedOrigins,
    ) -> None:
        self._app = app
        self._keys = keys
        self._names = None if names is None else own_names() | {name.lower() for name in names}
        self._on_status = on_status
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        is_guest = self._origins.allow(headers) and self._is_for_guests(scope["path"])

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._on_status(message["status"])
                if self._origins:
                    MutableHeaders(scope=message).update(cors.response_headers(headers, is_allowed=is_guest))
            await send(message)

        asks_first = is_guest and cors.is_preflight(scope, headers)
        error = self._objection(scope, headers, is_guest=is_guest, asks_first=asks_first)
        if error is not None:
            response = await error_response(Request(scope), error)
            if error.status == 401:
                response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, told)
        elif asks_first:
            await Response(status_code=204, headers=cors.preflight_headers(headers))(scope, receive, told)
        else:
            await self._app(scope, receive, told)

    def _is_for_guests(self, path: str) -> bool:
        """Whether a page of an allowed origin may use `path`: the API, and with its key what else a key opens."""
        return cors.is_api(path) or (self._keys is not None and path not in OPEN_PATHS)

    def _objection(
        self, scope: Scope, headers: dict[bytes, str], *, is_guest: bool, asks_first: bool
    ) -> ApiError | None:
        if scope.get("state", {}).get(TRUSTED):
            return None
        if self._keys is None:
            return None if self._names is None else _foreign(headers, self._names, is_guest=is_guest)
        kind, _, bearer = headers.get(b"authorization", "").partition(" ")
        key = bearer if kind.lower() == "bearer" else headers.get(b"x-api-key", "")
        if scope["path"] in OPEN_PATHS or asks_first or (key and self._keys.holds(key.strip())):
            return None
        what = "this API key is not known here" if key else "an API key is needed: Authorization: Bearer KEY"
        return ApiError(401, what, code="invalid_api_key")


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return all(ipaddress.ip_address(_bare(info[4][0])).is_loopback for info in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def _bare(address: object) -> str:
    return str(address).partition("%")[0]


def _foreign(headers: dict[bytes, str], names: frozenset[str], *, is_guest: bool) -> ApiError | None:
    host, origin = headers.get(b"host", ""), headers.get(b"origin")
    if origin is not None and not is_guest and _netloc(origin) != host.lower():
        return ApiError(403, f"a page of {origin[:100]} may not use this server", code="foreign_origin")
    name = host_name(host)
    # A browser always names the host; a probe that speaks HTTP/1.0 need not.
    if host and not _is_address(name) and name not in names:
        message = (
            f"this server does not answer to the name {(name or host)[:100]!r}; use its address, or list the name in "
            "the setting host_names"
        )
        return ApiError(403, message, code="foreign_host")
    return None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """Whether no name server can have led a browser here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
