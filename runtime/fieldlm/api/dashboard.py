"""Dashboard and status: the page at `/`, the figures it draws, and Prometheus's /metrics."""

from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.api.metrics import CONTENT_TYPE, Metrics, Reading, process_readings
from fieldlm.core.pages import stylesheet
from fieldlm.hardware.sensors import rss_mb, temperature_c
from fieldlm.inference.generations import Generations
from fieldlm.network.json_api import as_json

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


Leaves = Literal["nothing", "figures", "text"]
"""What goes from the device to whoever runs its fleet: `text` is that of people who agreed."""


class Panel:
    """The figures of one server, and the routes that show them."""

    def __init__(
        self,
        live: Generations,
        ready: Callable[[], str | None],
        crashes: Callable[[], Mapping[str, int]] = dict,
        leaves: Callable[[], Leaves] | None = None,
    ) -> None:
        self.metrics = Metrics(self._readings)
        self._live = live
        self._ready = ready
        self._crashes = crashes
        self._leaves = leaves or (lambda: "nothing")
        self._inside: Callable[[], int] = lambda: 0

    def count_inside(self, inside: Callable[[], int]) -> None:
        """Say who counts the requests that run or wait."""
        self._inside = inside

    def routes(self) -> list[Route]:
        return [
            Route("/", _fixed(_static("page.html"), "text/html")),
            Route("/page.css", _fixed(stylesheet(), "text/css")),
            Route("/page.js", _fixed(_static("page.js"), "text/javascript")),
            Route("/metrics", self._metrics),
            Route("/status", self._status),
        ]

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _status(self, _: Request) -> Response:
        with self._live.lease() as serving:
            manifest = serving.bundle.manifest
            document: dict[str, Any] = {
                "model": manifest.model.name,
                "generation": serving.bundle.generation,
                "engine": manifest.engine,
                "quant": manifest.recipe.quant,
                "adapter": serving.adapter is not None,
                "licence": manifest.model.licence,
                "proved": manifest.is_proved,
                "context": serving.engine.context,
                "memory_mb": {"process": rss_mb(), **serving.engine.memory_mb()},
            }
        reason = self._ready()
        running, waiting = self._queue()
        document |= {
            "ready": reason is None,
            "status": reason or "ready",
            "leaves": self._leaves(),
            "temperature_c": temperature_c(),
            "running": running,
            "waiting": waiting,
            "parallel": self._live.parallel,
            "recent": self.metrics.recent(),
        }
        return as_json(document)

    def _queue(self) -> tuple[int, int]:
        """Return requests that run and that wait: as many run at a time as the engine has sequences."""
        inside = self._inside()
        return min(inside, self._live.parallel), max(0, inside - self._live.parallel)

    def _readings(self) -> Iterable[Reading]:
        yield from process_readings()
        running, waiting = self._queue()
        for task, count in self._crashes().items():
            yield "fieldlm_task_crashes_total", "Crashes of background tasks since the start.", {"task": task}, count
        yield "fieldlm_requests_running", "Requests that are being answered.", {}, running
        yield "fieldlm_requests_waiting", "Requests that wait for a turn.", {}, waiting
        yield "fieldlm_ready", "1 when the system prompt is warm and a first answer came.", {}, self._ready() is None
        with self._live.lease() as serving:
            for part, size in serving.engine.memory_mb().items():
                yield "fieldlm_engine_memory_bytes", "What the engine holds.", {"part": part}, size * 1e6
            manifest = serving.bundle.manifest
            labels = {
                "generation": serving.bundle.generation,
                "model": manifest.model.name,
                "engine": manifest.engine,
                "quant": manifest.recipe.quant,
            }
            yield "fieldlm_generation_info", "The generation that answers.", labels, 1


def _static(name: str) -> bytes:
    return files("fieldlm.api").joinpath("static", name).read_bytes()


def _fixed(content: bytes, media_type: str) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return answer
