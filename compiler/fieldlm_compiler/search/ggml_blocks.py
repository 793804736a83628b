"""ggml block layouts: the scales that a block was given, the grid of its codes, and how codes are packed.

Layouts as in llama.cpp's ggml-common.h and ggml-quants.c. A test holds each against ggml's own dequantisation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fieldlm_compiler.export.ggml import Bytes, Floats

IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
Scales = tuple[Floats, Floats]


@dataclass(frozen=True)
class Grid:
    """The grid of one type: a code stands for levels[code] · scale + offset, with scale and offset by group.

    `scales(blocks)` returns both as [groups, rows]; `pack(blocks, codes [columns, rows])` puts codes into blocks.
    """

    levels: Floats
    scales: Callable[[Bytes], Scales]
    pack: Callable[[Bytes, Bytes], Bytes]


def nearest(levels: Floats, values: Floats) -> Bytes:
    """Return the code whose level is nearest to each of `values`; `levels` rise."""
    first, last = levels[0], levels[-1]
    if last - first == len(levels) - 1:
        return (np.clip(np.rint(values), first, last) - first).astype(np.uint8)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values).astype(np.uint8)


def _half(blocks: Bytes, at: int) -> Floats:
    """Return the 16-bit floats at byte `at` of each block, as [1, rows]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32).T


def _one_scale(blocks: Bytes) -> Scales:
    scale = _half(blocks, 0)
    return scale, np.zeros_like(scale)


def _scale_and_least(blocks: Bytes) -> Scales:
    return _half(blocks, 0), _half(blocks, 2)


def _pack_nibbles(at: int) -> Callable[[Bytes, Bytes], Bytes]:
    def pack(blocks: Bytes, codes: Bytes) -> Bytes:
        packed = blocks.copy()
        packed[:, at : at + 16] = ((codes[:16] & 15) | (codes[16:] & 15) << 4).T
        return packed

    return pack


def _pack_five(at: int) -> Callable[[Bytes, Bytes], Bytes]:
    def pack(blocks: Bytes, codes: Bytes) -> Bytes:
        packed = _pack_nibbles(at + 4)(blocks, codes)
        packed[:, at : at + 4] = np.packbits(codes.T >> 4, axis=1, bitorder="little")
        return packed

    return pack


def _pack_bytes(blocks: Bytes, codes: Bytes) -> Bytes:
    packed = blocks.copy()
    packed[:, 2:] = (codes ^ 128).T
    return packed


def _k_scales(blocks: Bytes) -> Scales:
    """Scales and offsets of Q4_K and Q5_K: eight pairs of six bits in twelve bytes, times two 16-bit floats."""
    packed = blocks[:, 4:16].astype(np.uint8).T
    low, middle, high = packed[:4], packed[4:8], packed[8:]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4]).astype(np.float32)
    least = np.concatenate([middle & 63, (high >> 4) | (middle >> 6) << 4]).astype(np.float32)
    return scale * _half(blocks, 0), -least * _half(blocks, 2)


def _pack_k(at: int, bits: int) -> Callable[[Bytes, Bytes], Bytes]:
    def pack(blocks: Bytes, codes: Bytes) -> Bytes:
        packed = blocks.copy()
        pairs = codes.reshape(4, 2, 32, -1)
        nibbles = (pairs[:, 0] & 15) | (pairs[:, 1] & 15) << 4
        packed[:, at : at + 128] = nibbles.reshape(128, -1).T
        if bits == 5:
            fifth = (codes >> 4).reshape(8, 32, -1)
            packed[:, 16:48] = np.packbits(fifth, axis=0, bitorder="little")[0].T
        return packed

    return pack


def _six_scales(blocks: Bytes) -> Scales:
    scale = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32).T * _half(blocks, 208)
    return scale, np.zeros_like(scale)


def _pack_six(blocks: Bytes, codes: Bytes) -> Bytes:
    packed = blocks.copy()
    quarters = codes.reshape(2, 4, 32, -1)
    low = (quarters[:, :2] & 15) | (quarters[:, 2:] & 15) << 4
    packed[:, :128] = low.reshape(128, -1).T
    high = sum(((quarters[:, q] >> 4) << (2 * q) for q in range(1, 4)), start=quarters[:, 0] >> 4)
    packed[:, 128:192] = high.astype(np.uint8).reshape(64, -1).T
    return packed


def _three_scales(blocks: Bytes) -> Scales:
    """Scales of Q3_K: sixteen of six bits, four low bits in eight bytes and two high bits in four."""
    packed = blocks[:, 96:108].T
    low = np.concatenate([packed[:8] & 15, packed[:8] >> 4])
    high = np.concatenate([(packed[8:] >> shift) & 3 for shift in (0, 2, 4, 6)])
    scale = ((low | high << 4).astype(np.float32) - 32) * _half(blocks, 108)
    return scale, np.zeros_like(scale)


def _pack_three(blocks: Bytes, codes: Bytes) -> Bytes:
    packed = blocks.copy()
    packed[:, :32] = np.packbits((codes >> 2).reshape(8, 32, -1), axis=0, bitorder="little")[0].T
    quarters = (codes & 3).reshape(2, 4, 32, -1)
    low = sum((quarters[:, q] << (2 * q) for q in range(1, 4)), start=quarters[:, 0])
    packed[:, 32:96] = low.astype(np.uint8).reshape(64, -1).T
    return packed


def _steps(first: int, count: int) -> Floats:
    return np.arange(first, first + count, dtype=np.float32)


GRIDS = {
    "Q4_0": Grid(_steps(-8, 16), _one_scale, _pack_nibbles(2)),
    "Q4_1": Grid(_steps(0, 16), _scale_and_least, _pack_nibbles(4)),
    "Q5_0": Grid(_steps(-16, 32), _one_scale, _pack_five(2)),
    "Q5_1": Grid(_steps(0, 32), _scale_and_least, _pack_five(4)),
    "Q8_0": Grid(_steps(-128, 256), _one_scale, _pack_bytes),
    "IQ4_NL": Grid(np.array(IQ4_NL, np.float32), _one_scale, _pack_nibbles(2)),
    "Q3_K": Grid(_steps(-4, 8), _three_scales, _pack_three),
    "Q4_K": Grid(_steps(0, 16), _k_scales, _pack_k(16, 4)),
    "Q5_K": Grid(_steps(0, 32), _k_scales, _pack_k(48, 5)),
    "Q6_K": Grid(_steps(-32, 64), _six_scales, _pack_six),
}
