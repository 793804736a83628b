"""Dashboard and status: the page at `/`, the figures it draws, and Prometheus's /metrics."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.api.kiosk.endpoints import kiosk_routes
from fieldlm.api.metrics import (
    CONTENT_TYPE,
    Metrics,
    Reading,
    energy_readings,
    governor_readings,
    ledger_readings,
    process_readings,
)
from fieldlm.api.models.listing import adapters_of, memory_mb, pool_readings
from fieldlm.core.pages import stylesheet
from fieldlm.formats.kiosk import Kiosk
from fieldlm.hardware.energy import EnergyMeter
from fieldlm.hardware.governor import GOVERNOR
from fieldlm.hardware.sensors import rss_mb, temperature_c
from fieldlm.inference.model_pool import ModelPool
from fieldlm.network.json_api import as_json

if TYPE_CHECKING:
    from fieldlm.escalation.policy import Escalation

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # Text becomes markup through DOMPurify or not at all.
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
SCRIPTS = ("words.js", "figures.js", "conversation.js", "markdown.js", "attendant.js", "page.js")
VENDORED = ("vendor/purify.min.js", "vendor/marked.umd.js")
"""Libraries of others: versions, licences and where they are from are in vendor/README.md."""

Leaves = Literal["nothing", "figures", "text"]
"""What goes from the device to whoever runs its fleet: `text` is that of people who agreed."""


class Panel:
    """The figures of one server, and the routes that show them."""

    def __init__(
        self,
        pool: ModelPool,
        ready: Callable[[], str | None],
        crashes: Callable[[], Mapping[str, int]] = dict,
        leaves: Callable[[], Leaves] | None = None,
        large: "Escalation | None" = None,
        *,
        energy: EnergyMeter | None = None,
        kiosk: Kiosk | None = None,
        more: Callable[[], Iterable[Reading]] = tuple,
    ) -> None:
        self.metrics = Metrics(self._readings)
        self._pool = pool
        self._live = pool.own.live
        self._ready = ready
        self._crashes = crashes
        self._leaves = leaves or (lambda: "nothing")
        self._large = large
        self._energy = energy
        self._kiosk = kiosk
        self._more = more
        self._inside: Callable[[], int] = lambda: 0

    def count_inside(self, inside: Callable[[], int]) -> None:
        """Say who counts the requests that run or wait."""
        self._inside = inside

    def routes(self) -> list[Route]:
        return [
            Route("/", _fixed(_static("page.html"), "text/html")),
            Route("/page.css", _fixed(stylesheet(), "text/css")),
            Route("/page.js", _fixed(_static(*SCRIPTS), "text/javascript")),
            *kiosk_routes(self._kiosk, _fixed, HEADERS),
            Route("/vendor.js", _fixed(_static(*VENDORED), "text/javascript")),
            Route("/metrics", self._metrics),
            Route("/status", self._status),
        ]

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _status(self, _: Request) -> Response:
        with self._live.lease() as serving:
            manifest = serving.bundle.manifest
            document: dict[str, Any] = {
                "model": serving.called,
                "generation": serving.bundle.generation,
                "engine": manifest.engine,
                "quant": manifest.recipe.quant,
                "adapter": serving.adapter is not None,
                **adapters_of(manifest),
                "licence": manifest.model.licence,
                "proved": manifest.is_proved,
                "context": serving.engine.context,
                "memory_mb": {"process": rss_mb(), **memory_mb(serving)},
            }
        reason = self._ready()
        running, waiting = self._queue()
        document |= {
            "ready": reason is None,
            "status": reason or "ready",
            "leaves": self._leaves(),
            "large": self._large.status() if self._large else None,
            "temperature_c": temperature_c(),
            "running": running,
            "waiting": waiting,
            "parallel": self._live.parallel,
            "recent": self.metrics.recent(),
            "models": self._pool.status()["models"],
        }
        return as_json(document)

    def _queue(self) -> tuple[int, int]:
        """Return requests that run and that wait: as many run at a time as the engine has sequences."""
        inside = self._inside()
        most = sum(model.live.parallel for model in self._pool.models if model.is_awake)
        return min(inside, most), max(0, inside - most)

    def _readings(self) -> Iterable[Reading]:
        yield from process_readings()
        if self._energy:
            yield from energy_readings(self._energy)
        if self._large:
            yield from ledger_readings(self._large)
        yield from governor_readings(GOVERNOR)
        running, waiting = self._queue()
        for task, count in self._crashes().items():
            yield "fieldlm_task_crashes_total", "Crashes of background tasks since the start.", {"task": task}, count
        yield "fieldlm_requests_running", "Requests that are being answered.", {}, running
        yield "fieldlm_requests_waiting", "Requests that wait for a turn.", {}, waiting
        yield "fieldlm_ready", "1 when the system prompt is warm and a first answer came.", {}, self._ready() is None
        yield from pool_readings(self._pool)
        yield from self._more()
        with self._live.lease() as serving:
            for part, size in memory_mb(serving).items():
                yield "fieldlm_engine_memory_bytes", "What the engine holds.", {"part": part}, size * 1e6
            manifest = serving.bundle.manifest
            labels = {
                "generation": serving.bundle.generation,
                "model": serving.called,
                "engine": manifest.engine,
                "quant": manifest.recipe.quant,
            }
            yield "fieldlm_generation_info", "The generation that answers.", labels, 1


def _static(*names: str) -> bytes:
    folder = files("fieldlm.api").joinpath("static")
    return b"\n".join(folder.joinpath(*name.split("/")).read_bytes() for name in names)


def _fixed(content: bytes, media_type: str) -> Callable[[Request], Any]:
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return answer
