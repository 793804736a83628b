"""Change a real GGUF byte by byte: other metadata, other tensors, everything else as it was."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fieldlm.formats.gguf import BLOCKS, SCALARS, STRING

ALIGNMENT = 32
UINT32 = 4
Bytes = NDArray[np.uint8]


@dataclass
class Gguf:
    """Metadata entries as they are encoded, and tensors as rows of blocks: shape, ggml type, bytes."""

    entries: dict[str, bytes]
    tensors: dict[str, tuple[tuple[int, ...], int, Bytes]]

    @classmethod
    def read(cls, path: Path) -> "Gguf":
        data = path.read_bytes()
        _, tensor_count, entry_count = struct.unpack_from("<IQQ", data, 4)
        at, entries = 24, dict[str, bytes]()
        for _ in range(entry_count):
            begin = at
            key, at = _string(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            at = _after(data, at + 4, kind)
            entries[key] = data[begin:at]
        placed: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(tensor_count):
            name, at = _string(data, at)
            (dimensions,) = struct.unpack_from("<I", data, at)
            shape = struct.unpack_from(f"<{dimensions}Q", data, at + 4)
            kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * dimensions)
            at += 16 + 8 * dimensions
            placed.append((name, shape, kind, offset))
        start = -(-at // ALIGNMENT) * ALIGNMENT
        whole = np.frombuffer(data, np.uint8)
        tensors = {
            name: (shape, kind, whole[start + offset : start + offset + _size(shape, kind)])
            for name, shape, kind, offset in placed
        }
        return cls(entries, tensors)

    def write(self, path: Path) -> Path:
        infos, offset = list[bytes](), 0
        for name, (shape, kind, data) in self.tensors.items():
            infos.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
            offset += -(-len(data) // ALIGNMENT) * ALIGNMENT
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.entries))
        head += b"".join(self.entries.values()) + b"".join(infos)
        with path.open("wb") as file:
            file.write(head + bytes(-len(head) % ALIGNMENT))
            for _, _, data in self.tensors.values():
                file.write(data.tobytes() + bytes(-len(data) % ALIGNMENT))
        return path

    def set_number(self, key: str, value: int) -> None:
        self.entries[key] = _text(key) + struct.pack("<II", UINT32, value)

    def set_text(self, key: str, value: str) -> None:
        self.entries[key] = _text(key) + struct.pack("<I", STRING) + _text(value)

    def map_texts(self, key: str, change: Callable[[list[str]], list[str]]) -> None:
        """Replace the strings of the array `key` by what `change` makes of them."""
        raw = self.entries[key]
        at = 8 + len(key) + 4
        kind, count = struct.unpack_from("<IQ", raw, at)
        at, texts = at + 12, list[str]()
        for _ in range(count):
            text, at = _string(raw, at)
            texts.append(text)
        changed = change(texts)
        head = _text(key) + struct.pack("<IIQ", 9, kind, len(changed))
        self.entries[key] = head + b"".join(_text(text) for text in changed)

    def keep_numbers(self, key: str, count: int) -> None:
        """Leave the first `count` of the array `key`, whose numbers have 4 bytes."""
        values = 8 + len(key) + 4 + 12
        raw = self.entries[key]
        self.entries[key] = raw[: values - 8] + struct.pack("<Q", count) + raw[values : values + 4 * count]

    def rows(self, name: str) -> NDArray[np.uint8]:
        """Return the tensor as [rows, blocks of a row, bytes of a block]."""
        shape, kind, data = self.tensors[name]
        elements, size = BLOCKS[kind]
        return data.reshape(prod(shape[1:]), shape[0] // elements, size)

    def set_rows(self, name: str, rows: NDArray[np.uint8]) -> None:
        _, kind, _ = self.tensors[name]
        shape = (rows.shape[1] * BLOCKS[kind][0], rows.shape[0])
        self.tensors[name] = (shape, kind, np.ascontiguousarray(rows).reshape(-1))


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length].decode("utf-8", "surrogateescape"), at + 8 + length


def _after(data: bytes, at: int, kind: int) -> int:
    """Return where the value of that kind at `at` ends."""
    if kind == STRING:
        return _string(data, at)[1]
    if kind in SCALARS:
        return at + struct.calcsize(SCALARS[kind])
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in SCALARS:
        return at + count * struct.calcsize(SCALARS[inner])
    for _ in range(count):
        at = _string(data, at)[1]
    return at


def _size(shape: tuple[int, ...], kind: int) -> int:
    elements, size = BLOCKS[kind]
    return prod(shape) // elements * size
