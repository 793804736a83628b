"""Resumable training state: what a long tuning run has reached, on the disk, and the memory it works in."""

import ctypes
import io
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fieldlm.core.files import canonical_json, sha256_bytes, write_whole
from fieldlm.core.logs import logger
from fieldlm.hardware.heap import trim
from fieldlm_compiler.learn.tuning.processes.team import ALONE, Team

log = logger(__name__)

EVERY_S = 60.0
LOOK_S = 30.0
"""How often a step is tried with the other number of threads, at first."""
FAR, MOST_LOOKS = 2.0, 8.0
"""How many times slower a look has to be for the next one to come in twice the time, and how many LOOK_S at most."""
# What GNU OpenMP and PyTorch read once, before their first step: how often a thread looks if the others are done
# before it sleeps (for ever: all stand still whenever a neighbour takes a core; never: waking up costs a fifth),
# and whether tensors are asked for in huge pages.
SETTINGS = {"GOMP_SPINCOUNT": "20000", "THP_MEM_ALLOC_ENABLE": "1"}
# mallopt(3): parameters of glibc's malloc, and what they are by default
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
DEFAULT_THRESHOLD = 128 * 1024
LARGE = 1 << 30


class TuningRun:
    """The losses so far, and what it takes to go on from there. Kept in `folder`, for exactly these `sources`.

    Of several processes the main one of `team` keeps it, and all go on from what it finds.
    """

    def __init__(self, folder: Path, sources: Mapping[str, Any], keep_every_s: float, team: Team = ALONE) -> None:
        self.losses: list[float] = []
        self.worst: list[list[float]] = []
        """For each step, the greatest loss of a token that each of its examples had."""
        self.passes: list[dict[str, Any]] = []
        """How each pass did on what is held out, where that is looked at."""
        self.best: dict[str, Any] = {}
        """The adapter after the best of them."""
        self.seconds = 0.0
        self._path = folder / f"{sha256_bytes(canonical_json(dict(sources)))[:20]}.pt"
        self._team = team
        self._every_s = keep_every_s
        self._kept_s = time.monotonic()

    def restore(self, model: Any, optimiser: Any) -> None:
        """Put `model` and `optimiser` back to where an interrupted run was, if there was one."""
        import torch
        from peft import set_peft_model_state_dict

        def find() -> dict[str, Any] | None:
            # Other processes have other GPUs; each puts it where its own model is.
            return torch.load(self._path, map_location="cpu", weights_only=True) if self._path.exists() else None

        kept = self._team.same(find)
        if kept is None:
            return
        set_peft_model_state_dict(model, kept["adapter"])
        optimiser.load_state_dict(kept["optimiser"])
        self.losses, self.worst, self.seconds = kept["losses"], kept["worst"], kept["seconds"]
        self.passes, self.best = kept.get("passes", []), kept.get("best", {})
        log.info(f"  going on after step {len(self.losses)}")

    def add(self, loss: float, seconds: float, worst: list[float]) -> None:
        self.losses.append(loss)
        self.worst.append(worst)
        self.seconds += seconds

    def keep(self, model: Any, optimiser: Any) -> None:
        """Write down where the run is, now and then."""
        if time.monotonic() - self._kept_s < self._every_s or not self._team.is_main:
            return
        import torch
        from peft import get_peft_model_state_dict

        data = io.BytesIO()
        kept: dict[str, Any] = {"adapter": get_peft_model_state_dict(model), "optimiser": optimiser.state_dict()}
        kept |= {"losses": self.losses, "worst": self.worst, "seconds": self.seconds}
        torch.save({**kept, "passes": self.passes, "best": self.best}, data)
        write_whole(self._path, data.getvalue())
        self._kept_s = time.monotonic()

    def forget(self) -> None:
        shutil.rmtree(self._path.parent, ignore_errors=True)


class ThreadChoice:
    """How many threads a step takes: one, or all that PyTorch would. Measured now and then, because neighbours come.

    Threads wait for each other many times a step. Beside a busy neighbour one of them always stands still, and two are
    several times slower than one. So each look that finds the others FAR slower makes the next one come later.
    """

    def __init__(self, *, is_needed: bool = True, look_s: float = LOOK_S) -> None:
        import torch

        self._most = torch.get_num_threads()
        self._counts = sorted({1, self._most}) if is_needed else []
        self._look_s = self._usual_look_s = look_s
        self._took_s: dict[int, float] = {}
        self._looked_s = -look_s

    @contextmanager
    def step(self, work: int) -> Generator[int]:
        """Yield the number of threads that are set for a step of `work` tokens; the step is timed."""
        import torch

        count = self._next()
        if count is None:
            yield torch.get_num_threads()
            return
        torch.set_num_threads(count)
        started_s = time.monotonic()
        yield count
        self.took(count, (time.monotonic() - started_s) / max(1, work))

    def took(self, count: int, seconds: float) -> None:
        """Remember what a token took with `count` threads, in seconds."""
        self._took_s[count] = seconds
        best = min(self._took_s.values())
        if seconds > best:  # that was a look
            longer = min(2 * self._look_s, MOST_LOOKS * self._usual_look_s)
            self._look_s = longer if seconds > FAR * best else self._usual_look_s

    @contextmanager
    def restored(self) -> Generator[None]:
        """Leave PyTorch's threads as they were."""
        import torch

        try:
            yield
        finally:
            torch.set_num_threads(self._most)

    def _next(self) -> int | None:
        if len(self._counts) < 2:
            return None
        new = [count for count in self._counts if count not in self._took_s]
        if new:
            self._looked_s = time.monotonic()
            return new[0]
        best = min(self._counts, key=self._took_s.__getitem__)
        if time.monotonic() - self._looked_s < self._look_s:
            return best
        self._looked_s = time.monotonic()
        return next(count for count in self._counts if count != best)


def prepare() -> None:
    """Choose how PyTorch waits and takes memory; works in a process that has not imported it yet."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextmanager
def kept_memory() -> Generator[None]:
    """Let this process keep the memory it frees: a step allocates what the one before it let go of.

    With pages given back and taken anew a step is a tenth slower. Only glibc knows these settings; elsewhere nothing
    happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LARGE)
    mallopt(M_TRIM_THRESHOLD, LARGE)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, DEFAULT_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, DEFAULT_THRESHOLD)
        trim()
