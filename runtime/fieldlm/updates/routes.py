"""The updater over HTTP: `/v1/fieldlm/update`, for `fieldlm update` and the dashboard."""

from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.core.urls import shown
from fieldlm.network.json_api import ApiError, read_body
from fieldlm.updates.updater import Updater


def update_routes(updater: Updater[Any]) -> list[Route]:
    """Return `POST /v1/fieldlm/update`, which starts an update, and `GET`, which says how it goes.

    The body may name a folder on the device that holds a repository, a USB stick's say: `{"repository": "/media/usb"}`.
    """

    async def look(request: Request) -> Response:
        del request
        return Response(msgspec.json.encode(updater.state), media_type="application/json")

    async def ask(request: Request) -> Response:
        before = updater.state
        updater.start(repository=_folder(await read_body(request)))
        return Response(msgspec.json.encode(before), status_code=202, media_type="application/json")

    return [
        Route("/v1/fieldlm/update", look, methods=["GET"]),
        Route("/v1/fieldlm/update", ask, methods=["POST"]),
    ]


class _Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/fieldlm/update: a folder on this machine to update from, "" for the repository that was set."""

    repository: str = ""


def _folder(body: bytes) -> str:
    """Return the folder that the body of a request names; "" for none. No address: nobody sends a device elsewhere."""
    try:
        wish = msgspec.json.decode(body or b"{}", type=_Wish)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ApiError(400, f"the body cannot be read: {error}", code="invalid_value") from error
    if wish.repository and not Path(wish.repository).is_dir():
        raise ApiError(400, f"{shown(wish.repository)[:200]!r} is no folder on this device", param="repository")
    return wish.repository
