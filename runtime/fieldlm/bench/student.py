"""Student's t distribution, for a device without scipy: what intervals and Welch's test of a few repetitions need."""

import math
from functools import lru_cache

STEPS = 200
TINY = 1e-300


def p_value(t: float, freedom: float) -> float:
    """Return how often chance alone is as far from 0 as `t`, on either side; `freedom` need not be whole."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


@lru_cache(maxsize=256)
def quantile(freedom: float, *, confidence: float = 0.95) -> float:
    """Return the t that chance alone exceeds, on either side, in 1 - `confidence` of all cases; to 1e-9 of itself."""
    low, high = 0.0, 1.0
    while p_value(high, freedom) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, freedom) > 1 - confidence else (low, middle)
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz; DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    scale = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    above, below = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    whole = below
    for m in range(1, STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            below = 1 / _not_zero(1 + term * below)
            above = _not_zero(1 + term / above)
            whole *= above * below
        if abs(above * below - 1) < 1e-15:
            break
    return scale * whole


def _not_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY
