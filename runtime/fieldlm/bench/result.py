"""Benchmark results: medians with 95 % intervals, and everything that was found out about one bundle."""

from collections.abc import Sequence

import msgspec

from fieldlm.bench.environment import EnvironmentSample
from fieldlm.bench.measure import BenchResult, Spec
from fieldlm.bench.student import quantile
from fieldlm.engines import Reading
from fieldlm.hardware.bandwidth import Bandwidth


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """The median of some samples and its 95 % interval; one sample says nothing of its error and has none."""

    median: float
    low: float | None
    high: float | None
    samples: tuple[float, ...]

    def words(self, digits: int = 1) -> str:
        if self.low is None or self.high is None:
            return f"{self.median:.{digits}f} [one run]"
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found out about one bundle; `bandwidth` has a sample beside each repetition.

    Figures of the prompt are there where it `has_prefill`, those of the answer where it `has_decode`.
    """

    spec: Spec
    measured: BenchResult
    bandwidth: Bandwidth
    reading: Reading
    before: EnvironmentSample
    after: EnvironmentSample

    @property
    def has_prefill(self) -> bool:
        return self.spec.prompt_tokens > 0

    @property
    def has_decode(self) -> bool:
        return self.spec.gen_tokens > 0

    @property
    def prefill(self) -> Interval:
        """Tokens of the prompt a second."""
        return interval([sample.prefill_tokens / sample.prefill_s for sample in self.measured.samples])

    @property
    def decode(self) -> Interval:
        """Tokens of the answer a second, the first one left out."""
        return interval([sample.decode_tokens / sample.decode_s for sample in self.measured.samples])

    @property
    def combined(self) -> Interval:
        """Tokens of prompt and answer together a second, where the answer is the prompt's own."""
        pairs = [
            (each.prefill_tokens + each.decode_tokens, each.prefill_s + each.decode_s) for each in self.measured.samples
        ]
        return interval([tokens / took_s for tokens, took_s in pairs])

    @property
    def ttft_ms(self) -> Interval:
        """From the request to the first chunk."""
        return interval([sample.ttft_s * 1000 for sample in self.measured.samples])

    @property
    def joules_per_token(self) -> Interval | None:
        """What the machine used for a token of the answer; None where nothing measures it."""
        return self._joules(0.0)

    @property
    def joules_per_token_above_idle(self) -> Interval | None:
        """The same, less what the machine takes anyway."""
        return None if self.measured.idle_w is None else self._joules(self.measured.idle_w)

    def _joules(self, idle_w: float) -> Interval | None:
        used = [(each.decode_j, each.decode_s, each.decode_tokens) for each in self.measured.samples]
        found = [max(0.0, joules - idle_w * took_s) / tokens for joules, took_s, tokens in used if joules is not None]
        return interval(found) if len(found) == len(used) else None

    @property
    def bandwidth_percent(self) -> Interval:
        """How much of the bandwidth that was measured just before it decoding uses, by the bytes it has to read."""
        behind = self.spec.depth + (self.spec.prompt_tokens if self.spec.is_combined else 0)
        bytes_of_token = self.reading.at_depth(behind + self.spec.gen_tokens / 2)
        pairs = zip(self.decode.samples, self.bandwidth.samples_gb_s, strict=True)
        return interval([100 * speed * bytes_of_token / 1e9 / gb_s for speed, gb_s in pairs])


def interval(samples: Sequence[float]) -> Interval:
    """Return the median, and Student's interval of the mean, which holds what is measured 19 times of 20.

    A bootstrap of three samples holds it three times of four. No quantity here is below zero, and where an outlier
    pulls the mean away from the median, the interval reaches as far as that.
    """
    import numpy as np

    values = np.asarray(samples, np.float64)
    median, low, high = float(np.median(values)), None, None
    if (count := len(values)) > 1:
        reach = quantile(count - 1) * float(np.std(values, ddof=1)) / count**0.5
        low, high = max(0.0, min(float(values.mean()) - reach, median)), max(float(values.mean()) + reach, median)
    return Interval(median=median, low=low, high=high, samples=tuple(samples))
