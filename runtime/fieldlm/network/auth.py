"""Authentication: bearer API keys; without keys, checks of Origin and Host (CSRF, DNS rebinding).

A server without keys still refuses what a foreign web page sends through a local browser: a request whose `Origin` is
another site, and one whose `Host` is not a name of this machine (a page that had its own name resolve to this device:
whoever runs the network can do so with any name, also with one that looks local). Origins that the owner has named are
let in (CORS).
"""

import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fieldlm.core.urls import host_name
from fieldlm.network import cors
from fieldlm.network.api_keys import Keys, digest_of
from fieldlm.network.host_names import own_names
from fieldlm.network.json_api import ApiError, error_response

OPEN_PATHS = frozenset(
    {
        *("/", "/page.css", "/page.js", "/vendor.js", "/kiosk.js", "/kiosk.css", "/kiosk-logo"),
        *("/health", "/ready", "/v1/fieldlm/command"),
    }
)
"""Answered without a key: whether it lives, whether it is ready, the page, which asks for the key itself, and commands,
which are signed."""
TRUSTED = "fieldlm.trusted"
WHOSE = "fieldlm.whose"
"""In a request's state: the digest of the key that it came with; absent where none is asked for."""
"""A connection state that says: the kernel has vouched for who is on the other end."""


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
        if key and self._keys.holds(key.strip()):
            scope.setdefault("state", {})[WHOSE] = digest_of(key.strip())
            return None
        if scope["path"] in OPEN_PATHS or asks_first:
            return None
        what = "this API key is not known here" if key else "an API key is needed: Authorization: Bearer KEY"
        return ApiError(401, what, code="invalid_api_key")


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
