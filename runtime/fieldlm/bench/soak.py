"""Soak: a server under the same load for minutes or hours, window by window, to see it grow warm and slow.

Each window is a line of a file, written to the disk when the window is over. A run that is interrupted, by Ctrl-C or by
the power, goes on with the same command where its file ends. Heat, clocks and throttling are those of this machine, and
are looked at where the server is on it.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from fieldlm.bench.environment import EnvironmentSample, moment
from fieldlm.bench.load import Level, LoadAnswer, LoadSpec, ask, asking
from fieldlm.bench.student import quantile
from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors
from fieldlm.hardware.sensors import clock_mhz
from fieldlm.network.http_client import HttpClient

FORMAT = "fieldlm.soak/1"
WINDOW_S = 30.0
SHARE = 5  # the first and the last fifth of the windows are held against each other
LEAST_WINDOWS = 10
"""Of windows with a speed: of fewer, five minutes, a slope is chance, and its interval thousands of per cent wide."""
PI_NOW = 0xF
OPTIONS = {
    "url": "--url", "model": "MODEL", "prompt_tokens": "--prompt-tokens", "gen_tokens": "--gen-tokens",
    "seed": "--seed", "deadline_s": "--deadline", "first_word_s": "--first-word", "concurrency": "--concurrency",
}  # fmt: skip


class SoakHead(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a file: what is asked."""

    format: str
    url: str
    spec: LoadSpec
    level: Level
    window_s: float
    is_here: bool


class SoakWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One window: answers that ended in it, the median speed of one while it was written, and the machine at its end.

    `throttled` counts what slowed the processors in it: Intel's counters, and one for a Raspberry Pi's firmware that
    says so. None where nothing is known.
    """

    ended_wall_s: float
    answers: int
    failed: int
    tokens: int
    tokens_per_s: float | None
    ttft_s: float | None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    load_average: float | None = None
    throttled: int = 0
    seed: int | None = None
    """By which its prompts were drawn."""


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """A whole soak; `drift_percent_h` is the slope of the speed in per cent of its start an hour, with its interval."""

    head: SoakHead
    windows: tuple[SoakWindow, ...]

    @property
    def speeds(self) -> list[tuple[float, float]]:
        """Minutes of load, and the tokens a second of one answer then."""
        step_min = self.head.window_s / 60
        return [
            (step_min * (at + 1), each.tokens_per_s)
            for at, each in enumerate(self.windows)
            if each.tokens_per_s is not None
        ]

    @property
    def droop_percent(self) -> float | None:
        """How much slower the last fifth is than the first, by their medians; None for fewer than LEAST_WINDOWS."""
        speeds = [speed for _, speed in self.speeds]
        if len(speeds) < LEAST_WINDOWS:
            return None
        part = len(speeds) // SHARE
        first, last = (float(np.median(each)) for each in (speeds[:part], speeds[-part:]))
        return 100 * (1 - last / first)

    @property
    def drift_percent_h(self) -> tuple[float, float, float] | None:
        """The slope of a line through all windows and its 95 % interval; None for fewer than LEAST_WINDOWS."""
        if len(self.speeds) < LEAST_WINDOWS:
            return None
        hours, speeds = (np.asarray(column) for column in zip(*self.speeds, strict=True))
        hours = hours / 60
        # Least squares by hand: a package for devices has no LAPACK, by which numpy does it.
        apart = hours - hours.mean()
        slope = (apart * speeds).sum() / (apart**2).sum()
        start = speeds.mean() - slope * hours.mean()
        spread = float(np.sqrt(((speeds - slope * hours - start) ** 2).sum() / (len(speeds) - 2)))
        reach = quantile(len(speeds) - 2) * spread / float(np.sqrt((apart**2).sum()))
        scale = 100 / float(start)
        return float(slope) * scale, (float(slope) - reach) * scale, (float(slope) + reach) * scale

    @property
    def throttled_min(self) -> float | None:
        """The minute at which the processors were first throttled; None where they were not, or nobody says."""
        step_min = self.head.window_s / 60
        return next((step_min * (at + 1) for at, each in enumerate(self.windows) if each.throttled), None)


def open_soak(path: Path, head: SoakHead, *, is_seed_said: bool = True) -> list[SoakWindow]:
    """Return the windows that `path` holds; begin it where it is not there, cut a line that was not finished.

    Without `is_seed_said` the seed was drawn for this call, and may be another than the file was begun with.

    Raises InputError for a file that is something else, or was begun with other settings.
    """
    with disk_errors(path):
        if not path.exists() or not path.stat().st_size:
            path.write_bytes(msgspec.json.encode(head) + b"\n")
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.splitlines()
    try:
        begun = msgspec.json.decode(lines[0], type=SoakHead)
        windows = [msgspec.json.decode(line, type=SoakWindow) for line in lines[1:]]
    except (msgspec.MsgspecError, RecursionError, IndexError) as error:
        raise InputError(f"{path} is no file of a soak: {error}; name another") from error
    if not is_seed_said:
        begun = msgspec.structs.replace(begun, spec=msgspec.structs.replace(begun.spec, seed=head.spec.seed))
    if begun != head:
        others = "; ".join(_differences(begun, head))
        raise InputError(f"{path} was begun with other settings: {others}; say the same, or name another file")
    if len(whole) < len(data):
        with disk_errors(path):
            os.truncate(path, len(whole))
    return windows


def _differences(begun: SoakHead, head: SoakHead) -> Iterator[str]:
    """Yield what is not as it was, by the options that say it."""
    before, now = (
        {**msgspec.to_builtins(each), **msgspec.to_builtins(each.spec), **msgspec.to_builtins(each.level)}
        for each in (begun, head)
    )
    for name, value in before.items():
        if name not in ("spec", "level") and value != now[name]:
            words = OPTIONS.get(name, name)
            yield f"{words} {'none' if value is None else value} then, {'none' if now[name] is None else now[name]} now"


def soak(
    client: HttpClient,
    path: Path,
    head: SoakHead,
    minutes: float,
    *,
    is_seed_said: bool = True,
    on_window: Callable[[int, SoakWindow], None],
) -> Soak:
    """Ask until `path` holds `minutes` of load; `on_window` is called with each window and how many there are."""
    windows = open_soak(path, head, is_seed_said=is_seed_said)
    wanted = max(1, round(minutes * 60 / head.window_s))
    if len(windows) < wanted:
        ended: list[LoadAnswer] = []
        lock = threading.Lock()
        # After an interruption no prompt is asked again: it may be cached.
        part = f"window {len(windows)}"

        def work(number: int, is_over: threading.Event) -> None:
            while not is_over.is_set():
                found = ask(client, head.spec, f"{part}/{number}", began_s=0.0, due_s=None, is_over=is_over)
                number += head.level.concurrency
                with lock:
                    ended.append(found)
                if found.error:
                    is_over.wait(1.0)  # a server that refuses is not hammered

        with asking(client, head.level.concurrency) as (pool, is_over):
            for number in range(head.level.concurrency):
                pool.submit(work, number, is_over)
            while len(windows) < wanted:
                before = moment() if head.is_here else None
                time.sleep(head.window_s)
                with lock:
                    taken, ended[:] = list(ended), []
                windows.append(msgspec.structs.replace(_window(taken, before), seed=head.spec.seed))
                _append(path, windows[-1])
                on_window(len(windows), windows[-1])
    return Soak(head=head, windows=tuple(windows))


def _window(ended: Sequence[LoadAnswer], before: EnvironmentSample | None) -> SoakWindow:
    fine = [each for each in ended if not each.error]
    speeds = [
        (each.tokens - 1) / (each.ended_s - each.ttft_s)
        for each in fine
        if each.ttft_s is not None and each.tokens > 1 and each.ended_s > each.ttft_s
    ]
    waits = [each.ttft_s for each in fine if each.ttft_s is not None]
    found = SoakWindow(
        ended_wall_s=round(time.time(), 1),
        answers=len(fine),
        failed=len(ended) - len(fine),
        tokens=sum(each.tokens for each in fine),
        tokens_per_s=float(np.median(speeds)) if speeds else None,
        ttft_s=float(np.median(waits)) if waits else None,
    )
    if before is None:
        return found
    after = moment()
    return msgspec.structs.replace(
        found,
        temperature_c=after.temperature_c,
        clock_mhz=clock_mhz(),
        load_average=after.load_average,
        throttled=throttles(before, after),
    )


def throttles(before: EnvironmentSample, after: EnvironmentSample) -> int:
    """Return how often the processors were slowed between two moments, as far as the kernel or the firmware say."""
    return (after.throttled or 0) - (before.throttled or 0) + bool(after.pi_throttled & PI_NOW)


def _append(path: Path, window: SoakWindow) -> None:
    with disk_errors(path), path.open("ab") as file:
        file.write(msgspec.json.encode(window) + b"\n")
        file.flush()
        os.fsync(file.fileno())
