"""GGUF writer of a mixture: every tensor in its own type, everything else as it was. Runs in a child process.

The size is known before a byte is written: types change nothing in the header.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fieldlm.formats.gguf import Header, read_header
from fieldlm_compiler.export import quantize
from fieldlm_compiler.export.ggml import Bytes, Floats, kind
from fieldlm_compiler.export.ggml import quantize as round_alone
from fieldlm_compiler.export.legal_types import FULL
from fieldlm_compiler.export.quantize import QUANTS
from fieldlm_compiler.pipeline.child import ONE_THREAD, Ran, call
from fieldlm_compiler.search.gptq_rounding import factor, round_rows
from fieldlm_compiler.search.price import PriceWorker, in_processes

ALIGNMENT = 32
FILE_TYPE, VERSION = "general.file_type", "general.quantization_version"


def write(source: Path, statistics: Path, types: Mapping[str, str], target: Path) -> Ran:
    """Write the GGUF `source` to `target` with the given type for each tensor; the answer is a Size."""
    return call(write_file, what="write a mixture", env=ONE_THREAD)(
        source=source,
        statistics=statistics,
        types=dict(types),
        target=target,
    )


def size_bytes(source: Path, types: Mapping[str, str]) -> int:
    """Return the exact size of `source` written with `types`."""
    return resized(read_header(source), source.stat().st_size, types)


def resized(header: Header, total: int, types: Mapping[str, str]) -> int:
    """Return the size of a file of `total` bytes with `header` once its tensors have `types`."""
    for name, tensor in header.tensors.items():
        if name in types:
            to = kind(types[name])
            total += _padded(prod(tensor.shape[1:]) * to.row_bytes(tensor.shape[0])) - _padded(tensor.size)
    return total


def write_file(source: Path, statistics: Path, types: dict[str, str], target: Path) -> dict[str, Any]:
    """Round every tensor and write the file, on all cores."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

    reader = GGUFReader(source)
    writer = GGUFWriter(target, arch=str(_field(reader, "general.architecture")))
    _copy_fields(reader, writer, types)
    plain = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in reader.tensors:
        if types.get(tensor.name, FULL) == FULL:
            writer.add_tensor_info(
                tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, raw_dtype=tensor.tensor_type
            )
        else:
            to = kind(types[tensor.name])
            shape = (*map(int, tensor.shape[:0:-1]), to.row_bytes(int(tensor.shape[0])))
            writer.add_tensor_info(
                tensor.name, shape, np.dtype(np.uint8), prod(shape), raw_dtype=GGMLQuantizationType(to.number)
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rounded = _rounded(source, statistics, {name: each for name, each in types.items() if each != FULL})
    done: dict[str, Bytes] = {}
    for name, tensor in plain.items():
        if types.get(name, FULL) == FULL:
            writer.write_tensor_data(tensor.data)
            continue
        while name not in done:
            finished, blocks = next(rounded)
            done[finished] = blocks
        writer.write_tensor_data(done.pop(name).reshape(*map(int, tensor.shape[:0:-1]), -1))
    writer.close()
    return msgspec.to_builtins(quantize.weigh(Path(target)))


def _copy_fields(reader: Any, writer: Any, types: Mapping[str, str]) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", FILE_TYPE, VERSION):
            continue
        main, sub = field.types[0], (field.types[-1] if len(field.types) > 1 else None)
        writer.add_key_value(field.name, field.contents(), main, sub_type=sub)
    writer.add_file_type(_file_type(types))
    writer.add_quantization_version(2)


def _file_type(types: Mapping[str, str]) -> int:
    """Return the number of the llama.cpp file type that is named after the commonest type."""
    names = list(types.values())
    commonest = max(sorted(set(names)), key=names.count, default=FULL)
    return QUANTS.get(commonest, QUANTS.get(f"{commonest}_M", QUANTS.get(f"{commonest}_S", 1)))


def _field(reader: Any, name: str) -> object:
    return reader.fields[name].contents()


def _rounded(source: Path, statistics: Path, types: Mapping[str, str]) -> Iterator[tuple[str, Bytes]]:
    """Yield each tensor's blocks as workers finish them, in the order of the file."""
    with in_processes(source, statistics) as pool:
        order = [name for name in read_header(Path(source)).tensors if name in types]
        yield from zip(order, pool.map(_round, order, [types[name] for name in order]), strict=True)


def _round(name: str, type_name: str) -> Bytes:
    weights, to = PriceWorker.weights, kind(type_name)
    rows = weights.rows(name).astype(np.float32)
    upper = _factor(PriceWorker.known.source(name))
    return round_alone(rows, to, PriceWorker.known.importance(name)) if upper is None else round_rows(rows, to, upper)


@lru_cache(maxsize=2)
def _factor(name: str) -> Floats | None:
    covariance = PriceWorker.known.covariance(name)
    return None if covariance is None else factor(covariance)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
