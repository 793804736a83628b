"""What the page of a kiosk asks for beside the usual: its words, colours and logo, and whether a PIN is right."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.core.pages import words
from fieldlm.formats.kiosk import Kiosk
from fieldlm.network.fair_pool import network_of
from fieldlm.network.json_api import ApiError, as_json, read_body
from fieldlm.network.pin import PinGate

LOGO_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""An SVG may hold scripts; opened by itself it is a page, in which they must not run."""


class _Try(msgspec.Struct, frozen=True):
    pin: str


def kiosk_routes(kiosk: Kiosk | None, fixed: Callable[[bytes, str], Any], headers: dict[str, str]) -> list[Route]:
    """Return /kiosk.js and /kiosk.css, which are empty without a kiosk file, its logo, and the gate of its PIN.

    `fixed` makes an endpoint of bytes that never change; `headers` are those of every page.
    """
    routes = [
        Route("/kiosk.js", fixed(_script(kiosk), "text/javascript")),
        Route("/kiosk.css", fixed(kiosk.stylesheet().encode() if kiosk else b"", "text/css")),
    ]
    if kiosk and kiosk.logo:
        kind, content = kiosk.logo
        sealed = {**headers, "content-security-policy": LOGO_POLICY}

        async def logo(_: Request) -> Response:
            return Response(content, media_type=kind, headers=sealed)

        routes.append(Route("/kiosk-logo", logo))
    if kiosk and kiosk.pin:
        routes.append(Route("/v1/fieldlm/kiosk/unlock", _unlock(PinGate(kiosk.pin)), methods=["POST"]))
    return routes


def _script(kiosk: Kiosk | None) -> bytes:
    document: dict[str, Any] | None = None
    if kiosk:
        document = {
            "title": kiosk.title,
            "language": kiosk.language,
            "idle": kiosk.idle_s,
            "logo": kiosk.logo is not None,
            "pin": bool(kiosk.pin),
            "words": kiosk.languages,
        }
    return b"const WORDS = %b;\nconst KIOSK = %b;\n" % (msgspec.json.encode(words()), msgspec.json.encode(document))


def _unlock(gate: PinGate) -> Callable[[Request], Any]:
    async def unlock(request: Request) -> Response:
        try:
            given = msgspec.json.decode(await read_body(request), type=_Try).pin
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ApiError(400, f'want {{"pin": "…"}}: {error}', code="invalid_json") from error
        caller = network_of(request.client.host) if request.client else ""
        # A thread computes the digest: it takes as long as several words of an answer.
        wait_s = await run_in_threadpool(gate.try_open, given, caller)
        if wait_s is None:
            return as_json({"unlocked": True})
        if wait_s:
            after_s = math.ceil(wait_s)
            raise ApiError(429, f"too many wrong PINs; try again in {after_s} s", code="wait", retry_after_s=after_s)
        raise ApiError(403, "that is not the PIN", code="wrong_pin")

    return unlock
