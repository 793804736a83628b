"""Admission: which model a request names, held for it as soon as it is awake; as many inside as the queue holds."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from starlette.requests import Request

from fieldlm.api.adapters import adapter_errors
from fieldlm.core.errors import FieldlmError
from fieldlm.engines import Schedule
from fieldlm.inference.adapters import Shelf, named
from fieldlm.inference.generations import Release, Serving
from fieldlm.inference.model_pool import LATEST, ModelPool, PooledModel, PoolFullError
from fieldlm.network.json_api import ApiError

if TYPE_CHECKING:
    from fieldlm.escalation.policy import Escalation

MAX_WAITING = 64  # requests beside those that run; a longer queue only makes answers late
RETRY_AFTER_S = 2
HELD_LOOK_S = 0.02
LEFT_LOOK_S = 0.2  # how often somebody looks whether the client is still there


class Admission:
    """Lets requests in, to the model that they name."""

    def __init__(self, pool: ModelPool, shelf: Shelf | None, large: "Escalation | None") -> None:
        self.pool = pool
        self._shelf = shelf
        self._large = large
        self.inside = 0
        self._running = Counter[PooledModel]()

    async def admit(
        self, request: Request, needs: ExitStack, name: str | None, terms: Schedule, keep_s: float | None = None
    ) -> Serving:
        """Return what `name` names, awake and held by `needs`; the model stays for `keep_s` after that.

        Raises ApiError where it is not here, cannot be loaded, or is not there in time, and when the queue is full.
        """
        needs.enter_context(self._room())
        model, adapter = self.resolve(name)
        self._running[model] += 1
        needs.callback(self._running.subtract, (model,))
        leased = model.live.try_lease() or await self._wait(request, model, terms)
        serving, give_back = leased
        needs.callback(self._released, model)
        needs.callback(give_back)
        self.pool.keep(model, keep_s)
        return await self.with_adapter(serving, adapter)

    def resolve(self, name: str | None) -> tuple[PooledModel, str | None]:
        """Return the model that `name` names, and the adapter on it; raises ApiError 404 when it is not here."""
        own = self.pool.own
        if not name or (self._large is not None and self._large.is_named(name)):
            return own, None
        base, _, adapter = name.rpartition(":")
        is_own = bool(base) and self.pool.find(base) is own
        is_inside = is_own and any(each.name == adapter for each in own.live.current.bundle.manifest.task_adapters)
        shelf = self._shelf if is_own else None
        is_adapter = name.endswith(LATEST) and (is_inside or (shelf is not None and shelf.has(adapter)))
        if (found := self.pool.find(name)) is not None and not is_adapter:
            return found, None
        if shelf is not None or is_inside:
            return own, adapter
        what = f"the model {name!r} is not here; {self.pool.listed()}"
        raise ApiError(404, what, param="model", code="model_not_found")

    async def with_adapter(self, serving: Serving, adapter: str | None) -> Serving:
        """Return `serving` with the adapter of that name switched on: one that was loaded, or one of its bundle's."""
        if adapter is None:
            return serving
        is_loaded = self._shelf is not None and self._shelf.has(adapter)
        if not is_loaded and (inside := named(serving, adapter)) is not None:
            return inside
        if self._shelf is None:  # an update took it away while the request waited
            what = f"the adapter {adapter!r} is not in {serving.bundle.generation}, which answers now"
            raise ApiError(404, what, param="model", code="model_not_found")
        with adapter_errors("model"):
            return await asyncio.to_thread(self._shelf.find, serving, adapter)

    def running(self, model: PooledModel) -> int:
        """Return how many requests for `model` are inside, those that wait among them."""
        return self._running[model]

    def is_own(self, serving: Serving) -> bool:
        """Whether `serving` is of the device's own model, which updates, adapters and the large model concern."""
        return not serving.is_beside

    def _released(self, model: PooledModel) -> None:
        if model.is_leaving:
            self.pool.nudge()

    async def _wait(self, request: Request, model: PooledModel, terms: Schedule) -> tuple[Serving, Release]:
        """Wait until `model` is awake, but not beyond what the request allows, or for a client that has left."""
        limits_s = (terms.deadline_s, terms.max_queue_s)
        end_s = time.monotonic() + min((limit for limit in limits_s if limit is not None), default=math.inf)
        if self.pool.is_alone:
            return await self._wait_for_update(model, end_s)
        ticket = self.pool.ask(model)
        waiting = asyncio.wrap_future(ticket)
        try:
            while not waiting.done():
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    what = f"{model.name} is {model.state} and not there in the time that this request has"
                    raise ApiError(503, what, param="model", code="model_loading", retry_after_s=RETRY_AFTER_S)
                await asyncio.wait([waiting], timeout=min(left_s, LEFT_LOOK_S))
                if not waiting.done() and await request.is_disconnected():
                    raise ApiError(503, "the client left before its model was loaded", code="cancelled")
            return waiting.result()
        except PoolFullError as error:
            raise ApiError(503, str(error), param="model", code="insufficient_memory", retry_after_s=60) from error
        except FieldlmError as error:
            raise ApiError(503, f"{model.name} cannot be loaded: {error}", param="model", code="load_failed") from error
        finally:
            if not waiting.done() and not ticket.cancel():
                ticket.add_done_callback(lambda ended: ended.exception() or ended.result()[1]())

    async def _wait_for_update(self, model: PooledModel, end_s: float) -> tuple[Serving, Release]:
        """Wait while one generation takes another's place."""
        while (leased := model.live.try_lease()) is None:
            if time.monotonic() > end_s:
                message = "a generation is being replaced, and this request does not wait so long"
                raise ApiError(503, message, code="replacing", retry_after_s=RETRY_AFTER_S)
            await asyncio.sleep(HELD_LOOK_S)
        return leased

    @contextmanager
    def _room(self) -> Generator[None]:
        limit = sum(model.live.parallel for model in self.pool.models) + MAX_WAITING
        if self.inside >= limit:
            raise ApiError(
                429, f"{limit} requests are running or waiting", code="queue_full", retry_after_s=RETRY_AFTER_S
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
