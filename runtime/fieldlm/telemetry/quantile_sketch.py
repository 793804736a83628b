"""A quantile sketch (DDSketch), mergeable, whose quantiles are right to two per cent, and sums that add up.

A sketch is a histogram over logarithmic buckets, as in DDSketch (Masson, Rim, Lee 2019): a value x falls into bucket
ceil(log x / log γ), γ = 1.02/0.98, so that two sketches merge by adding counts and a bucket's middle is within 2 % of
all that fell into it. Calibration counts, by how sure a model was, how often somebody disagreed: sums of devices add up
to the fleet's, and no text is needed.
"""

import math
import threading
from collections import Counter

from fieldlm.formats.record import WireError

ACCURACY = 0.02
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG = math.log(_GAMMA)
MARGINS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Upper ends of the calibration's bins; one more is open. Logits' gaps: below 1 a model hardly decided."""


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


class Summary:
    """What the answers of one generation came to since it was made. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sketches: dict[str, Sketch] = {}
        self._answered = [0] * (len(MARGINS) + 1)
        self._disputed = [0] * (len(MARGINS) + 1)

    def answered(self, margin: float, **numbers: float) -> None:
        """Count one answer and its numbers; milliseconds, or tokens."""
        with self._lock:
            for name, value in numbers.items():
                self._sketches.setdefault(name, Sketch()).add(value)
            self._answered[_bin(margin)] += 1

    def disputed(self, margin: float) -> None:
        """Count that somebody corrected an answer, or was not content with it."""
        with self._lock:
            self._disputed[_bin(margin)] += 1

    def detail(self) -> dict[str, str]:
        """Return everything as the detail of a `sketch` record: a sketch each, and answered/disputed by margin."""
        with self._lock:
            pairs = zip(self._answered, self._disputed, strict=True)
            found = {name: sketch.encode() for name, sketch in sorted(self._sketches.items())}
            return found | {"calibration": " ".join(f"{n}/{wrong}" for n, wrong in pairs)}


def _bin(margin: float) -> int:
    return next((place for place, end in enumerate(MARGINS) if margin < end), len(MARGINS))
