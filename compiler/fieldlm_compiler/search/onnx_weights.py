"""ONNX weights, the matrices of an exported graph, and the graph with a type of its own for each: docs/onnx-graph.md.

Nothing here reads weights but `OnnxWeights.rows`: a graph with other types, and so its exact size, is known beforehand.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fieldlm.engines.onnx import METADATA
from fieldlm_compiler.export.onnx_graph import MICROSOFT, prune
from fieldlm_compiler.search.onnx_blocks import WHOLE, NBits, Whole, nbits, ways
from fieldlm_compiler.search.weights import RowSlice

WEIGHTS = "model.onnx.data"
ALIGNMENT = 64
Piece = Literal["blocks", "scales", "zeros"]


@dataclass(frozen=True)
class Placed:
    """Bytes of the new file of weights: a piece of a matrix that was rounded, or a tensor as it was at `kept`."""

    offset: int
    length: int
    matrix: str = ""
    piece: Piece = "blocks"
    kept: int = 0


@dataclass
class _Matrix:
    """One tensor of weights: [columns, rows] in front of a product, [rows, columns] as a table to look up in."""

    tensor: TensorProto
    parts: list[RowSlice]
    product: NodeProto | None = None
    lookup: NodeProto | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        first, second = self.tensor.dims
        return (first, second) if self.lookup else (second, first)


class OnnxWeights:
    """The matrices of the graph at `path` that a product multiplies by, and the embedding."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.model = onnx.load(path, load_external_data=False)
        self._matrices = _matrices(self.model)

    @property
    def names(self) -> Sequence[str]:
        return list(self._matrices)

    def shape(self, name: str) -> tuple[int, int]:
        """Return rows and columns of the matrix `name`."""
        return self._matrices[name].shape

    def rows(self, name: str) -> Any:
        matrix = self._matrices[name]
        data = self._read(matrix.tensor)
        return data if matrix.lookup else data.T

    def parts(self, name: str) -> Sequence[RowSlice]:
        return self._matrices[name].parts

    def ways(self, name: str, isa: Sequence[str]) -> Sequence[NBits | Whole]:
        return ways(self._matrices[name].shape[1])

    def kept(self, placed: Placed) -> bytes:
        """Return the bytes of a tensor that stays as it was."""
        with self._data.open("rb") as file:
            file.seek(placed.kept)
            return file.read(placed.length)

    def retyped(self, types: Mapping[str, str], accuracy_level: int) -> tuple[ModelProto, list[Placed]]:
        """Return the graph with each matrix in its type, and what its file of weights holds, in order."""
        model = ModelProto()
        model.CopyFrom(self.model)
        nodes = {node.output[0]: node for node in model.graph.node}
        new = _Retyping(model, nodes, accuracy_level, {})
        for name, matrix in self._matrices.items():
            if types[name] != WHOLE:
                new.retype(name, matrix, nbits(types[name]))
        prune(model)
        return model, _place(model, new.pieces)

    def size_bytes(self, types: Mapping[str, str], accuracy_level: int) -> int:
        """Return the bytes of the graph and of its weights with `types`."""
        model, placed = self.retyped(types, accuracy_level)
        return model.ByteSize() + (placed[-1].offset + placed[-1].length if placed else 0)

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        caches = [value for value in self.model.graph.input if value.name.startswith("past_key_values.")]
        dims = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in caches]
        return sum(4 * each[1] * each[3] for each in dims)

    @cached_property
    def context(self) -> int:
        """The most tokens the graph holds keys and values for."""
        about = {entry.key: entry.value for entry in self.model.metadata_props}
        return int(json.loads(about[METADATA])["context"])

    def is_product(self, name: str) -> bool:
        """Say whether a token is multiplied by `name`, and not only looked up in it."""
        return self._matrices[name].product is not None

    @property
    def _data(self) -> Path:
        return self._path.with_name(WEIGHTS)

    def _read(self, tensor: TensorProto) -> Any:
        if not tensor.external_data:
            return numpy_helper.to_array(tensor)
        at = {entry.key: entry.value for entry in tensor.external_data}
        return np.memmap(self._data, np.float32, "r", int(at.get("offset", 0)), tuple(tensor.dims))


@lru_cache(maxsize=2)
def opened(path: Path) -> OnnxWeights:
    """Return the weights at `path`, opened once: what was exported never changes."""
    return OnnxWeights(path)


def _matrices(model: ModelProto) -> dict[str, _Matrix]:
    """Find every matrix by what is computed with it; a table that is the head too is one matrix."""
    tensors = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2}
    turned = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
    found: dict[str, _Matrix] = {}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[0] in tensors:
            tensor = tensors[node.input[0]]
            found[tensor.name] = _Matrix(tensor, _parts(node, tensor, tensor.dims[0]), lookup=node)
        elif node.op_type == "MatMul":
            tensor = tensors.get(turned.get(node.input[1], node.input[1]))
            if tensor is not None and tensor.name in found:
                found[tensor.name].product = node
            elif tensor is not None and node.input[1] not in turned:
                found[tensor.name] = _Matrix(tensor, _parts(node, tensor, tensor.dims[1]), product=node)
    return {_joined_name(matrix.parts): matrix for matrix in found.values()}


def _parts(node: NodeProto, tensor: TensorProto, rows: int) -> list[RowSlice]:
    """Return whose rows `tensor` holds: the names of the nodes before they were joined say it."""
    widths: dict[str, int] = json.loads(tensor.doc_string) if tensor.doc_string else {node.name: rows}
    parts: list[RowSlice] = []
    for name, width in widths.items():
        first = parts[-1].last if parts else 0
        parts.append(RowSlice(name_of(name.strip("/").replace("/", ".").rpartition(".")[0]), first, first + width))
    return parts


def name_of(path: str) -> str:
    """Return what llama.cpp calls the weight of the module at `path`; one that it does not know keeps its own name."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    numbers = [int(each) for each in path.split(".") if each.isdigit()]
    table = get_tensor_name_map(MODEL_ARCH.LLAMA, max(numbers, default=0) + 1)
    return table.get_name(f"{path}.weight", try_suffixes=(".weight",)) or f"{path}.weight"


def _joined_name(parts: Sequence[RowSlice]) -> str:
    """Return one name for all of `parts`: blk.0.attn_q+attn_k+attn_v.weight."""
    if len(parts) == 1:
        return parts[0].name
    stems = [part.name.removesuffix(".weight").rpartition(".") for part in parts]
    return f"{stems[0][0]}.{'+'.join(stem for _, _, stem in stems)}.weight"


@dataclass(frozen=True)
class _Retyping:
    """`model` on its way to other types; `pieces` says which of its new tensors is which piece of which matrix."""

    model: ModelProto
    nodes: Mapping[str, NodeProto]
    accuracy_level: int
    pieces: dict[str, tuple[str, Piece]]

    def retype(self, name: str, matrix: _Matrix, to: NBits) -> None:
        """Compute with `matrix` in blocks of type `to`."""
        rows, columns = matrix.shape
        blocks = columns // to.block
        block_bytes, zero_bytes = to.block * to.bits // 8, to.zero_bytes(blocks)
        about = {"bits": to.bits, "block_size": to.block}
        if (product := matrix.product) is not None:
            shapes = [rows, blocks, block_bytes], [rows * blocks], [rows * zero_bytes]
            flat = self._add(name, "product", *shapes)
            shape = {"K": columns, "N": rows, "accuracy_level": self.accuracy_level}
            self._swap(product, "MatMulNBits", [product.input[0], *flat], about | shape)
        if (lookup := matrix.lookup) is not None:
            shapes = [rows, blocks * block_bytes], [rows, blocks], [rows, zero_bytes]
            first, *others = self._add(name, "table", *shapes)
            axes = {"gather_axis": 0, "quantize_axis": 1}
            self._swap(lookup, "GatherBlockQuantized", [first, lookup.input[1], *others], about | axes)
        if all(entry.domain != MICROSOFT for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))

    def _add(self, name: str, use: str, blocks: list[int], scales: list[int], zeros: list[int]) -> list[str]:
        """Add tensors of these shapes for the matrix `name`; return what they are called."""
        shapes: list[tuple[Piece, list[int]]] = [("blocks", blocks), ("scales", scales), ("zeros", zeros)]
        added: list[str] = []
        for piece, dims in shapes:
            if 0 in dims:
                continue
            kind = TensorProto.FLOAT if piece == "scales" else TensorProto.UINT8
            added.append(f"{name}/{use}/{piece}")
            self.model.graph.initializer.append(TensorProto(name=added[-1], data_type=kind, dims=dims))
            self.pieces[added[-1]] = name, piece
        return added

    def _swap(self, old: NodeProto, operator: str, inputs: Sequence[str], about: Mapping[str, int]) -> None:
        made = helper.make_node(operator, inputs, list(old.output), old.name, domain=MICROSOFT)
        made.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(about.items()))
        self.nodes[old.output[0]].CopyFrom(made)


def _place(model: ModelProto, new: Mapping[str, tuple[str, Piece]]) -> list[Placed]:
    """Give every tensor outside the graph its place in the file; what is used in two shapes is there once."""
    placed: list[Placed] = []
    shared: dict[tuple[str, Piece], Placed] = {}
    end = 0
    for tensor in model.graph.initializer:
        if tensor.name not in new and not tensor.external_data:
            continue
        piece = new.get(tensor.name)
        where = shared.get(piece) if piece else None
        if where is None:
            offset, width = -(-end // ALIGNMENT) * ALIGNMENT, 1 if tensor.data_type == TensorProto.UINT8 else 4
            at = {entry.key: entry.value for entry in tensor.external_data}
            length = int(at.get("length", 0)) or width * math.prod(tensor.dims)
            matrix, part = piece or ("", "blocks")
            where = Placed(offset, length, matrix, part, kept=int(at.get("offset", 0)))
            placed.append(where)
            end = offset + length
            if piece:
                shared[piece] = where
        del tensor.external_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", where.offset), ("length", where.length)):
            tensor.external_data.add(key=key, value=str(value))
    return placed
