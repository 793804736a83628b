"""Several processes tune one adapter: each takes its share of every batch, and all of them take the same step.

The loss of a share is divided by what the whole batch has, so that the sum of the shares' gradients is the gradient
that one process would have; a batch is as large as it would be there. Whatever decides something (what is held out,
the precision) is the same in all of them.
"""

import ctypes
import logging
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from fieldlm.core.errors import InputError, UnavailableError
from fieldlm_compiler.learn.tuning.device_choice import choose_device
from fieldlm_compiler.pipeline.step import PR_SET_PDEATHSIG

MEETING = "FIELDLM_TUNE_MEETING"
"""Names the file by which processes that `launch` starts find each other; other launchers have an address."""
LAUNCHER = "FIELDLM_TUNE_LAUNCHER"
"""The process that `launch` ran in."""
# Nobody waits for long for one that died: the launcher ends them all. What takes long is an evaluation.
PATIENCE = timedelta(hours=12)
_T = TypeVar("_T")


class LostError(UnavailableError):
    """Another process of the same tuning has ended, or cannot be reached."""


@dataclass(frozen=True)
class Team:
    """The processes of one tuning, as one of them sees them."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"
    """Where what they tell each other has to lie: cpu or cuda."""

    @property
    def is_main(self) -> bool:
        """Whether this one writes, and says how far it is."""
        return self.rank == 0

    def share(self, work: Sequence[int]) -> list[int]:
        """Return the places of this process's share of a batch whose examples are so much `work`, in tokens."""
        heaviest_first = sorted(range(len(work)), key=lambda at: (-work[at], at))
        return sorted(heaviest_first[self.rank :: self.count])

    def same(self, make: Callable[[], _T]) -> _T:
        """Return, in every process, what `make` returns in the main one."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        found: list[Any] = [make() if self.is_main else None]
        with _together():
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def all_of(self, own: _T) -> list[_T]:
        """Return what each process calls its own, in their order."""
        if self.count == 1:
            return [own]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(found, own)
        return found

    def summed(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes of what each has in the same place."""
        if self.count == 1:
            return [*values]
        import torch
        import torch.distributed as dist

        held = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _together():
            dist.all_reduce(held)
        return held.tolist()

    def sum_gradients(self, parameters: Sequence[Any]) -> None:
        """Add up the gradients of `parameters` over all processes."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        flat = torch.cat([each.flatten() for each in grads])
        with _together():
            dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([each.numel() for each in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def begin_alike(self, parameters: Sequence[Any]) -> None:
        """Put the main process's values into `parameters`."""
        if self.count == 1:
            return
        import torch.distributed as dist

        for parameter in parameters:
            with _together():
                dist.broadcast(parameter.data, src=0)


ALONE = Team()


def is_quiet(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process leaves what is to be said to the main one."""
    return is_member(environment) and environment["RANK"] != "0"


def is_member(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (`launch`, accelerate, torchrun) started this process as one of several."""
    return "RANK" in environment and environment.get("WORLD_SIZE", "1") not in ("", "1")


@contextmanager
def joined(device: str, get_ready: Callable[[], None]) -> Generator[Team]:
    """Belong to the processes that a launcher started, each on a GPU of its own where `device` has them; or be alone.

    `get_ready` is called before PyTorch is imported. All but the main one are silent. Raises InputError where there are
    fewer GPUs than processes, LostError when another process ends.
    """
    if not is_member():
        yield ALONE
        return
    if MEETING in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if str(os.getppid()) != os.environ.get(LAUNCHER):
            raise LostError("the process that started this one has ended")
    get_ready()
    import torch
    import torch.distributed as dist

    rank, count, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on = choose_device(device)
    if on == "cuda":
        if local >= (seen := torch.cuda.device_count()):
            raise InputError(f"there are more processes than GPUs, {seen}; start {seen}, or take --device cpu")
        torch.cuda.set_device(local)
    elif MEETING in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    with _together():
        dist.init_process_group(
            "nccl" if on == "cuda" else "gloo",
            init_method=os.environ.get(MEETING, "env://"),
            rank=rank,
            world_size=count,
            timeout=PATIENCE,
        )
    with _silent(rank > 0):
        yield Team(rank, count, on)
    # One that fails just ends: the others may never come to take leave of it. All work is done here.
    with suppress(RuntimeError):
        dist.destroy_process_group()


@contextmanager
def _silent(is_wanted: bool) -> Generator[None]:
    """Say nothing of what goes on here; errors are raised, and said by whoever catches them."""
    if not is_wanted:
        yield
        return
    logging.disable(logging.WARNING)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _together() -> Generator[None]:
    """Turn what PyTorch raises when another process has gone into LostError; it has no kind of its own for that."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LostError(f"another process of this tuning has ended, or cannot be reached: {first[:200]}") from error
