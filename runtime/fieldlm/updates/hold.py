"""Update hold: a device in use says so, and an update's switch waits: for a while, not for ever.

A kiosk tells with each touch that somebody stands before it (`PUT /v1/fieldlm/busy {"for_s": 60}`) and when they have
gone (`DELETE`). What it says wears off by itself, so that a page that crashed holds nothing off.
"""

import threading
import time
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.network.json_api import ApiError, as_json, read_body

MOST_S = 600.0  # for which one word counts
DEADLINE_S = 3600.0  # after which an update switches whoever stands there; running answers still end where they began
LOOK_S = 0.2


class HoldRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PUT /v1/fieldlm/busy."""

    for_s: float


class UpdateHold:
    """Whether the device is in use. Safe from any thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._until_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds for which it still counts as in use."""
        return max(0.0, self._until_s - self._now_s())

    def extend(self, for_s: float) -> None:
        self._until_s = self._now_s() + for_s

    def wait(self, deadline_s: float, stop: threading.Event) -> bool:
        """Wait until nobody uses the device, `deadline_s` seconds at most; False when `stop` came first."""
        end_s = self._now_s() + deadline_s
        while self.left_s and self._now_s() < end_s:
            if stop.wait(LOOK_S):
                return False
        return not stop.is_set()


def busy_routes(busy: UpdateHold) -> list[Route]:
    """Return `PUT`, `DELETE` and `GET /v1/fieldlm/busy`."""

    def answer() -> Response:
        return as_json({"busy_for_s": round(busy.left_s, 1)})

    async def put(request: Request) -> Response:
        try:
            word = msgspec.json.decode(await read_body(request), type=HoldRequest)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ApiError(400, f'want {{"for_s": SECONDS}}: {error}', code="invalid_value") from error
        if not 0 < word.for_s <= MOST_S:
            raise ApiError(400, f"for_s is {word.for_s:g}; want more than 0 and at most {MOST_S:g}", param="for_s")
        busy.extend(word.for_s)
        return answer()

    async def delete(request: Request) -> Response:
        del request
        busy.extend(0)
        return answer()

    async def look(request: Request) -> Response:
        del request
        return answer()

    path = "/v1/fieldlm/busy"
    return [Route(path, put, methods=["PUT"]), Route(path, delete, methods=["DELETE"]), Route(path, look)]
