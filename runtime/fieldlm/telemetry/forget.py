"""Erasure: how a customer is forgotten, at `POST /v1/fieldlm/forget`."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.network.json_api import ApiError, as_json, read_body
from fieldlm.telemetry.recorder import Recorder


class _Forget(msgspec.Struct, frozen=True):
    """POST /v1/fieldlm/forget: whose records and words are to go."""

    session: str


def privacy_routes(recorder: Recorder) -> list[Route]:
    """Return `POST /v1/fieldlm/forget`: {"session": "…"} is deleted here at once, and in the store when it hears."""

    async def forget(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await read_body(request), type=_Forget)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ApiError(400, f'want {{"session": "…"}}: {error}', code="invalid_value") from error
        if not asked.session:
            raise ApiError(400, "session is empty", param="session", code="invalid_value")
        recorder.forget(asked.session)
        return as_json({"object": "forget", "mode": recorder.terms.mode, "policy": recorder.terms.version})

    return [Route("/v1/fieldlm/forget", forget, methods=["POST"])]
