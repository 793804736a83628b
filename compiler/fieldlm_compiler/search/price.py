"""Sensitivity, what each legal type of each tensor costs: bytes exactly, divergence predicted. Runs in a child process.

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

from fieldlm.hardware.cores import physical_cores
from fieldlm_compiler.export.ggml import Floats
from fieldlm_compiler.export.imatrix import read_imatrix
from fieldlm_compiler.pipeline.child import ONE_THREAD, Ran, call
from fieldlm_compiler.pipeline.step import PR_SET_PDEATHSIG
from fieldlm_compiler.search.calibrate import COLUMNS, COVARIANCE, FISHER, IMATRIX, ROWS, SHARES
from fieldlm_compiler.search.gptq_rounding import factor
from fieldlm_compiler.search.searchable import open_weights
from fieldlm_compiler.search.weights import RowSlice, Weights, WeightType

SAMPLED_ROWS = 256
TRIED_ROWS = 64
TRIED_BLOCKS = 2
# A matrix of which calibration knows nothing gets this many bits a weight or more: unknown is not free.
SAFE_BITS = 8
BLOCK_NUMBER = re.compile(r"blk\.\d+\.")


def price(weights: Path, statistics: Path, isa: Sequence[str]) -> Ran:
    """Return the options of every matrix of the GGUF or ONNX file `weights`: type, bytes, predicted divergence."""
    return call(price_all, what="price every type of every tensor", env=ONE_THREAD)(
        weights=weights,
        statistics=statistics,
        isa=list(isa),
    )


def price_all(weights: Path, statistics: Path, isa: list[str]) -> dict[str, list[tuple[str, int, float | None]]]:
    """Price every legal type of every matrix in `weights`; None for one that calibration knows nothing of.

    Such a matrix, an expert that no text reached for one, has types of SAFE_BITS or more only.
    """
    names = open_weights(weights).names
    with in_processes(weights, statistics) as pool:
        gains = _gains(names, pool, isa)
        asked = [(name, gains[role(name)], isa) for name in names]
        priced = pool.map(_options, *zip(*asked, strict=True)) if asked else ()
        return {name: options for (name, _, _), options in zip(asked, priced, strict=True)}


@contextmanager
def in_processes(weights: Path, statistics: Path) -> Generator[ProcessPoolExecutor]:
    """Give work to as many processes as there are cores, each with both open as `Worker` has them.

    They end with this process, whatever ends it.
    """
    context = get_context("fork")
    with ProcessPoolExecutor(physical_cores(), context, _begin, (weights, statistics, os.getpid())) as pool:
        yield pool


def _begin(weights: Path, statistics: Path, parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    PriceWorker.weights = open_weights(Path(weights))
    PriceWorker.known = Statistics(statistics)


class PriceWorker:
    """What each process holds open."""

    weights: Weights
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

    def fisher(self, name: str) -> tuple[Floats, Floats] | None:
        """Return r [rows] and c [columns], whose product r_i c_j is the Fisher information of a weight a token.

        None where nothing is known.
        """
        if name + ROWS not in self._names:
            return None
        rows, columns = self._fisher.get_tensor(name + ROWS), self._fisher.get_tensor(name + COLUMNS)
        return rows / max(float(columns.sum()), 1e-30), columns


def role(name: str) -> str:
    """Return `name` without the number of its block."""
    return BLOCK_NUMBER.sub("", name)


def _options(name: str, gains: dict[str, float], isa: list[str]) -> list[tuple[str, int, float | None]]:
    weights = PriceWorker.weights
    rows, ways = weights.rows(name), weights.ways(name, isa)
    count, columns = rows.shape
    each_lost = [_lost(rows[part.first : part.last], part, ways) for part in weights.parts(name)]
    known = [lost for lost in each_lost if lost is not None]
    if len(known) < len(each_lost):
        sizes = [(way.name, way.size(count, columns)) for way in ways]
        return [(way, size, None) for way, size in sizes if size * 8 >= SAFE_BITS * count * columns]
    lost = np.sum(known, axis=0)
    return [
        (way.name, way.size(count, columns), float(loss) * gains.get(way.name, 1.0))
        for way, loss in zip(ways, lost, strict=True)
    ]


def _lost(data: Any, part: RowSlice, ways: Sequence[WeightType]) -> list[float] | None:
    """Return the divergence that each of `ways` costs the rows `data` of `part` when they are rounded one by one.

    None where calibration knows nothing of them, or no text reached them.
    """
    count, columns = data.shape
    step = max(1, count // SAMPLED_ROWS)
    known = PriceWorker.known.fisher(part.name)
    if known is None or len(known[1]) != columns:
        return None
    r, c = known
    if len(r) != count or part.is_permuted:
        r = np.full(count, r.mean(), np.float32)
    sample = np.ascontiguousarray(data[::step], np.float32)
    mass = float(r[::step] @ (np.square(sample) @ c))
    whole = sum(
        float(r[at : at + 4096] @ (np.square(data[at : at + 4096].astype(np.float32)) @ c))
        for at in range(0, count, 4096)
    )
    if not whole or not mass:
        return None
    importance = PriceWorker.known.importance(part.name)
    changes = [np.square(way.alone(sample, importance) - sample) for way in ways]
    return [0.5 * whole * float(r[::step] @ (changed @ c)) / mass for changed in changes]


def _gains(names: Sequence[str], pool: ProcessPoolExecutor, isa: list[str]) -> dict[str, dict[str, float]]:
    """Return for each role and type the share of the loss that repaired rounding leaves, over a few blocks."""
    roles: dict[str, list[str]] = {}
    for name in names:
        roles.setdefault(role(name), []).append(name)
    tried = {
        each: members[len(members) // (2 * TRIED_BLOCKS) :: max(1, len(members) // TRIED_BLOCKS)][:TRIED_BLOCKS]
        for each, members in roles.items()
    }
    lost = {each: [pool.submit(_losses, name, isa) for name in members] for each, members in tried.items()}
    gains: dict[str, dict[str, float]] = {}
    for each, waiting in lost.items():
        losses = [loss for one in waiting if (loss := one.result())]
        gains[each] = {way: float(np.mean([loss[way] for loss in losses])) for way in (losses[0] if losses else ())}
    return gains


def _losses(name: str, isa: list[str]) -> dict[str, float]:
    weights = PriceWorker.weights
    covariance = PriceWorker.known.covariance(weights.parts(name)[0].name)
    if covariance is None:
        return {}
    data = weights.rows(name)
    rows = np.ascontiguousarray(data[:: max(1, len(data) // TRIED_ROWS)], np.float32)
    upper, importance = factor(covariance), np.ascontiguousarray(np.diag(covariance))
    shares: dict[str, float] = {}
    for way in weights.ways(name, isa):
        loss = [
            float(np.sum((change @ covariance) * change))
            for change in (way.alone(rows, importance) - rows, way.repaired(rows, upper) - rows)
        ]
        shares[way.name] = min(1.0, loss[1] / loss[0]) if loss[0] else 1.0
    return shares
