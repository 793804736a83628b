"""Prometheus metrics: counted when an answer has ended, never while one is computed.

What writes them in Prometheus's words brings a web server and more, and is imported when somebody asks for them.
"""

import itertools
import math
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fieldlm.api.chat_request import Exchange
from fieldlm.engines.answer_stream import chosen_per_s
from fieldlm.hardware.energy import EnergyMeter
from fieldlm.hardware.governor import Governor
from fieldlm.hardware.limits import LIVE
from fieldlm.hardware.sensors import peak_rss_mb, rss_mb, temperature_c

if TYPE_CHECKING:
    from prometheus_client.core import Metric

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


class Counter:
    """A number that grows, for each choice of its labels. Safe from any thread."""

    def __init__(self, name: str, says: str, labels: Sequence[str] = ()) -> None:
        self._name, self._says, self._labels = name, says, tuple(labels)
        self._counts: dict[tuple[str, ...], float] = {}
        self._since_s: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def count(self, *labels: str, by: float = 1) -> None:
        with self._lock:
            self._since_s.setdefault(labels, time.time())
            self._counts[labels] = self._counts.get(labels, 0.0) + by

    def family(self) -> "Metric":
        """Return it in Prometheus's words."""
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(self._name, self._says, labels=self._labels)
        with self._lock:
            for labels, value in self._counts.items():
                family.add_metric(labels, value, created=self._since_s[labels])
        return family


class Histogram:
    """How many values lie at or below each of some bounds, and their sum. Safe from any thread."""

    def __init__(self, name: str, says: str, *, buckets: Sequence[float]) -> None:
        self._name, self._says = name, says
        self._bounds = (*buckets, math.inf)
        self._counts, self._sum, self._since_s = [0] * len(self._bounds), 0.0, time.time()
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def family(self) -> "Metric":
        """Return it in Prometheus's words."""
        from prometheus_client.core import HistogramMetricFamily
        from prometheus_client.utils import floatToGoString

        with self._lock:
            counts, total = list(itertools.accumulate(self._counts)), self._sum
        buckets = [(floatToGoString(bound), float(count)) for bound, count in zip(self._bounds, counts, strict=True)]
        family = HistogramMetricFamily(self._name, self._says, buckets=buckets, sum_value=total)
        family.add_sample(f"{self._name}_created", {}, self._since_s)
        return family


class Metrics:
    """Counters and histograms of ended answers, and gauges that are read when somebody asks."""

    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        self._readings = readings
        self._generations, self._adapter_names = set[str](), set[str]()
        self._ttft = Histogram("fieldlm_ttft_seconds", "From the request to its first token.", buckets=SECONDS)
        self._queue = Histogram("fieldlm_queue_seconds", "Waiting for a turn.", buckets=SECONDS)
        self._token = Histogram(
            "fieldlm_inter_token_seconds",
            "Time between two tokens that were chosen, not forced by a form: the mean of each answer.",
            buckets=TOKEN_SECONDS,
        )
        self._confidence = Histogram(
            "fieldlm_confidence",
            "How likely answers are right, where their generation was calibrated.",
            buckets=CONFIDENCES,
        )
        self._tokens = Counter("fieldlm_tokens", "Tokens read, reused, written, drafted and accepted.", ["kind"])
        self._requests = Counter("fieldlm_requests", "Ended answers.", ["outcome", "generation"])
        self._answers = Counter(
            "fieldlm_answers",
            "Ended answers by who gave them (small, large, classifier), and why it was not the small model.",
            ["by", "why"],
        )
        self._adapters = Counter(
            "fieldlm_adapter_answers",
            "Ended answers by the adapter that gave them, where a bundle has several.",
            ["adapter"],
        )
        self._statuses = Counter("fieldlm_http_responses", "Responses by HTTP status.", ["status"])
        self._recent: deque[dict[str, float | None]] = deque(maxlen=RECENT)

    def exchange(self, exchange: Exchange) -> None:
        """Count one answer that has ended."""
        timings = exchange.timings
        self._requests.count(exchange.outcome, _label(exchange.generation, self._generations))
        if exchange.adapter:
            self._adapters.count(_label(exchange.adapter, self._adapter_names))
        is_large = exchange.verdict is not None and exchange.verdict.by == "large"
        by, why = (exchange.verdict.by, exchange.verdict.why) if exchange.verdict else ("small", "")
        self._answers.count(exchange.answered_by or by, why)
        if exchange.ttft_s is not None:
            self._ttft.observe(exchange.ttft_s)
        if is_large:  # its times are the network's, and say nothing of this device
            for kind, count in (("prompt", timings.prompt_tokens), ("completion", timings.completion_tokens)):
                self._tokens.count(f"large_{kind}", by=count)
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
            self._tokens.count(kind, by=count)
        self._recent.append(_point(exchange))

    def status(self, status: int) -> None:
        """Count one HTTP response."""
        self._statuses.count(str(status))

    def recent(self) -> list[dict[str, float | None]]:
        """Return time, speed and wait of the last answers, oldest first."""
        return list(self._recent)

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        from prometheus_client import generate_latest

        return generate_latest(cast(Any, self))  # which it asks for what a registry is asked

    def collect(self) -> "Iterable[Metric]":
        """Yield everything, the gauges as they are now, in Prometheus's words."""
        yield from _gauges(self._readings())
        histograms = (self._ttft, self._queue, self._token, self._confidence)
        counters = (self._tokens, self._requests, self._answers, self._adapters, self._statuses)
        for counted in (*histograms, *counters):
            yield counted.family()


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


def _gauges(readings: Iterable[Reading]) -> "Iterable[Metric]":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for name, says, labels, value in readings:
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
