"""How likely an answer is right: an engine's signals, through what its bundle was calibrated to when it was made.

It is that of a whole answer, chosen greedily, to a question like those of the task that the bundle was judged by. Who
samples at a temperature, or asks about something else, gets a number that nobody has checked.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from fieldlm.core.errors import BundleError
from fieldlm.core.logs import logger
from fieldlm.engines import Timings
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.confidence import Confidence, read_confidence
from fieldlm.inference.generations import Serving

log = logger(__name__)

UNSURE = 0.1
"""The share of a bundle's answers that are called unsure: those of the lowest signals."""


def _whole_logprob(timings: Timings) -> float | None:
    """The log probability of the answer as a whole, as far as it was free."""
    return None if timings.mean_logprob is None else timings.mean_logprob * timings.free_tokens


SIGNALS: Mapping[str, Callable[[Timings], float | None]] = {
    "min_logprob": lambda timings: timings.min_logprob,
    "mean_logprob": lambda timings: timings.mean_logprob,
    "sum_logprob": _whole_logprob,
    "min_margin": lambda timings: timings.min_margin,
}
"""What a calibration may be made on, by name; where two do equally well the first one is taken."""

BESIDE: Mapping[str, Callable[[Timings], float | None]] = {
    "mean_margin": lambda timings: timings.margin,
    "answer_tokens": lambda timings: timings.completion_tokens,
    "prompt_tokens": lambda timings: timings.prompt_tokens,
    "forced_share": lambda timings: timings.forced_tokens / max(timings.completion_tokens, 1),
}
"""What a learned deferral may go by beside `SIGNALS`; of an answer with a free token."""


def signals(timings: Timings) -> dict[str, float | None]:
    """Return all that is known of how sure an answer is, by the names of `SIGNALS` and `BESIDE`."""
    told = {name: signal(timings) for name, signal in SIGNALS.items()}
    return told | {name: beside(timings) if timings.free_tokens else None for name, beside in BESIDE.items()}


def confidence(serving: Serving, timings: Timings) -> float | None:
    """Return the probability that the answer of `serving` with these `timings` is right.

    None where the bundle has no calibration, or one on a signal of a newer version, or no token was free.
    """
    return confidence_by(serving.bundle, timings, serving.task_adapter)


def confidence_by(bundle: Bundle, timings: Timings, adapter: str = "") -> float | None:
    """Return `confidence` for an answer of `bundle` and its `adapter`, where there is no `Serving`."""
    if timings.classified is not None:  # a classifier has its own calibration
        return timings.classified
    calibration = calibration_of(bundle, adapter)
    return None if calibration is None else calibration.chance(signals(timings))


def is_unsure(serving: Serving, timings: Timings) -> bool | None:
    """Say whether an answer is among the least sure that the bundle gives; None where it does not know."""
    if timings.classified is not None:  # it says nothing where it is unsure
        return False
    calibration = calibration_of(serving.bundle, serving.task_adapter)
    return None if calibration is None else calibration.is_below(signals(timings), UNSURE)


def calibration_of(bundle: Bundle, adapter: str = "") -> Confidence | None:
    """Return what `bundle` was calibrated to, if it was; each of several adapters has its own, or none.

    `adapter` is the name of one of them, "" for the first.
    """
    if several := bundle.manifest.task_adapters:
        file = next((each for each in several if each.name == adapter), several[0]).confidence
        path = None if file is None else bundle.folder / file
    else:
        path = bundle.path("confidence")
    return None if path is None else _read(path, bundle.id)


@functools.lru_cache(maxsize=128)
def _read(path: Path, bundle: str) -> Confidence | None:
    """Read a calibration once for each `bundle`; an answer does not fail because of it."""
    try:
        return read_confidence(path.read_bytes(), what=str(path))
    except (OSError, BundleError) as error:
        log.warning(f"answers of {bundle[:12]} have no confidence: {error}")
        return None
