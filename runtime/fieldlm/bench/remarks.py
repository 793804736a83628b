"""Benchmark validity: why figures should not be believed (heat, throttling, neighbours, quotas, swap, supply).

A remark either voids a run, where something else than this machine at rest was measured, or qualifies it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fieldlm.bench.environment import EnvironmentSample, steal_percent
from fieldlm.bench.result import Result
from fieldlm.bench.student import p_value
from fieldlm.core.wording import counted
from fieldlm.hardware.detect import Detection
from fieldlm.hardware.energy import SAMPLE_S

STEAL_LIMIT = 2.0  # per cent; above it the hypervisor decides, not the machine
STEAL_VOIDS = 10.0
WAIT_LIMIT = 10.0  # per cent of the time in which something waited for a processor
STALL_LIMIT = 2.0  # and for memory
FALL_LIMIT = 0.05  # of the speed, from the first repetition to the last
CHANCE = 0.05  # how often repetitions that do not fall look as if they did
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


class Remark(NamedTuple):
    """What was seen, and whether the figures are void for it: not those of this machine by itself."""

    words: str
    voids: bool = False

    def __str__(self) -> str:
        return f"void: {self.words}" if self.voids else self.words


def remarks(result: Result, found: Detection) -> list[str]:
    """Return why these figures should be taken with care, or not at all ("void: …"); empty on a quiet machine."""
    return [str(each) for each in findings(result, found)]


def findings(result: Result, found: Detection) -> list[Remark]:
    """Return what was seen beside the run, the grave first."""
    seen = [*_of_neighbours(result), *_of_heat(result, found), *_of_samples(result), *_of_bandwidth(result, found)]
    return sorted(seen, key=lambda each: not each.voids)


def _of_neighbours(result: Result) -> Iterator[Remark]:
    before, after, threads = result.before, result.after, result.spec.threads
    steal = steal_percent(before, after)
    if steal > STEAL_LIMIT:
        words = f"the hypervisor took {steal:.0f} % of the CPU: compare only with what ran beside it"
        yield Remark(words, voids=steal > STEAL_VOIDS)
    if before.load_average > 0.5:
        yield Remark(f"load {before.load_average:.1f} before the start: others were computing")
    if after.load_average > max(threads, before.load_average) + 1:
        ours = counted(threads, "thread")
        yield Remark(f"load {after.load_average:.1f} at the end with {ours} of ours: others were computing")
    waited = _percent_of(before, after, before.cpu_waited_s, after.cpu_waited_s)
    if waited > WAIT_LIMIT:
        words = f"something waited for a processor {waited:.0f} % of the time: neighbours, or more threads than cores"
        yield Remark(words, voids=True)
    stalled = _percent_of(before, after, before.memory_waited_s, after.memory_waited_s)
    if stalled > STALL_LIMIT:
        words = (
            f"something waited for memory {stalled:.0f} % of the time: it was short, or mapped weights were read anew"
        )
        yield Remark(words, voids=True)
    if (stopped := _more(before.quota_stops, after.quota_stops)) > 0:
        words = f"the control group's CPU quota stopped it {counted(stopped, 'time')}: use fewer threads, or allow more"
        yield Remark(words, voids=True)
    if (swapped := after.swapped_mb - before.swapped_mb) > SWAP_LIMIT_MB:
        yield Remark(f"{swapped} MB went to swap or came back: memory was short", voids=True)


def _of_heat(result: Result, found: Detection) -> Iterator[Remark]:
    before, after, samples = result.before, result.after, result.measured.samples
    if found.facts["governor"] not in ("", "performance"):
        yield Remark(f"CPU governor {found.facts['governor']}: clocks may follow the load late")
    if _more(before.throttled, after.throttled):
        yield Remark("the CPU was throttled by heat", voids=True)
    limit = found.best.thermal.throttle_c
    heat = [each for each in (after.temperature_c, *(sample.temperature_c for sample in samples)) if each is not None]
    if limit is not None and heat and max(heat) >= limit:
        yield Remark(f"{max(heat):.0f} °C; {found.best.id} throttles from {limit:.0f} °C")
    for bit, words in PI_BITS.items():
        is_now = (before.pi_throttled | after.pi_throttled) >> bit & 1
        if is_now or (after.pi_throttled & ~before.pi_throttled) >> bit + PI_SINCE_BOOT & 1:
            yield Remark(f"Raspberry Pi's firmware says: {words}", voids=True)
    if after.is_on_battery:
        yield Remark("it ran on battery: clocks may be held down")
    clocks = [sample.clock_mhz for sample in samples if sample.clock_mhz]
    if clocks and min(clocks) < CLOCK_LIMIT * max(clocks):
        words = f"the clock fell from {max(clocks):.0f} to {min(clocks):.0f} MHz between repetitions"
        yield Remark(words, voids=True)
    for name, speeds in _speeds(result):
        if (fall := fall_of(speeds)) > FALL_LIMIT:
            ends = f"{speeds[0]:.1f} to {speeds[-1]:.1f} tokens/s"
            yield Remark(f"{name} fell by {100 * fall:.0f} % over the repetitions, {ends}", voids=True)


def _speeds(result: Result) -> Iterator[tuple[str, tuple[float, ...]]]:
    if result.has_prefill:
        yield "prefill", result.prefill.samples
    if result.has_decode:
        yield "decode", result.decode.samples


def _of_samples(result: Result) -> Iterator[Remark]:
    samples, depth = result.measured.samples, result.spec.depth
    if short := [sample for sample in samples if sample.decode_tokens < result.spec.gen_tokens]:
        shortest = counted(min(sample.decode_tokens for sample in short), "token")
        yield Remark(f"{counted(len(short), 'answer')} ended early, the shortest after {shortest}")
    facts, shortest_s = result.measured.energy, min(sample.decode_s for sample in samples)
    if result.has_decode and facts and facts.is_sampled and shortest_s < LEAST_POWER_SAMPLES * SAMPLE_S:
        words = f"an answer of {shortest_s:.1f} s is too short to sum up samples of power: ask for more --gen-tokens"
        yield Remark(words)
    if result.has_prefill and any(sample.cached_tokens > depth for sample in samples):
        yield Remark("a part of a prompt came from the prefix cache; it is not counted")
    if result.has_prefill and any(sample.cached_tokens < depth for sample in samples):
        words = f"this model computes the {depth} tokens before a prompt with each anew: prefill is of both together"
        yield Remark(words, voids=True)


def _of_bandwidth(result: Result, found: Detection) -> Iterator[Remark]:
    if not result.has_decode:
        return
    expect, percent = found.best.expect, result.bandwidth_percent.median
    if not result.bandwidth.is_beyond_cache:
        yield Remark("the bandwidth was measured on less than four caches; its share may read too low")
    if expect.bandwidth_percent_high and percent > expect.bandwidth_percent_high:
        words = (
            f"{percent:.0f} % of the bandwidth is more than there is: a neighbour slowed its test, or a cache helped"
        )
        yield Remark(words)
    if expect.bandwidth_percent_low and percent < expect.bandwidth_percent_low:
        least = f"{found.best.id} expects {expect.bandwidth_percent_low:.0f} % at least"
        yield Remark(f"{percent:.0f} % of the bandwidth; {least}")


def _more(before: int | None, after: int | None) -> int:
    return (after or 0) - (before or 0)


def _percent_of(
    before: EnvironmentSample, after: EnvironmentSample, earlier_s: float | None, later_s: float | None
) -> float:
    """Return the share of the time between two moments for which a counter of seconds went on; 0 without one."""
    spent_s = after.at_s - before.at_s
    if earlier_s is None or later_s is None or spent_s <= 0:
        return 0.0
    return 100 * (later_s - earlier_s) / spent_s


def fall_of(speeds: tuple[float, ...]) -> float:
    """Return the share of speed that was lost over the repetitions; 0 where chance alone may have ordered them so.

    A line is fitted to them; chance makes one in twenty fall as clearly (a one-sided test of its slope).
    """
    count = len(speeds)
    if count < 3 or min(speeds) == max(speeds):
        return 0.0
    order = float(np.corrcoef(np.arange(count), np.asarray(speeds))[0, 1])
    t = order * ((count - 2) / max(1e-12, 1 - order * order)) ** 0.5
    is_clear = order < 0 and p_value(t, count - 2) / 2 < CHANCE
    return max(0.0, 1 - speeds[-1] / speeds[0]) if is_clear else 0.0
