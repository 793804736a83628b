"""Benchmark validity: why figures should not be believed (heat, throttling, neighbours, quotas, swap, supply)."""

from collections.abc import Iterator

import numpy as np

from fieldlm.bench.environment import EnvironmentSample, steal_percent
from fieldlm.bench.result import Result
from fieldlm.core.wording import counted
from fieldlm.hardware.detect import Detection
from fieldlm.hardware.energy import SAMPLE_S

STEAL_LIMIT = 2.0  # per cent; above it the hypervisor decides, not the machine
WAIT_LIMIT = 10.0  # per cent of the time in which something waited for a processor
FALL_LIMIT = 0.05  # of the speed, from the first repetitions to the last
CLOCK_LIMIT = 0.9  # of the highest clock of all repetitions
SWAP_LIMIT_MB = 4
LEAST_POWER_SAMPLES = 10
# Raspberry Pi's firmware, get_throttled: what is so now, and 16 bits up what has been so since boot.
PI_BITS = {
    0: "its voltage was too low",
    1: "the clock was capped",
    2: "the firmware throttled",
    3: "it was hot",
}
PI_SINCE_BOOT = 16


def remarks(result: Result, found: Detection) -> list[str]:
    """Return why these figures should be taken with care; empty on a quiet machine."""
    return [*_of_neighbours(result), *_of_heat(result, found), *_of_samples(result), *_of_bandwidth(result, found)]


def _of_neighbours(result: Result) -> Iterator[str]:
    before, after, threads = result.before, result.after, result.spec.threads
    steal = steal_percent(before, after)
    if steal > STEAL_LIMIT:
        yield f"the hypervisor took {steal:.0f} % of the CPU: compare only with what ran beside it"
    if before.load_average > 0.5:
        yield f"load {before.load_average:.1f} before the start: others were computing"
    if after.load_average > max(threads, before.load_average) + 1:
        yield (
            f"load {after.load_average:.1f} at the end with {counted(threads, 'thread')} of ours: others were computing"
        )
    waited = _percent_waited(before, after)
    if waited > WAIT_LIMIT:
        yield f"something waited for a processor {waited:.0f} % of the time: there are more threads than cores for them"
    if (stopped := _more(before.quota_stops, after.quota_stops)) > 0:
        yield f"the control group's CPU quota stopped it {counted(stopped, 'time')}: use fewer threads, or allow more"
    if (swapped := after.swapped_mb - before.swapped_mb) > SWAP_LIMIT_MB:
        yield f"{swapped} MB went to swap or came back: memory was short"


def _of_heat(result: Result, found: Detection) -> Iterator[str]:
    before, after, samples = result.before, result.after, result.measured.samples
    if found.facts["governor"] not in ("", "performance"):
        yield f"CPU governor {found.facts['governor']}: clocks may follow the load late"
    if _more(before.throttled, after.throttled):
        yield "the CPU was throttled by heat"
    limit = found.best.thermal.throttle_c
    heat = [each for each in (after.temperature_c, *(sample.temperature_c for sample in samples)) if each is not None]
    if limit is not None and heat and max(heat) >= limit:
        yield f"{max(heat):.0f} °C; {found.best.id} throttles from {limit:.0f} °C"
    for bit, words in PI_BITS.items():
        is_now = (before.pi_throttled | after.pi_throttled) >> bit & 1
        if is_now or (after.pi_throttled & ~before.pi_throttled) >> bit + PI_SINCE_BOOT & 1:
            yield f"Raspberry Pi's firmware says: {words}"
    if after.is_on_battery:
        yield "it ran on battery: clocks may be held down"
    clocks = [sample.clock_mhz for sample in samples if sample.clock_mhz]
    if clocks and min(clocks) < CLOCK_LIMIT * max(clocks):
        yield f"the clock fell from {max(clocks):.0f} to {min(clocks):.0f} MHz between repetitions"
    if not result.has_decode:
        return
    speeds = result.decode.samples
    if (fall := _fall(speeds)) > FALL_LIMIT:
        yield f"decode fell by {100 * fall:.0f} % over the repetitions, {speeds[0]:.1f} to {speeds[-1]:.1f} tokens/s"


def _of_samples(result: Result) -> Iterator[str]:
    samples, depth = result.measured.samples, result.spec.depth
    if short := [sample for sample in samples if sample.decode_tokens < result.spec.gen_tokens]:
        yield (
            f"{counted(len(short), 'answer')} ended early, the shortest after "
            f"{counted(min(s.decode_tokens for s in short), 'token')}"
        )
    facts, shortest_s = result.measured.energy, min(sample.decode_s for sample in samples)
    if result.has_decode and facts and facts.is_sampled and shortest_s < LEAST_POWER_SAMPLES * SAMPLE_S:
        yield f"an answer of {shortest_s:.1f} s is too short to sum up samples of power: ask for more --gen-tokens"
    if result.has_prefill and any(sample.cached_tokens > depth for sample in samples):
        yield "a part of a prompt came from the prefix cache; it is not counted"
    if result.has_prefill and any(sample.cached_tokens < depth for sample in samples):
        yield f"this model computes the {depth} tokens before a prompt with each anew: prefill is of both together"


def _of_bandwidth(result: Result, found: Detection) -> Iterator[str]:
    if not result.has_decode:
        return
    expect, percent = found.best.expect, result.bandwidth_percent.median
    if not result.bandwidth.is_beyond_cache:
        yield "the bandwidth was measured on less than four caches; its share may read too low"
    if expect.bandwidth_percent_high and percent > expect.bandwidth_percent_high:
        yield f"{percent:.0f} % of the bandwidth is more than there is: a neighbour slowed its test, or a cache helped"
    if expect.bandwidth_percent_low and percent < expect.bandwidth_percent_low:
        yield f"{percent:.0f} % of the bandwidth; {found.best.id} expects {expect.bandwidth_percent_low:.0f} % at least"


def _more(before: int | None, after: int | None) -> int:
    return (after or 0) - (before or 0)


def _percent_waited(before: EnvironmentSample, after: EnvironmentSample) -> float:
    spent_s = after.at_s - before.at_s
    if before.cpu_waited_s is None or after.cpu_waited_s is None or spent_s <= 0:
        return 0.0
    return 100 * (after.cpu_waited_s - before.cpu_waited_s) / spent_s


def _fall(speeds: tuple[float, ...]) -> float:
    """Return the share of speed that was lost over the repetitions; 0 where they do not fall one after the other."""
    if len(speeds) < 3 or min(speeds) == max(speeds):
        return 0.0
    order = np.corrcoef(np.arange(len(speeds)), np.asarray(speeds))[0, 1]
    return max(0.0, 1 - speeds[-1] / speeds[0]) if order < -0.9 else 0.0
