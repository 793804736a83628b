"""ONNX writer of a mixture: every product in its own type. Runs in a child process."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fieldlm_compiler.export.ggml import Floats
from fieldlm_compiler.export.onnx_graph import count_floats
from fieldlm_compiler.pipeline.child import ONE_THREAD, Ran, call
from fieldlm_compiler.search.gptq_rounding import factor
from fieldlm_compiler.search.onnx_blocks import WHOLE, Rounded, nbits
from fieldlm_compiler.search.onnx_weights import WEIGHTS, OnnxWeights
from fieldlm_compiler.search.price import PriceWorker, in_processes


def write(source: Path, statistics: Path, types: Mapping[str, str], folder: Path, *, accuracy_level: int) -> Ran:
    """Write the graph `source` to `folder` with the given type for each matrix; the answer says what came of it."""
    return call(write_files, what="write a mixture", env=ONE_THREAD)(
        source=source,
        statistics=statistics,
        types=dict(types),
        folder=folder,
        accuracy_level=accuracy_level,
    )


def write_files(
    source: Path, statistics: Path, types: dict[str, str], folder: Path, *, accuracy_level: int
) -> dict[str, Any]:
    """Round every matrix and write graph and weights, on all cores."""
    weights = OnnxWeights(source)
    model, placed = weights.retyped(types, accuracy_level)
    graph, data = folder / source.name, folder / WEIGHTS
    rounded = _rounded(source, statistics, {name: types[name] for name in weights.names if types[name] != WHOLE})
    current: tuple[str, Rounded | None] = ("", None)
    with data.open("wb") as file:
        for each in placed:
            file.write(bytes(each.offset - file.tell()))
            if not each.matrix:
                file.write(weights.kept(each))
                continue
            while current[0] != each.matrix:
                current = next(rounded)
            file.write(np.ascontiguousarray(getattr(current[1], each.piece)).data)
        assert file.tell() == placed[-1].offset + placed[-1].length, "sizes are known before anything is written"
    graph.write_bytes(model.SerializeToString(deterministic=True))
    sizes = [path.stat().st_size for path in (graph, data)]
    return {
        "bytes": sum(sizes),
        "bits_per_weight": round(8 * sum(sizes) / count_floats(weights.model), 3),
        "tensors": {each: list(types.values()).count(each) for each in sorted(set(types.values()))},
    }


def _rounded(source: Path, statistics: Path, types: Mapping[str, str]) -> Iterator[tuple[str, Rounded]]:
    """Yield each matrix as workers finish it, in the order of `types`."""
    with in_processes(source, statistics) as pool:
        yield from zip(types, pool.map(_round, types, types.values()), strict=True)


def _round(name: str, type_name: str) -> Rounded:
    to, known = nbits(type_name), PriceWorker.known
    rows, part = PriceWorker.weights.rows(name), PriceWorker.weights.parts(name)[0]
    upper = _factor(known.source(part.name))
    if upper is not None:
        return to.round(rows, (1.0 / np.square(np.diag(upper))).astype(np.float32), upper)
    importance = known.importance(part.name)
    return to.round(rows, np.ones(rows.shape[1], np.float32) if importance is None else importance, None)


@lru_cache(maxsize=2)
def _factor(name: str) -> Floats | None:
    covariance = PriceWorker.known.covariance(name)
    return None if covariance is None else factor(covariance)
