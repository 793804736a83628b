"""How models are listed: OpenAI's /v1/models, with what is loaded of each, how it is held and when it sleeps."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.api.metrics import Reading
from fieldlm.api.models.admission import Admission
from fieldlm.core.errors import EngineError
from fieldlm.formats.bundle import Manifest
from fieldlm.inference.adapters import Shelf
from fieldlm.inference.generations import Serving
from fieldlm.inference.model_pool import ModelPool, PooledModel
from fieldlm.network.json_api import as_json

if TYPE_CHECKING:
    from fieldlm.escalation.policy import Escalation


class ModelList:
    """What can be asked for by name."""

    def __init__(self, admission: Admission, shelf: Shelf | None, large: "Escalation | None") -> None:
        self._admission = admission
        self._pool = admission.pool
        self._shelf = shelf
        self._large = large
        self._started_wall_s = int(time.time())

    def routes(self) -> list[Route]:
        return [Route("/v1/models", self._models), Route("/v1/models/{model:path}", self._model)]

    def served(self) -> list[tuple[Serving, PooledModel]]:
        """Return every model, awake or not, and the adapters beside the device's own, each with whose it is."""
        own = self._pool.own
        adapters = [(one, own) for one in (self._shelf.all() if self._shelf is not None else [])]
        return [*((model.live.current, model) for model in self._pool.models), *adapters]

    async def named(self, name: str) -> tuple[Serving, PooledModel]:
        """Return what `name` names, awake or not; raises ApiError 404 when that is not here."""
        model, adapter = self._admission.resolve(name)
        with model.live.lease() as serving:
            return await self._admission.with_adapter(serving, adapter), model

    def expires_s(self, model: PooledModel) -> float | None:
        """Return in how many seconds `model` will sleep if nobody asks for it; None for never."""
        return self._pool.expires_in_s(model)

    async def _models(self, _: Request) -> Response:
        data = [self.described(one, model) for one, model in self.served()]
        if self._large is not None:
            data.append(self._large.described(self._started_wall_s))
        return as_json({"object": "list", "data": data})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if self._large is not None and self._large.is_named(name):
            return as_json(self._large.described(self._started_wall_s))
        return as_json(self.described(*await self.named(name)))

    def described(self, serving: Serving, model: PooledModel | None = None) -> dict[str, Any]:
        """Return one entry of the list; of an adapter without its `model`, what it is itself."""
        model = model or self._pool.own
        manifest = serving.bundle.manifest
        own = {
            "generation": serving.bundle.generation,
            "engine": manifest.engine,
            "quant": manifest.recipe.quant,
            "context": serving.engine.context,
            "parallel": model.live.parallel,
            "adapter": serving.adapter is not None,
            **adapters_of(manifest),
            "licence": manifest.model.licence,
            "proved": manifest.is_proved,
            "memory_mb": {name: round(size, 1) for name, size in memory_mb(serving).items()},
            "requests": self._admission.running(model),
            **self._pool.described(model),
        }
        name, created = serving.called, self._started_wall_s
        return {"id": name, "object": "model", "created": created, "owned_by": "fieldlm", "fieldlm": own}


def adapters_of(manifest: Manifest) -> dict[str, Any]:
    """Return the adapters among which a request's task chooses, with the ids of their tasks; nothing unless several."""
    several = manifest.task_adapters
    return {"adapters": {each.name: list(each.tasks) for each in several}} if several else {}


def memory_mb(serving: Serving) -> dict[str, float]:
    """Return what the engine holds; nothing where it sleeps, or falls asleep just now."""
    try:
        return serving.engine.memory_mb()
    except EngineError:
        return {}


def pool_readings(pool: ModelPool) -> Iterable[Reading]:
    """Yield how the models of `pool` fare, for Prometheus."""
    for model in pool.models:
        label = {"model": model.name}
        yield "fieldlm_model_awake", "1 while the model is loaded.", label, model.is_awake
        yield "fieldlm_model_needs_bytes", "What the model is foreseen to take, awake.", label, model.need_mb * 1e6
        yield "fieldlm_model_waiting", "Requests that wait for the model to be loaded.", label, pool.waiting(model)
        yield "fieldlm_model_wakes_total", "How often the model was loaded.", label, model.wakes
