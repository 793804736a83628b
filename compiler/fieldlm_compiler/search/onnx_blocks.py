"""ONNX quantised blocks: MatMulNBits and GatherBlockQuantized: names, sizes, scales and how codes are packed.

A row's weights lie in blocks of 16 to 128, each with a scale in 32 bits; a code stands for (code - zero) · scale, where
zero is half the codes, or in an asymmetric block a code of its own. Every build of onnxruntime since 1.22 computes all
of these with activations in int8 (`accuracy_level` 4), on AVX2, AVX-512 and NEON.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fieldlm_compiler.export.ggml import Bytes, Floats
from fieldlm_compiler.search.gptq_rounding import choose_codes

WHOLE = "fp32"
NAME = re.compile(r"int([48])-b(\d+)(a?)")
BLOCKS = (16, 32, 64, 128)
# What a block's largest weight becomes in units of the scale, tried in turn; and shares of a block's range.
PEAKS = {4: (-8.0, -7.4, -8.6, -9.4, -6.8, 7.0, 7.5, 6.4), 8: (-128.0, 127.0)}
SHRUNK = (1.0, 0.94, 0.88, 0.8)


class Rounded(NamedTuple):
    """A matrix of n rows as the operators take it: blocks [n, blocks, bytes], scales and zeros by row and block."""

    blocks: Bytes
    scales: Floats
    zeros: Bytes | None


@dataclass(frozen=True)
class NBits:
    """One such type, named int4-b32, or int4-b32a where blocks are asymmetric."""

    bits: int
    block: int
    is_symmetric: bool = True

    @property
    def name(self) -> str:
        return f"int{self.bits}-b{self.block}{'' if self.is_symmetric else 'a'}"

    def holds(self, columns: int) -> bool:
        return columns % self.block == 0

    def zero_bytes(self, blocks: int) -> int:
        """Return the bytes of the zeros of a row of `blocks`: whole bytes, none where blocks are symmetric."""
        return 0 if self.is_symmetric else -(-blocks * self.bits // 8)

    def size(self, rows: int, columns: int) -> int:
        blocks = columns // self.block
        return rows * (blocks * (self.block * self.bits // 8 + 4) + self.zero_bytes(blocks))

    def alone(self, rows: Floats, importance: Floats | None) -> Floats:
        weights = np.ones(rows.shape[1], np.float32) if importance is None else importance
        return self._restored(self.round(rows, weights, None))

    def repaired(self, rows: Floats, upper: Floats) -> Floats:
        return self._restored(self.round(rows, (1.0 / np.square(np.diag(upper))).astype(np.float32), upper))

    def round(self, rows: Floats, importance: Floats, upper: Floats | None) -> Rounded:
        """Return `rows` [n, columns] in blocks; with `upper`, what one column loses the next ones make up for.

        `importance` [columns] weighs the squared errors that scales are chosen by.
        """
        left = np.array(rows.T, np.float32, order="C")  # a copy: it is changed
        none = np.eye(self.block, dtype=np.float32)
        codes = np.empty(left.shape, np.uint8)
        scales, zeros = (np.empty((len(left) // self.block, len(rows)), np.float32) for _ in range(2))
        for at, start in enumerate(range(0, len(left), self.block)):
            end = start + self.block
            scales[at], zeros[at] = self._fit(left[start:end], importance[start:end])
            inside = none if upper is None else np.ascontiguousarray(upper[start:end, start:end])
            offset = -zeros[at] * scales[at]
            codes[start:end], error = choose_codes(
                left[start:end].copy(), self._codes, scales[at : at + 1], offset[None], inside
            )
            if upper is not None:
                left[end:] -= upper[start:end, end:].T @ error
        blocks = self._packed(codes.T.reshape(len(rows), -1, self.block))
        packed = None if self.is_symmetric else self._packed(np.ascontiguousarray(zeros.T).astype(np.uint8))
        return Rounded(blocks, np.ascontiguousarray(scales.T), packed)

    @property
    def _codes(self) -> Floats:
        return np.arange(2**self.bits, dtype=np.float32)

    @property
    def _half(self) -> int:
        return 2 ** (self.bits - 1)

    def _fit(self, block: Floats, importance: Floats) -> tuple[Floats, Floats]:
        """Return for each row of `block` [columns, rows] the scale and the zero that lose least.

        For given codes the best scale is that of least squares, and what it wins, (Σ w x q)² / Σ w q², is known
        without it.
        """
        best = np.full(block.shape[1], -1.0, np.float32)
        scale, zero = np.zeros_like(best), np.full_like(best, self._half)
        for tried, at in self._guesses(block):
            inverse = np.divide(1.0, tried, out=np.zeros_like(tried), where=tried != 0)
            steps = np.clip(np.rint(block * inverse), -at, self._codes[-1] - at)
            both, square = importance @ (block * steps), importance @ np.square(steps)
            fitted = np.divide(both, square, out=np.zeros_like(both), where=square > 0)
            better = both * fitted > best
            np.copyto(best, both * fitted, where=better)
            np.copyto(scale, fitted, where=better)
            np.copyto(zero, at, where=better)
        return scale, zero

    def _guesses(self, block: Floats) -> Iterator[tuple[Floats, Floats]]:
        """Yield scales and zeros to try for each row."""
        if self.is_symmetric:
            peak = block[np.abs(block).argmax(0), np.arange(block.shape[1])]
            half = np.full_like(peak, self._half)
            yield from ((peak / np.float32(each), half) for each in PEAKS[self.bits])
            return
        low, high = np.minimum(block.min(0), 0), np.maximum(block.max(0), 0)
        for share in SHRUNK:
            scale = (high - low) * np.float32(share) / self._codes[-1]
            inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
            yield scale, np.clip(np.rint(-low * np.float32(share) * inverse), 0, self._codes[-1])

    def _packed(self, codes: Bytes) -> Bytes:
        """Put `codes` into bytes along the last axis, the first of two into the low half."""
        if self.bits == 8:
            return codes
        if codes.shape[-1] % 2:
            codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
        return (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)

    def _spread(self, packed: Bytes, count: int) -> Bytes:
        if self.bits == 8:
            return packed
        halves = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.uint8)
        return halves.reshape(*packed.shape[:-1], -1)[..., :count]

    def _restored(self, rounded: Rounded) -> Floats:
        codes = self._spread(rounded.blocks, self.block).astype(np.float32)
        codes -= self._half if rounded.zeros is None else self._spread(rounded.zeros, codes.shape[1])[..., None]
        return (codes * rounded.scales[..., None]).reshape(len(codes), -1)


@dataclass(frozen=True)
class Whole:
    """Weights as they are, in 32 bits."""

    name: str = WHOLE

    def size(self, rows: int, columns: int) -> int:
        return 4 * rows * columns

    def alone(self, rows: Floats, importance: Floats | None) -> Floats:
        return rows

    def repaired(self, rows: Floats, upper: Floats) -> Floats:
        return rows


def nbits(name: str) -> NBits:
    """Return the type called `name`; raises KeyError for one that does not exist."""
    found = NAME.fullmatch(name)
    if found is None or int(found[2]) not in BLOCKS:
        raise KeyError(name)
    return NBits(int(found[1]), int(found[2]), not found[3])


def ways(columns: int) -> list[NBits | Whole]:
    """Return the types that rows of `columns` weights may have, smallest first; 8 bits gain nothing by a zero."""
    types = [NBits(4, block, each) for block in BLOCKS for each in (True, False)]
    types += [NBits(8, block) for block in BLOCKS]
    held = [each for each in types if each.holds(columns)]
    return [*sorted(held, key=lambda each: (each.size(1, columns), each.name)), Whole()]


def bits(name: str) -> float:
    """Return the bits a weight of the type called `name`, scales and zeros counted."""
    if name == WHOLE:
        return 32.0
    found = nbits(name)
    return found.bits + 32 / found.block + (0 if found.is_symmetric else found.bits / found.block)
