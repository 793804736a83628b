"""ggml kernels: rows of weights to blocks and back, one type at a time.

They are those of the build that serves, so what is priced here is what the device will compute with.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One ggml type: its number, the weights in a block and the bytes that block takes."""

    name: str
    number: int
    block: int
    block_bytes: int

    @property
    def bits(self) -> float:
        """Bits for each weight."""
        return 8 * self.block_bytes / self.block

    def holds(self, columns: int) -> bool:
        """Say whether rows of `columns` weights are whole blocks."""
        return columns % self.block == 0

    def row_bytes(self, columns: int) -> int:
        return columns // self.block * self.block_bytes


@cache
def kind(name: str) -> Kind:
    """Return the ggml type `name`, such as Q4_K; raises KeyError for one that does not exist."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    number = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[number]
    return Kind(name=name, number=int(number), block=block, block_bytes=size)


class _Traits(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    ]


@cache
def _library() -> Any:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(path for path in sorted(folder.iterdir()) if "ggml-base" in path.name)))
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library


def quantize(rows: Floats, to: Kind, importance: Floats | None = None) -> Bytes:
    """Return `rows` [n, columns] as blocks [n, bytes]; `importance` [columns] weighs the squared errors.

    `columns` must be whole blocks: ggml ends the process otherwise.
    """
    assert to.holds(rows.shape[1]), f"{to.name} cannot hold rows of {rows.shape[1]}"
    source = np.ascontiguousarray(rows, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    blocks = np.empty((len(source), to.row_bytes(source.shape[1])), np.uint8)
    _library().ggml_quantize_chunk(
        to.number,
        source.ctypes.data,
        blocks.ctypes.data,
        0,
        *source.shape,
        None if weights is None else weights.ctypes.data,
    )
    return blocks


def dequantize(blocks: Bytes, of: Kind) -> Floats:
    """Return the weights [n, columns] that `blocks` [n, bytes] stand for."""
    rows = np.empty((len(blocks), blocks.shape[1] // of.block_bytes * of.block), np.float32)
    traits = _library().ggml_get_type_traits(of.number).contents
    to_float = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(traits.to_float)
    to_float(np.ascontiguousarray(blocks).ctypes.data, rows.ctypes.data, rows.size)
    return rows
