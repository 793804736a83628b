"""Prometheus metrics: counted when an answer has ended, never while one is computed."""

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fieldlm.api.chat_request import Exchange
from fieldlm.engines.answer_stream import chosen_per_s
from fieldlm.hardware.energy import EnergyMeter
from fieldlm.hardware.governor import Governor
from fieldlm.hardware.limits import LIVE
from fieldlm.hardware.sensors import peak_rss_mb, rss_mb, temperature_c

if TYPE_CHECKING:
    from fieldlm.escalation.policy import Escalation

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
OTHER = "other"
CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
RECENT = 60  # answers that the page's charts show
MOST_LABELS = 32
"""Generations, or adapters, that are told apart. A label must not grow without end; what comes later is one label."""

Reading = tuple[str, str, dict[str, str], float]
"""A gauge's name, or a counter's that ends with _total, what it says, its labels and its value."""


class Metrics:
    """Counters and histograms of ended answers, and gauges that are read when somebody asks."""

    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        here = self._registry = CollectorRegistry()
        here.register(_Gauges(readings))
        self._generations, self._adapter_names = set[str](), set[str]()
        self._ttft = Histogram(
            "fieldlm_ttft_seconds", "From the request to its first token.", buckets=SECONDS, registry=here
        )
        self._queue = Histogram("fieldlm_queue_seconds", "Waiting for a turn.", buckets=SECONDS, registry=here)
        self._token = Histogram(
            "fieldlm_inter_token_seconds",
            "Time between two tokens that were chosen, not forced by a form: the mean of each answer.",
            buckets=TOKEN_SECONDS,
            registry=here,
        )
        self._confidence = Histogram(
            "fieldlm_confidence",
            "How likely answers are right, where their generation was calibrated.",
            buckets=CONFIDENCES,
            registry=here,
        )
        self._tokens = Counter(
            "fieldlm_tokens", "Tokens read, reused, written, drafted and accepted.", ["kind"], registry=here
        )
        self._requests = Counter("fieldlm_requests", "Ended answers.", ["outcome", "generation"], registry=here)
        self._answers = Counter(
            "fieldlm_answers",
            "Ended answers by who gave them (small, large, classifier), and why it was not the small model.",
            ["by", "why"],
            registry=here,
        )
        self._adapters = Counter(
            "fieldlm_adapter_answers",
            "Ended answers by the adapter that gave them, where a bundle has several.",
            ["adapter"],
            registry=here,
        )
        self._statuses = Counter("fieldlm_http_responses", "Responses by HTTP status.", ["status"], registry=here)
        self._recent: deque[dict[str, float | None]] = deque(maxlen=RECENT)

    def exchange(self, exchange: Exchange) -> None:
        """Count one answer that has ended."""
        timings = exchange.timings
        self._requests.labels(exchange.outcome, _label(exchange.generation, self._generations)).inc()
        if exchange.adapter:
            self._adapters.labels(_label(exchange.adapter, self._adapter_names)).inc()
        is_large = exchange.verdict is not None and exchange.verdict.by == "large"
        by, why = (exchange.verdict.by, exchange.verdict.why) if exchange.verdict else ("small", "")
        self._answers.labels(exchange.answered_by or by, why).inc()
        if exchange.ttft_s is not None:
            self._ttft.observe(exchange.ttft_s)
        if is_large:  # its times are the network's, and say nothing of this device
            for kind, count in (("prompt", timings.prompt_tokens), ("completion", timings.completion_tokens)):
                self._tokens.labels(f"large_{kind}").inc(count)
            return
        self._queue.observe(timings.queue_s)
        if (speed := chosen_per_s(timings)) is not None:
            self._token.observe(1 / speed)
        if exchange.confidence is not None:
            self._confidence.observe(exchange.confidence)
        for kind, count in (
            ("prompt", timings.prompt_tokens),
            ("cached", timings.cached_tokens),
            ("completion", timings.completion_tokens),
            ("drafted", timings.drafted_tokens),
            ("accepted", timings.accepted_tokens),
        ):
            self._tokens.labels(kind).inc(count)
        self._recent.append(_point(exchange))

    def status(self, status: int) -> None:
        """Count one HTTP response."""
        self._statuses.labels(str(status)).inc()

    def recent(self) -> list[dict[str, float | None]]:
        """Return time, speed and wait of the last answers, oldest first."""
        return list(self._recent)

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        return generate_latest(self._registry)


def _label(name: str, known: set[str]) -> str:
    """Return `name`, and remember it; OTHER where as many as a label may have are known already."""
    if len(known) < MOST_LABELS:
        known.add(name)
    return name if name in known else OTHER


def _point(exchange: Exchange) -> dict[str, float | None]:
    timings = exchange.timings
    speed = chosen_per_s(timings)
    return {
        "ended_wall_s": round(exchange.started_wall_s + exchange.duration_s, 3),
        "tokens": timings.completion_tokens,
        "tokens_per_s": None if speed is None else round(speed, 2),
        "ttft_ms": round(1000 * exchange.ttft_s, 2) if exchange.ttft_s is not None else None,
    }


class _Gauges(Collector):
    """Reads what is true now when Prometheus asks."""

    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        self._readings = readings

    def describe(self) -> Iterable[Metric]:
        """Nothing is read while the registry is put together."""
        return ()

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, says, labels, value in self._readings():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = families.setdefault(name, kind(name, says, labels=list(labels)))
            family.add_metric(list(labels.values()), value)
        return families.values()


def process_readings(root: Path = LIVE) -> Iterable[Reading]:
    """Yield the process's memory and the temperature of the machine under `root`, where it has a sensor."""
    yield "fieldlm_process_resident_bytes", "Memory this process holds.", {}, rss_mb() * 1e6
    yield "fieldlm_process_peak_resident_bytes", "The most it ever held.", {}, peak_rss_mb() * 1e6
    heat = temperature_c(root)
    if heat is not None:
        yield "fieldlm_temperature_celsius", "The hottest sensor.", {}, heat


def energy_readings(meter: EnergyMeter) -> Iterable[Reading]:
    """Yield the energy that was measured; nothing where there is no sensor that works, since nothing is estimated."""
    found = meter.total()
    if found is None:
        return
    labels = {"source": found.facts.source, "covers": found.facts.covers}
    yield "fieldlm_energy_joules_total", "Energy of what the source covers, idle share included.", labels, found.joules
    yield "fieldlm_energy_measured_seconds_total", "For how long it was measured.", labels, found.measured_s


def ledger_readings(escalation: "Escalation") -> Iterable[Reading]:
    """Yield what the ledger has counted since the start, by which of the two models; tasks are in the ledger alone."""
    says = {
        "calls": "Answers and attempts.",
        "tokens": "Tokens read and written.",
        "cost": "What the large model cost.",
        "saved": "What the small model's answers would have cost of the large one.",
        "joules": "Energy of this machine while the answers were in the making.",
        "liked": "Answers that somebody liked.",
        "disliked": "Answers that somebody disliked or corrected.",
    }
    for by, sums in escalation.ledger.since_start().items():
        for name, what in says.items():
            yield f"fieldlm_ledger_{name}_total", what, {"by": by}, sums[name]


def governor_readings(governor: Governor) -> Iterable[Reading]:
    """Yield what is held back now, and for what; nothing while there is no limit to keep to."""
    if not governor.is_on:
        return
    now = governor.status()
    yield "fieldlm_governor_duty_ratio", "Share of the time that is computed in, by the governor's word.", {}, now.duty
    for reason in ("heat", "power"):
        labels = {"reason": reason}
        yield "fieldlm_governor_active", "1 while threads or time are held back.", labels, now.reason == reason
    if now.threads is not None:
        yield "fieldlm_governor_threads", "Threads that may compute, while they are held back.", {}, now.threads
    if now.watts is not None:
        yield "fieldlm_governor_watts", "Power at the last look.", {}, now.watts
