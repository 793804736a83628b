"""What each legal type of each tensor costs: bytes exactly, divergence predicted. Runs in a child process.

A tensor's weights are rounded to the type and back by ggml's kernel, and the squared changes weighed with the Fisher
information: ½ Σ r_i c_j ΔW_ij² nats a token, r and c its sums over rows and columns (a Kronecker product of
diagonals). A sample of the rows stands for all, as their share of the same sum over the weights themselves. How much of
that a rounding which repairs itself leaves is tried on a few blocks of each role, against the covariance of the inputs.
"""

import ctypes
import json
import os
import re
import signal
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fieldlm.compiler.child import ONE_THREAD, PR_SET_PDEATHSIG, Ran, call
from fieldlm.compiler.search.calibrate import COLUMNS, COVARIANCE, FISHER, IMATRIX, ROWS, SHARES
from fieldlm.compiler.search.frontier import Option
from fieldlm.compiler.search.ggml import Floats, Kind, dequantize, quantize
from fieldlm.compiler.search.imatrix import read_imatrix
from fieldlm.compiler.search.legal import FULL, is_quantizable, legal_types
from fieldlm.compiler.search.rounding import factor, round_rows

SAMPLED_ROWS = 256
TRIED_ROWS = 64
TRIED_BLOCKS = 2
BLOCK_NUMBER = re.compile(r"blk\.\d+\.")
Options = dict[str, list[Option]]


def price(gguf: Path, statistics: Path, isa: Sequence[str]) -> Ran:
    """Return the options of every tensor of `gguf`: type, bytes, predicted divergence."""
    return call(
        "fieldlm.compiler.search.price:price_all",
        what="price every type of every tensor",
        env=ONE_THREAD,
        gguf=gguf,
        statistics=statistics,
        isa=list(isa),
    )


def price_all(gguf: str, statistics: str, isa: list[str]) -> dict[str, list[tuple[str, int, float]]]:
    """Price every legal type of every matrix in `gguf`."""
    from gguf import GGUFReader

    tensors = [tensor for tensor in GGUFReader(gguf).tensors if is_quantizable(tensor.name, tuple(tensor.shape))]
    with in_processes(gguf, statistics) as pool:
        gains = _gains(tensors, pool, isa)
        asked = [(tensor.name, gains[role(tensor.name)], isa) for tensor in tensors]
        priced = pool.map(_price_one, *zip(*asked, strict=True)) if asked else ()
        return {name: options for (name, _, _), options in zip(asked, priced, strict=True)}


def _price_one(name: str, gains: dict[str, float], isa: list[str]) -> list[tuple[str, int, float]]:
    return _options(Worker.tensors[name], Worker.known, gains, isa)


@contextmanager
def in_processes(gguf: str, statistics: str) -> Generator[ProcessPoolExecutor]:
    """Give work to as many processes as there are cores, each with `gguf` and `statistics` open as `Worker` has them.

    They end with this process, whatever ends it.
    """
    context = get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), context, _begin, (gguf, statistics, os.getpid())) as pool:
        yield pool


def _begin(gguf: str, statistics: str, parent: int) -> None:
    from gguf import GGUFReader

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    Worker.tensors = {tensor.name: tensor for tensor in GGUFReader(gguf).tensors}
    Worker.known = Statistics(Path(statistics))


class Worker:
    """What each process holds open."""

    tensors: dict[str, Any]
    known: "Statistics"


class Statistics:
    """What calibration wrote, read as it is asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._fisher = safe_open(folder / FISHER, framework="numpy")
        self._covariance = safe_open(folder / COVARIANCE, framework="numpy")
        self._shared: dict[str, str] = json.loads((folder / SHARES).read_bytes())
        self._names = {*self._fisher.keys(), *self._covariance.keys()}
        self._folder = folder

    @cached_property
    def _imatrix(self) -> Any:
        return read_imatrix(self._folder / IMATRIX)

    def importance(self, name: str) -> Floats | None:
        """Return the mean squared input of each column of `name`."""
        return self._imatrix.mean(name)

    def covariance(self, name: str) -> Floats | None:
        """Return the covariance [columns, columns] of the inputs of `name`, or None where it was too large to keep."""
        found = self._shared.get(name, name)
        return self._covariance.get_tensor(found) if found in self._names else None

    def source(self, name: str) -> str:
        """Return the tensor whose inputs `name` shares."""
        return self._shared.get(name, name)

    def fisher(self, name: str) -> tuple[Floats, Floats]:
        """Return r [rows] and c [columns], whose product r_i c_j is the Fisher information of a weight a token."""
        if name + ROWS not in self._names:
            return np.zeros(1, np.float32), np.zeros(1, np.float32)
        rows, columns = self._fisher.get_tensor(name + ROWS), self._fisher.get_tensor(name + COLUMNS)
        return rows / max(float(columns.sum()), 1e-30), columns


def role(name: str) -> str:
    """Return `name` without the number of its block."""
    return BLOCK_NUMBER.sub("", name)


def _options(tensor: Any, known: Statistics, gains: dict[str, float], isa: list[str]) -> list[tuple[str, int, float]]:
    columns, count = int(tensor.shape[0]), int(np.prod(tensor.shape[1:]))
    step = max(1, count // SAMPLED_ROWS)
    data = tensor.data.reshape(count, -1)
    r, c = known.fisher(tensor.name)
    if len(c) != columns:
        r, c = np.zeros(count, np.float32), np.zeros(columns, np.float32)
    if len(r) != count or _is_permuted(tensor.name):
        r = np.full(count, r.mean(), np.float32)
    sample = data[::step].astype(np.float32)
    mass = float(r[::step] @ (np.square(sample) @ c))
    whole = sum(
        float(r[at : at + 4096] @ (np.square(data[at : at + 4096].astype(np.float32)) @ c))
        for at in range(0, count, 4096)
    )
    options: list[tuple[str, int, float]] = []
    for to in legal_types(columns, isa):
        changed = np.square(_there_and_back(sample, to, known.importance(tensor.name)) - sample)
        share = float(r[::step] @ (changed @ c)) / mass if mass else 0.0
        options.append((to.name, count * to.row_bytes(columns), 0.5 * whole * share * gains.get(to.name, 1.0)))
    return options


def _there_and_back(rows: Floats, to: Kind, importance: Floats | None) -> Floats:
    if to.name == FULL:
        return rows.astype(np.float16).astype(np.float32)
    return dequantize(quantize(rows, to, importance), to)


def _is_permuted(name: str) -> bool:
    """Say whether llama.cpp's converter may have put the rows of `name` in another order than the checkpoint's."""
    return ".attn_q." in name or ".attn_k." in name


def _gains(tensors: Sequence[Any], pool: ProcessPoolExecutor, isa: list[str]) -> dict[str, dict[str, float]]:
    """Return for each role and type the share of the loss that repaired rounding leaves, over a few blocks."""
    roles: dict[str, list[Any]] = {}
    for tensor in tensors:
        roles.setdefault(role(tensor.name), []).append(tensor)
    tried = {
        name: members[len(members) // (2 * TRIED_BLOCKS) :: max(1, len(members) // TRIED_BLOCKS)][:TRIED_BLOCKS]
        for name, members in roles.items()
    }
    lost = {name: [pool.submit(_losses, tensor.name, isa) for tensor in members] for name, members in tried.items()}
    gains: dict[str, dict[str, float]] = {}
    for name, waiting in lost.items():
        losses = [loss for each in waiting if (loss := each.result())]
        gains[name] = {each: float(np.mean([loss[each] for loss in losses])) for each in (losses[0] if losses else ())}
    return gains


def _losses(name: str, isa: list[str]) -> dict[str, float]:
    tensor, covariance = Worker.tensors[name], Worker.known.covariance(name)
    if covariance is None:
        return {}
    data = tensor.data.reshape(-1, tensor.data.shape[-1])
    rows = data[:: max(1, len(data) // TRIED_ROWS)].astype(np.float32)
    upper, importance = factor(covariance), np.ascontiguousarray(np.diag(covariance))
    shares: dict[str, float] = {}
    for to in legal_types(rows.shape[1], isa):
        if to.name == FULL:
            continue
        plain = _there_and_back(rows, to, importance) - rows
        repaired = dequantize(round_rows(rows, to, upper), to) - rows
        loss = [float(np.sum((change @ covariance) * change)) for change in (plain, repaired)]
        shares[to.name] = min(1.0, loss[1] / loss[0]) if loss[0] else 1.0
    return shares
