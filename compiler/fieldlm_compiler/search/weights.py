"""What the search needs to know of full weights, whatever file they are in: matrices, and the types they may have.

A product that several matrices were joined into has one type for all, so it is one name with several parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fieldlm_compiler.export.ggml import Floats, Kind, dequantize, quantize
from fieldlm_compiler.export.legal_types import FULL, is_quantizable, legal_types
from fieldlm_compiler.search.gptq_rounding import round_rows


class WeightType(Protocol):
    """One type of weights: how rows come back from it."""

    @property
    def name(self) -> str: ...

    def size(self, rows: int, columns: int) -> int:
        """Return the bytes of a matrix of so many rows and columns."""
        ...

    def alone(self, rows: Floats, importance: Floats | None) -> Floats:
        """Return `rows` [n, columns] rounded one by one, squared errors weighed by `importance` [columns]."""
        ...

    def repaired(self, rows: Floats, upper: Floats) -> Floats:
        """Return `rows` [n, columns] rounded for inputs whose `rounding.factor` is `upper`."""
        ...


@dataclass(frozen=True)
class RowSlice:
    """Rows `first` to `last` of a matrix, by the name that calibration knows them by.

    Where the file may have them in another order than the checkpoint, only sums over rows mean anything.
    """

    name: str
    first: int
    last: int
    is_permuted: bool = False


class Weights(Protocol):
    """The matrices of one artefact that may be given other types."""

    @property
    def names(self) -> Sequence[str]: ...

    def rows(self, name: str) -> Any:
        """Return the matrix `name` [rows, columns] as floats of any width, read from the file as it is used."""
        ...

    def parts(self, name: str) -> Sequence[RowSlice]: ...

    def ways(self, name: str, isa: Sequence[str]) -> Sequence[WeightType]:
        """Return the types that `name` may have on a device with `isa`, the one it has now among them."""
        ...


@dataclass(frozen=True)
class Ggml:
    """One ggml type, rounded to by its own kernel."""

    kind: Kind

    @property
    def name(self) -> str:
        return self.kind.name

    def size(self, rows: int, columns: int) -> int:
        return rows * self.kind.row_bytes(columns)

    def alone(self, rows: Floats, importance: Floats | None) -> Floats:
        if self.name == FULL:
            return rows.astype(np.float16).astype(np.float32)
        return dequantize(quantize(rows, self.kind, importance), self.kind)

    def repaired(self, rows: Floats, upper: Floats) -> Floats:
        if self.name == FULL:
            return self.alone(rows, None)
        return dequantize(round_rows(rows, self.kind, upper), self.kind)


class GgufWeights:
    """The matrices of a GGUF file that llama.cpp would quantise."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        architecture = reader.get_field("general.architecture")
        self._architecture = str(architecture.contents()) if architecture else ""
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def names(self) -> Sequence[str]:
        return [
            name
            for name, tensor in self._tensors.items()
            if is_quantizable(name, tuple(map(int, tensor.shape)), self._architecture)
        ]

    def tensor(self, name: str) -> Any:
        return self._tensors[name]

    def rows(self, name: str) -> Any:
        data: Any = self._tensors[name].data
        return data.reshape(-1, data.shape[-1])

    def parts(self, name: str) -> Sequence[RowSlice]:
        # llama.cpp's converter may have put the rows of queries and keys in another order.
        is_permuted = ".attn_q." in name or ".attn_k." in name
        return (RowSlice(name, 0, len(self.rows(name)), is_permuted),)

    def ways(self, name: str, isa: Sequence[str]) -> Sequence[WeightType]:
        return [Ggml(each) for each in legal_types(int(self._tensors[name].shape[0]), isa)]
