"""Quantise, sixteen bits to fewer, by llama.cpp's own quantiser, the build the device's engine comes from."""

import ctypes
from pathlib import Path
from typing import Any, cast

import msgspec

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines.llama_kernels import load_kernels
from fieldlm.formats.gguf import FILE_TYPES, Header, read_header
from fieldlm_compiler.pipeline.child import Ran, call

NUMBERS = {name: number for number, name in FILE_TYPES.items()}
# llama.cpp file type → its number, of those that are made here
QUANTS = {
    name: NUMBERS[name]
    for name in (
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
        "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K",
    )
}  # fmt: skip
# These put most tensors into types that llama.cpp refuses to write without an importance matrix.
NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
SMALLEST_BLOCK = 32


class WeightsSize(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF weighs: bytes, bits for each weight, and how many tensors have which type."""

    bytes: int
    bits_per_weight: float
    tensors: dict[str, int]


def check_quant(quant: str) -> str:
    """Return `quant` in capitals; raises InputError for a type that does not exist or cannot be made here."""
    name = quant.upper()
    if name in NEED_IMATRIX:
        raise InputError(f"{name} needs an importance matrix, which is not made yet; take one of: {', '.join(QUANTS)}")
    if name not in QUANTS:
        raise InputError(f"there is no quantisation {quant!r}; take one of: {', '.join(QUANTS)}")
    return name


def check_shapes(source: Path, quant: str) -> None:
    """Raise InputError when `quant` cannot hold the tensors of the GGUF `source`: blocks have 32 or 256 weights."""
    if QUANTS[quant] in (0, 1, 32):
        return
    from fieldlm_compiler.export.legal_types import is_quantizable

    header = read_header(source)
    for name, tensor in header.tensors.items():
        row = tensor.shape[0]
        if is_quantizable(name, tensor.shape, header.architecture) and row % SMALLEST_BLOCK:
            raise InputError(
                f"{quant} cannot hold {name}: its rows have {row} weights, "
                f"blocks need a multiple of {SMALLEST_BLOCK}; take F16"
            )


def quantize(source: Path, target: Path, quant: str, *, threads: int = 0, imatrix: Path | None = None) -> Ran:
    """Write the GGUF `source` to `target` as `quant`, in a child process; its answer is a Size.

    An importance matrix in llama.cpp's GGUF form, `imatrix`, weighs the columns, as `llama-quantize --imatrix` does.
    Raises InputError when the type is unknown or does not fit the tensors.
    """
    name = check_quant(quant)
    check_shapes(source, name)
    return call(quantize_file, what=f"quantise to {name}")(
        source=source,
        target=target,
        ftype=QUANTS[name],
        threads=threads,
        imatrix=imatrix,
    )


def quantize_file(source: Path, target: Path, ftype: int, threads: int, imatrix: Path | None) -> dict[str, Any]:
    """Call llama_model_quantize. Runs in a child process: a tensor type it dislikes ends the process."""
    import llama_cpp

    load_kernels()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, threads
    rows = _importance(imatrix) if imatrix else None
    if rows is not None:
        params.imatrix = rows
    code = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.pointer(params))
    if code != 0:
        raise EngineError(f"llama.cpp could not quantise {source.name} to {target} (code {code})")
    return msgspec.to_builtins(weigh(target))


def _importance(path: Path) -> Any:
    """Return llama_model_quantize's importance argument: means by weight, ended by one without a name."""
    import llama_cpp

    from fieldlm_compiler.export.imatrix import read_imatrix

    matrix = read_imatrix(path)
    means = {name: mean for name in matrix.sums if (mean := matrix.mean(name)) is not None}
    rows = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    for row, (name, mean) in zip(rows, means.items(), strict=False):
        row.name = name.encode()
        row.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        row.size = mean.size
    # ctypes keeps the addresses of the arrays, not the arrays.
    cast(Any, rows).kept = means
    return rows


def weigh(path: Path) -> WeightsSize:
    """Measure the GGUF at `path`."""
    header = read_header(path)
    return WeightsSize(
        bytes=path.stat().st_size,
        bits_per_weight=round(8 * header.weight_bytes / header.parameters, 3),
        tensors=_types(header),
    )


def file_type(path: Path) -> str | None:
    """Return the name of the file type that the GGUF at `path` claims, or None for one we do not make."""
    number = read_header(path).metadata.get("general.file_type")
    return next((name for name, value in QUANTS.items() if value == number), None)


def _types(header: Header) -> dict[str, int]:
    from gguf import GGMLQuantizationType

    counts: dict[str, int] = {}
    for tensor in header.tensors.values():
        name = GGMLQuantizationType(tensor.type).name
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
