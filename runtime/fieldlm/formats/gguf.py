"""The GGUF header, what a file says about itself, read and checked before llama.cpp sees it.

llama.cpp ends the process on some broken files; this reader says what is wrong in one line instead. It knows the
container (metadata, tensor names, shapes, types and places) and nothing of what the numbers mean.
"""

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from fieldlm.core.errors import EngineError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_READS = (6 << 20, 64 << 20)
"""Bytes that are tried; nearly all headers lie within the first, the largest vocabularies in use need 20 MB."""
MAX_DIMENSIONS = 4
LENGTH = struct.Struct("<Q")
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# ggml type → (elements, bytes) of one block, from ggml's type traits.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""`general.file_type` → its name, the enum llama_ftype of llama.h."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: its shape with the fastest dimension first, its ggml type, its bytes."""

    shape: tuple[int, ...]
    type: int
    size: int


class Strings:
    """An array of strings, kept as bytes: a vocabulary has 50,000 and a reader asks for two."""

    def __init__(self, data: bytes, count: int) -> None:
        self._data = data
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        return self.pick([index])[0]

    def pick(self, indices: Sequence[int]) -> list[str]:
        """Return the texts at `indices`, in one walk: the special tokens of a large vocabulary stand at its end."""
        found, at, place = dict[int, str](), 0, 0
        for index in sorted(set(indices)):
            if not 0 <= index < self._count:
                raise IndexError(index)
            at, place = after_strings(self._data, at, index - place), index
            found[index] = self._data[at + 8 : after_strings(self._data, at, 1)].decode(errors="replace")
        return [found[index] for index in indices]


def after_strings(data: bytes, at: int, count: int) -> int:
    """Return where the `count` strings that begin at byte `at` end; raises IndexError when that is not in `data`."""
    if count > (len(data) - at) // 8:
        raise IndexError(count)
    length = LENGTH.unpack_from
    try:
        for _ in range(count):
            at += 8 + length(data, at)[0]
    except (struct.error, OverflowError) as error:
        raise IndexError(at) from error
    if at > len(data):
        raise IndexError(at)
    return at


@dataclass(frozen=True)
class Header:
    """The metadata and the tensors of one GGUF file, and the bytes at which its entries and its tensors begin."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    places: tuple[int, ...] = ()

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def without_vocabulary(self) -> "Header":
        """Return it without what it says of tokens: two megabytes, or twenty, which who computes need not keep."""
        kept = {key: value for key, value in self.metadata.items() if not key.startswith("tokenizer.")}
        return replace(self, metadata=kept)

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """The number of weights in all tensors."""
        return sum(tensor.size // BLOCKS[tensor.type][1] * BLOCKS[tensor.type][0] for tensor in self.tensors.values())


def read_header(path: Path) -> Header:
    """Read the header of the GGUF at `path` and check that every tensor lies inside the file.

    Raises EngineError with what is missing or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            for limit in HEADER_READS:
                file.seek(0)
                with suppress(struct.error, IndexError):
                    return _Reader(path, file.read(limit)).header(size)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}") from error
    raise EngineError(f"{path} is cut off or damaged in its header; fetch it again")


class _Reader:
    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data
        self._at = 0
        self._places = list[int]()

    def header(self, file_size: int) -> Header:
        if self._data[:4] != MAGIC:
            self._fail("is not a GGUF file")
        version, tensors, entries = struct.unpack_from("<IQQ", self._data, 4)
        if version not in VERSIONS:
            self._fail(f"has GGUF version {version}, this version reads {VERSIONS}")
        if entries > len(self._data) or tensors > len(self._data):
            self._fail("is damaged: it counts more entries than it has bytes")
        self._at = 24
        metadata = dict(self._entry() for _ in range(entries))
        self._places.append(self._at)
        placed = [self._tensor() for _ in range(tensors)]
        self._check_places(placed, metadata.get("general.alignment", 32), file_size)
        if len({name for name, _, _ in placed}) != tensors:
            self._fail("is damaged: it names a tensor twice")
        return Header(metadata, {name: tensor for name, tensor, _ in placed}, tuple(sorted(self._places)))

    def _fail(self, what: str) -> NoReturn:
        raise EngineError(f"{self._path} {what}; fetch it again")

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        end = self._at + length
        if end > len(self._data):
            raise IndexError
        text = self._data[self._at : end].decode(errors="replace")
        self._at = end
        return text

    def _entry(self) -> tuple[str, Any]:
        self._places.append(self._at)
        key = self._string()
        if not key:
            self._fail("is damaged: it has a metadata entry without a name")
        return key, self._value(self._scalar("I"))

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            self._fail(f"is damaged: metadata of unknown type {kind}")
        return self._scalar(SCALARS[kind])

    def _array(self) -> list[Any] | Strings:
        kind, count = self._scalar("I"), self._scalar("Q")
        if count > len(self._data):
            raise IndexError
        if kind in SCALARS:
            values = struct.unpack_from(f"<{count}{SCALARS[kind]}", self._data, self._at)
            self._at += struct.calcsize(f"<{count}{SCALARS[kind]}")
            return list(values)
        if kind != STRING:
            self._fail(f"is damaged: an array of unknown type {kind}")
        start, self._at = self._at, after_strings(self._data, self._at, count)
        return Strings(self._data[start : self._at], count)

    def _tensor(self) -> tuple[str, Tensor, int]:
        name = self._string()
        dimensions = self._scalar("I")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            self._fail(f"is damaged: tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        kind, offset = self._scalar("I"), self._scalar("Q")
        if kind not in BLOCKS:
            self._fail(f"has tensor {name!r} of type {kind}, which this version does not know")
        elements, size = BLOCKS[kind]
        if shape[0] % elements:
            self._fail(f"is damaged: rows of tensor {name!r} are not whole blocks of {elements}")
        return name, Tensor(shape, kind, prod(shape) // elements * size), offset

    def _check_places(self, placed: list[tuple[str, Tensor, int]], alignment: Any, file_size: int) -> None:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._fail(f"is damaged: its alignment is {alignment}")
        start = -(-self._at // alignment) * alignment
        for name, tensor, offset in placed:
            end = start + offset + tensor.size
            self._places.append(start + offset)
            if offset % alignment or end > file_size:
                self._fail(f"is cut off or damaged: tensor {name!r} ends at byte {end} of {file_size}")


def check_adapter(adapter: Header, base: Header, path: Path) -> None:
    """Raise EngineError unless `adapter`, read from `path`, is a LoRA for weights like `base`."""
    kind = (adapter.metadata.get("general.type"), adapter.metadata.get("adapter.type"))
    if kind != ("adapter", "lora"):
        raise EngineError(f"{path} is not a LoRA adapter (general.type and adapter.type are {kind})")
    if adapter.architecture != base.architecture:
        raise EngineError(f"{path} is an adapter for {adapter.architecture!r}, the base is {base.architecture!r}")
    pairs = {name.rsplit(".lora_", 1)[0] for name in adapter.tensors if ".lora_" in name}
    if not pairs:
        raise EngineError(f"{path} has no LoRA tensors; export the adapter again")
    for name in sorted(pairs):
        _check_pair(name, adapter, base, path)


def _check_pair(name: str, adapter: Header, base: Header, path: Path) -> None:
    target = base.tensors.get(name)
    if target is None:
        raise EngineError(f"{path} changes tensor {name!r}, which the base does not have; it belongs to another model")
    a, b = adapter.tensors.get(f"{name}.lora_a"), adapter.tensors.get(f"{name}.lora_b")
    if a is None or b is None:
        raise EngineError(f"{path} has only half of the pair for {name!r}; export the adapter again")
    # The token embedding is looked up by rows, so llama.cpp keeps its pair the other way round.
    wanted, found = (target.shape, (a.shape[0], b.shape[-1]))
    if name == "token_embd.weight":
        found = (b.shape[-1], a.shape[-1])
    elif a.shape[-1] != b.shape[0]:
        raise EngineError(f"{path}: the halves for {name!r} have ranks {a.shape[-1]} and {b.shape[0]}")
    if tuple(wanted[:2]) != found:
        raise EngineError(f"{path}: {name!r} has shape {found}, the base has {wanted}; it belongs to another model")
