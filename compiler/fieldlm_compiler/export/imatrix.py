"""Importance matrices in llama.cpp's format: for each column of each weight, the sum of its squared inputs.

Sums add: many devices can send theirs instead of text. The layout is that of llama.cpp's tools/imatrix/imatrix.cpp:
`<weight>.in_sum2` and `<weight>.counts`, both F32, and three `imatrix.*` fields.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fieldlm.core.errors import InputError
from fieldlm_compiler.export.ggml import Floats

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, kw_only=True)
class Imatrix:
    """`sums[weight]` [columns] over `counts[weight]` tokens of `datasets`, in chunks of `chunk`."""

    sums: Mapping[str, Floats]
    counts: Mapping[str, float]
    datasets: tuple[str, ...] = ()
    chunk: int = 256

    def mean(self, weight: str) -> Floats | None:
        """Return the mean squared input [columns] of `weight`, or None when it was never used."""
        count = self.counts.get(weight, 0.0)
        return (self.sums[weight] / count).astype(np.float32) if count else None


def add(matrices: Iterable[Imatrix]) -> Imatrix:
    """Return the sum of `matrices`; raises InputError when they belong to models of other shapes."""
    sums: dict[str, Floats] = {}
    counts: dict[str, float] = {}
    datasets: list[str] = []
    chunk = 256
    for matrix in matrices:
        for name, more in matrix.sums.items():
            if name in sums and sums[name].shape != more.shape:
                raise InputError(
                    f"the importance matrices disagree about {name}: {sums[name].size}, {more.size} columns"
                )
            sums[name] = sums[name] + more if name in sums else more
            counts[name] = counts.get(name, 0.0) + matrix.counts[name]
        datasets += matrix.datasets
        chunk = matrix.chunk
    return Imatrix(sums=sums, counts=counts, datasets=tuple(dict.fromkeys(datasets)), chunk=chunk)


def write_imatrix(matrix: Imatrix, path: Path) -> None:
    """Write `matrix` to the GGUF file `path`, which `llama-quantize --imatrix` reads."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, arch="imatrix")
    # The writer names an architecture, which an importance matrix has not.
    for fields in writer.kv_data:
        fields.pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(matrix.datasets) or ["unnamed"])
    writer.add_uint32("imatrix.chunk_count", max(1, round(max(matrix.counts.values(), default=0) / matrix.chunk)))
    writer.add_uint32("imatrix.chunk_size", matrix.chunk)
    for name in sorted(matrix.sums):
        writer.add_tensor(name + SUMS, matrix.sums[name].astype(np.float32)[None, :])
        writer.add_tensor(name + COUNTS, np.array([[matrix.counts[name]]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read the importance matrix at `path`; raises InputError when it is none, or holds no sums."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        kind = reader.get_field("general.type")
        tensors = {tensor.name: np.array(tensor.data, np.float32).reshape(-1) for tensor in reader.tensors}
        names = reader.get_field("imatrix.datasets")
        chunk = reader.get_field("imatrix.chunk_size")
    except (ValueError, IndexError, OverflowError, OSError) as error:
        raise InputError(
            f"{path} is no importance matrix: {error}; make one with llama-imatrix or --calibration TEXT"
        ) from error
    weights = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if kind is None or kind.contents() != "imatrix" or not weights:
        raise InputError(f"{path} is a GGUF file without an importance matrix; name one that llama-imatrix wrote")
    # A mixture of experts has a row of sums for each expert; its experts are weighed alike here.
    counts = {name: float(tensors[name + COUNTS].sum()) for name in weights if name + COUNTS in tensors}
    return Imatrix(
        sums={name: tensors[name + SUMS] for name in counts},
        counts=counts,
        datasets=tuple(names.contents()) if names else (),
        chunk=int(chunk.contents()) if chunk else 256,
    )
