"""Regression monitor (canary analysis): whose answers fail, which are corrected, how fast they come, by generation.

A release that passed its probes may still fail what customers say. The evidence is an e-value, as in a rollout: how
much likelier what was seen is at a supposed share of failures than at the share of the generation before. Its
expectation is at most 1 while the release is no worse, so that looking after every answer costs nothing (Ville): a
generation is given up without cause in about one of a thousand updates.
"""

import math
import statistics
import threading
from collections import defaultdict, deque
from collections.abc import Callable

import msgspec

from fieldlm.engines import Timings
from fieldlm.engines.answer_stream import chosen_per_s
from fieldlm.updates.gates import Reason

ALPHA = 0.001
SUPPOSED = (0.1, 0.3, 0.7, 0.95)  # shares of answers that a bad release fails, above the usual
LEAST_SHARE = 0.01  # that is usual of any generation: a client that hangs up is nobody's fault
FAILED = frozenset({"error"})
SPEEDS = 32  # of the last answers of a kind (`Company`)
LEAST_SPEEDS = 8
SLOWEST = 0.4  # of the generation before; people's answers differ in length
HOTTER_C = 5.0  # than where the clock falls


Company = tuple[bool, int]
"""Whether an answer has tokens that a form forced, and how many were written side by side: 1, 2 to 3, 4 to 7, …"""


class Complaint(msgspec.Struct, frozen=True, kw_only=True):
    """Why a generation is given up."""

    reason: Reason
    detail: str


class GenerationVitals:
    """What was seen of one generation."""

    def __init__(self) -> None:
        self.answers = 0
        self.errors = 0
        self.corrections = 0
        self.speeds: defaultdict[Company, deque[float]] = defaultdict(lambda: deque(maxlen=SPEEDS))
        """Chosen tokens per second, by what an answer can be compared with."""


class RegressionMonitor:
    """Counts answers by generation. Safe from any thread, and quick."""

    def __init__(
        self, *, temperature_c: Callable[[], float | None] = lambda: None, throttle_c: float | None = None
    ) -> None:
        self._temperature_c = temperature_c
        self._throttle_c = throttle_c
        self._lock = threading.Lock()
        self._vitals: dict[str, GenerationVitals] = {}
        self._given: deque[tuple[str, str]] = deque(maxlen=1024)
        self._was_hot = False

    def begin(self) -> None:
        """Note how the device is before a switch: what it suffers already is not the new generation's fault."""
        self._was_hot = self._is_hot()

    def answered(self, generation: str, response: str, outcome: str, timings: Timings) -> None:
        """Note an answer that has ended."""
        speed = chosen_per_s(timings)
        with self._lock:
            vitals = self._vitals.setdefault(generation, GenerationVitals())
            vitals.answers += 1
            vitals.errors += outcome in FAILED
            if speed is not None:
                company = timings.forced_tokens > 0, round(timings.batch_size).bit_length()
                vitals.speeds[company].append(speed)
            self._given.append((response, generation))

    def corrected(self, response: str) -> None:
        """Note that somebody corrected, or did not like, the answer of that id."""
        with self._lock:
            generation = next((g for known, g in self._given if known == response), None)
            if generation is not None:
                self._vitals[generation].corrections += 1

    def of(self, generation: str) -> GenerationVitals:
        with self._lock:
            return self._vitals.get(generation) or GenerationVitals()

    def complaint(self, generation: str, before: str) -> Complaint | None:
        """Return what speaks against `generation`, compared with the one before it."""
        now, then = self.of(generation), self.of(before)
        for reason, hits, usual_hits in (
            ("errors", now.errors, then.errors),
            ("corrections", now.corrections, then.corrections),
        ):
            usual = (usual_hits + 1) / (then.answers + 2) if then.answers else LEAST_SHARE
            evidence = e_value(hits, now.answers, max(usual, LEAST_SHARE))
            if evidence > 1 / ALPHA:
                detail = f"{hits} of {now.answers} answers, before {usual_hits} of {then.answers} (e = {evidence:.0f})"
                return Complaint(reason=msgspec.convert(reason, Reason), detail=detail)
        return self._slow(now, then) or self._hot()

    def _slow(self, now: GenerationVitals, then: GenerationVitals) -> Complaint | None:
        # Eight clients at once slow any generation, and so does reading what a form forces: like is held against like.
        with self._lock:
            alike = [(now.speeds[each], then.speeds[each]) for each in sorted(now.speeds.keys() & then.speeds.keys())]
            known = [pair for pair in alike if min(map(len, pair)) >= LEAST_SPEEDS]
            medians = [(statistics.median(speeds), statistics.median(usual)) for speeds, usual in known]
        if not medians or any(speed >= SLOWEST * usual for speed, usual in medians):
            return None
        speed, usual = medians[0]
        return Complaint(reason="slow", detail=f"{speed:.1f} tokens/s for people, before {usual:.1f}")

    def _hot(self) -> Complaint | None:
        if self._was_hot or not self._is_hot():
            return None
        return Complaint(reason="hot", detail=f"over {self._throttle_c:.0f} °C, where the clock falls, and not before")

    def _is_hot(self) -> bool:
        heat_c = self._temperature_c() if self._throttle_c else None
        return heat_c is not None and self._throttle_c is not None and heat_c > self._throttle_c + HOTTER_C


def e_value(hits: int, count: int, usual: float) -> float:
    """Return how much likelier `hits` of `count` are at some supposed higher share than at the `usual` one."""
    fine, values = count - hits, list[float]()
    for supposed in SUPPOSED:
        share = usual + (1 - usual) * supposed
        log = hits * math.log(share / usual) + (fine * math.log((1 - share) / (1 - usual)) if fine > 0 else 0.0)
        values.append(math.exp(min(log, 600.0)))
    return sum(values) / len(values)
