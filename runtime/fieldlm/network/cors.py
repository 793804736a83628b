"""CORS (cross-origin resource sharing): pages and apps of elsewhere that may use the API, and what browsers are told.

An origin is let in because its owner named it, letter by letter. Without keys it gets the endpoints of the API and none
that administer the device; with keys it gets what its key opens. To a foreign page nothing is said.
"""

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

ANY = "*"
"""The name for every origin; only where keys are asked for, because then a page alone can do nothing."""
API_PATHS = (
    "/health",
    "/ready",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/models",
    "/v1/feedback",
    "/v1/messages",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/apply-template",
    *(f"/api/{name}" for name in ("chat", "generate", "embed", "embeddings", "tags", "show", "ps", "version")),
)
"""What an origin may use on a server without keys, and what lies below."""
METHODS = "GET, POST, PUT, DELETE"
EXPOSED = "Retry-After, X-Should-Retry, WWW-Authenticate"
KEPT_S = 600  # for which a browser need not ask again
_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,4096}")

Headers = Mapping[bytes, str]


class AllowedOrigins:
    """The origins that may use a server: `scheme://host[:port]` in small letters, or `ANY`."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def __bool__(self) -> bool:
        return bool(self._origins)

    def allow(self, headers: Headers) -> bool:
        """Whether a request comes from one of them; one without an origin comes from no page."""
        origin = headers.get(b"origin")
        return origin is not None and (ANY in self._origins or origin.lower() in self._origins)


def is_api(path: str) -> bool:
    """Whether `path` belongs to the API, and not to the device."""
    return any(path == known or path.startswith(f"{known}/") for known in API_PATHS)


def is_preflight(scope: "Scope", headers: Headers) -> bool:
    """Whether a browser asks before it sends what the page wants; its question holds no key."""
    return scope["method"] == "OPTIONS" and b"access-control-request-method" in headers


def preflight_headers(headers: Headers) -> dict[str, str]:
    """Return what a browser is told that asks for an origin which is let in."""
    told = {"access-control-allow-methods": METHODS, "access-control-max-age": str(KEPT_S)}
    wanted = headers.get(b"access-control-request-headers", "")
    if _NAMES.fullmatch(wanted):
        told["access-control-allow-headers"] = wanted
    if headers.get(b"access-control-request-private-network", "").lower() == "true":
        told["access-control-allow-private-network"] = "true"
    return told


def response_headers(headers: Headers, *, is_allowed: bool) -> dict[str, str]:
    """Return what every answer says; `Vary` also to others, so that no cache hands one page's answer to another."""
    if not is_allowed:
        return {"vary": "Origin"}
    return {
        "access-control-allow-origin": headers[b"origin"],
        "access-control-expose-headers": EXPOSED,
        "vary": "Origin",
    }
