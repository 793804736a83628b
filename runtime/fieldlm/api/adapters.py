"""Adapters over HTTP: load one from its folder beside what runs, drop it, and OpenAI's errors for what goes wrong."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.api.chat_request import parse
from fieldlm.core.errors import ConflictError, InputError, NotFoundError
from fieldlm.inference.adapters import Chosen, Shelf
from fieldlm.network.json_api import ApiError, as_json, read_body


class AdapterRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/adapters: load the bundle in the folder of that name."""

    name: str


def adapter_routes(shelf: Shelf | None, described: Callable[[Chosen], dict[str, Any]]) -> list[Route]:
    """Return the routes that load and drop the adapters of `shelf`; `described` is how a model is listed."""

    def adapters() -> Shelf:
        if shelf is None:
            raise ApiError(404, "this server has no folder of adapters", code="not_found")
        return shelf

    async def load(request: Request) -> Response:
        asked = parse(await read_body(request), AdapterRequest)
        with adapter_errors("name"):
            chosen = await asyncio.to_thread(adapters().load, asked.name)
        return as_json(described(chosen))

    async def drop(request: Request) -> Response:
        name = request.path_params["name"]
        with adapter_errors("name"):
            await asyncio.to_thread(adapters().drop, name)
        return as_json({"id": name, "object": "adapter", "deleted": True})

    return [Route("/v1/adapters", load, methods=["POST"]), Route("/v1/adapters/{name}", drop, methods=["DELETE"])]


@contextmanager
def adapter_errors(param: str) -> Generator[None]:
    """Say in OpenAI's shape what is wrong with the adapter that `param` names."""
    try:
        yield
    except NotFoundError as error:
        raise ApiError(404, str(error), param=param, code="model_not_found") from error
    except ConflictError as error:
        raise ApiError(409, str(error), param=param, code="invalid_value") from error
    except InputError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from error
