"""A quantile sketch (DDSketch), mergeable, whose quantiles are right to two per cent, and sums that add up.

A sketch is a histogram over logarithmic buckets, as in DDSketch (Masson, Rim, Lee 2019): a value x falls into bucket
ceil(log x / log γ), γ = 1.02/0.98, so that two sketches merge by adding counts and a bucket's middle is within 2 % of
all that fell into it. Calibration counts, by how sure a model was, how often somebody disagreed: sums of devices add up
to the fleet's, and no text is needed. How sure is said by an answer's confidence, where its bundle was calibrated, and
by its rank among the last answers of its generation, where there were enough.
"""

import math
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from fieldlm.formats.record import WireError

ACCURACY = 0.02
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG = math.log(_GAMMA)
BINS: Mapping[str, tuple[float, ...]] = {
    "by_confidence": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    "by_rank": (0.1, 0.25, 0.5, 0.75),
    "calibration": (0.5, 1.0, 2.0, 4.0, 8.0),
}
"""Upper ends of the calibration's bins, by their name in a record's detail; one more is open.

`calibration` is by the mean gap of logits: what devices wrote before there was a confidence, and is only read.
"""


class Sketch:
    """Counts of positive numbers by logarithmic bucket; what is zero or less is counted apart."""

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.zeros = 0

    @property
    def count(self) -> int:
        return self.buckets.total() + self.zeros

    def add(self, value: float) -> None:
        """Count `value`; what is not finite is passed over."""
        if not math.isfinite(value):
            return
        if value <= 0:
            self.zeros += 1
        else:
            self.buckets[math.ceil(math.log(value) / _LOG)] += 1

    def merge(self, other: "Sketch") -> None:
        self.buckets.update(other.buckets)
        self.zeros += other.zeros

    def quantile(self, share: float) -> float:
        """Return a value within 2 % of the one that `share` of all are not above; 0 without any."""
        rank = max(1, math.ceil(share * self.count)) - self.zeros
        if rank <= 0:
            return 0.0
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return 2 * _GAMMA**bucket / (_GAMMA + 1)
        return 0.0

    def encode(self) -> str:
        """Return it as text: "zeros bucket:count bucket:count …"."""
        return " ".join([str(self.zeros), *(f"{b}:{self.buckets[b]}" for b in sorted(self.buckets))])

    @classmethod
    def decode(cls, text: str) -> "Sketch":
        """Read what `encode` wrote; raises WireError."""
        made = cls()
        try:
            zeros, *pairs = text.split()
            made.zeros = int(zeros)
            for pair in pairs:
                bucket, count = pair.split(":")
                made.buckets[int(bucket)] += int(count)
        except ValueError as error:
            raise WireError(f"not a sketch: {error}") from error
        if made.zeros < 0 or any(count <= 0 or abs(b) > 100_000 for b, count in made.buckets.items()):
            raise WireError("not a sketch: a count is negative, or a bucket out of range")
        return made


class Sureness(NamedTuple):
    """How sure a model was of an answer: its confidence, and its rank from 0 to 1; None where it is not known."""

    confidence: float | None = None
    rank: float | None = None

    def bins(self) -> dict[str, int]:
        """Return the place of the bin that it falls into, of each kind there is."""
        found = {"by_confidence": self.confidence, "by_rank": self.rank}
        return {name: bisect_right(BINS[name], value) for name, value in found.items() if value is not None}


NOT_KNOWN = Sureness()


class Bin(NamedTuple):
    """Answers that a model was less sure of than `end`, and no less than the bin before; how many were `disputed`."""

    end: float
    answered: int
    disputed: int


class Summary:
    """What the answers of one generation came to since it was made. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sketches: dict[str, Sketch] = {}
        self._answered: Counter[tuple[str, int]] = Counter()
        self._disputed: Counter[tuple[str, int]] = Counter()

    def answered(self, sure: Sureness, **numbers: float) -> None:
        """Count one answer and its numbers; milliseconds, or tokens."""
        with self._lock:
            for name, value in numbers.items():
                self._sketches.setdefault(name, Sketch()).add(value)
            self._answered.update(sure.bins().items())

    def disputed(self, sure: Sureness) -> None:
        """Count that somebody corrected an answer, or was not content with it."""
        with self._lock:
            self._disputed.update(sure.bins().items())

    def detail(self) -> dict[str, str]:
        """Return everything as the detail of a `sketch` record: a sketch each, and answered/disputed by bin."""
        with self._lock:
            found = {name: sketch.encode() for name, sketch in sorted(self._sketches.items())}
            for name in sorted({name for name, _ in (*self._answered, *self._disputed)}):
                places = [(name, place) for place in range(len(BINS[name]) + 1)]
                found[name] = " ".join(f"{self._answered[place]}/{self._disputed[place]}" for place in places)
            return found


def calibration(detail: Mapping[str, str]) -> dict[str, list[Bin]]:
    """Read what the detail of a `sketch` record counts, by the names of `BINS`; raises WireError."""
    return {name: _bins(detail[name], ends) for name, ends in BINS.items() if name in detail}


def _bins(text: str, ends: tuple[float, ...]) -> list[Bin]:
    try:
        pairs = [(int(answered), int(disputed)) for answered, disputed in (one.split("/") for one in text.split())]
        return [Bin(end, *pair) for end, pair in zip((*ends, math.inf), pairs, strict=True)]
    except ValueError as error:
        raise WireError(f"not a calibration: {error}") from error
