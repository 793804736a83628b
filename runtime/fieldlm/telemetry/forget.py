"""Right to erasure: how a customer is forgotten; and what the settings say of privacy."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.core.config import Config
from fieldlm.network.json_api import ApiError, as_json, read_body
from fieldlm.network.mqtt import Identity
from fieldlm.telemetry.effective_policy import EffectivePolicy
from fieldlm.telemetry.recorder import Recorder


class _Forget(msgspec.Struct, frozen=True):
    session: str


def terms_of(config: Config) -> EffectivePolicy:
    """Return what this device tells: the setting `telemetry` is the ceiling, the kept policy may lower it."""
    path = config.state / "policy.json"
    return EffectivePolicy(config.telemetry, fleet=config.fleet, path=path, signer=config.policy_signer)


def identity_of(config: Config) -> Identity:
    return Identity(ca=config.broker_ca, cert=config.broker_cert, key=config.broker_key)


def privacy_routes(recorder: Recorder) -> list[Route]:
    """Return `POST /v1/fieldlm/forget`: {"session": "…"} is deleted here at once, and in the store when it hears."""

    async def forget(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await read_body(request), type=_Forget)
        except msgspec.MsgspecError as error:
            raise ApiError(400, f'want {{"session": "…"}}: {error}', code="invalid_value") from error
        if not asked.session:
            raise ApiError(400, "session is empty", param="session", code="invalid_value")
        recorder.forget(asked.session)
        return as_json({"object": "forget", "mode": recorder.terms.mode, "policy": recorder.terms.version})

    return [Route("/v1/fieldlm/forget", forget, methods=["POST"])]
