"""How much memory a GGUF will take, from its header alone, and whether the machine has it: asked before loading.

Without this a context that is too large ends in the kernel killing the process, or, worse, another one. What the
header does not say counts as nothing, so that a model we know little of is tried rather than refused.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldlm.formats.errors import EngineError
from fieldlm.runtime.engines.gguf_header import BLOCKS, Header
from fieldlm.runtime.facts import LIVE, meminfo_mb, read_facts
from fieldlm.runtime.hardware import memory_available_mb

MB = 1e6
F16 = 1  # ggml type
FLOAT_BYTES = 4
CELL_STEP = 256  # llama.cpp rounds the cells of its cache up to this
# Instruction set → ggml types that llama.cpp lays out anew for it (ggml-cpu/repack.cpp), and the rows it takes at once.
REPACKED = {
    "avx2": {2: 8, 12: 8, 20: 8, 39: 8},
    "avx512f": {10: 8},
    "dotprod": {2: 4, 8: 4, 12: 8, 13: 8, 14: 8, 20: 4, 39: 4},
}
KEYS = re.compile(r"blk\.(\d+)\.attn_k\.weight")
FUSED = re.compile(r"blk\.(\d+)\.attn_qkv\.weight")


class NoRoomError(EngineError):
    """A model does not fit into the memory that is free now; `reason` is what an update says then."""

    reason = "memory"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Megabytes (1e6 bytes), named as `Engine.memory_mb` names them; `loading` is on top of it while weights load."""

    weights: float
    kv: float
    compute: float
    loading: float

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.compute


def plan(
    header: Header,
    *,
    context: int,
    parallel: int,
    batch: int,
    isa: Collection[str] = (),
    key_type: int = F16,
    value_type: int = F16,
) -> Plan:
    """Foresee what the weights of `header` take with `parallel` answers of `context` tokens, `batch` tokens a step."""
    cells = -(-context * parallel // CELL_STEP) * CELL_STEP
    doubled = _doubled(header, isa)
    return Plan(
        weights=(sum(tensor.size for tensor in header.tensors.values()) + doubled) / MB,
        kv=cells * kv_bytes(header, key_type, value_type) / MB,
        compute=_compute_bytes(header, cells=cells, batch=min(batch, context * parallel), rows=parallel) / MB,
        loading=max((t.size for t in header.tensors.values() if _is_repacked(t.type, t.shape, isa)), default=0) / MB,
    )


def ensure_fits(
    header: Header, path: Path, *, context: int, parallel: int, batch: int, root: Path = LIVE
) -> Plan | None:
    """Return the plan for the weights at `path`, None where the machine does not say what memory it has.

    Raises NoRoomError with what is needed, what there is and what would fit, when it cannot fit.
    """
    if not meminfo_mb(root, "MemAvailable"):
        return None
    isa, free_mb = read_facts(root).isa, memory_available_mb(root)
    context = min(context, _number(header, "context_length") or context)

    def planned(context: int, parallel: int) -> Plan:
        return plan(header, context=context, parallel=parallel, batch=batch, isa=isa)

    def fits(context: int, parallel: int) -> bool:
        found = planned(context, parallel)
        return found.total + found.loading <= free_mb

    need = planned(context, parallel)
    if fits(context, parallel):
        return need
    shorter = CELL_STEP * _largest((context - 1) // CELL_STEP, lambda steps: fits(CELL_STEP * steps, parallel))
    fewer = _largest(parallel - 1, lambda parallel: fits(context, parallel))
    raise NoRoomError(
        f"{path.name} needs {need.total + need.loading:.0f} MB (weights {need.weights + need.loading:.0f}, keys and "
        f"values of {parallel} × {context} tokens {need.kv:.0f}, computing {need.compute:.0f}) and {free_mb} MB are "
        f"free; {_advice(shorter, fewer)}"
    )


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `limit` that fits, by halving; 0 when 1 does not."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _advice(context: int, parallel: int) -> str:
    ways = [f"--context {context}"] * bool(context) + [f"--parallel {parallel}"] * bool(parallel)
    return f"{' or '.join(ways)} would fit" if ways else "no context fits: free memory or take a smaller model"


def kv_bytes(header: Header, key_type: int = F16, value_type: int = F16) -> int:
    """Return the bytes of one token's keys and values over all layers; 0 when the header does not say the shape."""
    shared = _number(header, "attention.shared_kv_layers")
    layers = _number(header, "block_count") - shared
    return sum(
        _row_bytes(keys, key_type) + _row_bytes(values, value_type)
        for layer, keys, values in _cached(header)
        if layer < layers
    )


def _cached(header: Header) -> Iterator[tuple[int, int, int]]:
    """Yield layer, width of its keys and of its values; layers without attention (recurrent ones) have none."""
    for name, tensor in header.tensors.items():
        if found := KEYS.fullmatch(name):
            values = header.tensors.get(f"blk.{found[1]}.attn_v.weight", tensor)
            yield int(found[1]), tensor.shape[-1], values.shape[-1]
        elif found := FUSED.fullmatch(name):
            both = tensor.shape[-1] - _query_width(header)
            yield int(found[1]), both // 2, both - both // 2


def _query_width(header: Header) -> int:
    heads, width = _number(header, "attention.head_count"), _number(header, "embedding_length")
    return heads * _number(header, "attention.key_length") or width


def _row_bytes(width: int, kind: int) -> int:
    elements, size = BLOCKS[kind]
    return width // elements * size


def _doubled(header: Header, isa: Collection[str]) -> int:
    """Return the bytes that are held twice: an embedding that is the head too, once it is laid out anew for that."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or "output.weight" in header.tensors:
        return 0
    return embedding.size if _is_repacked(embedding.type, embedding.shape, isa) else 0


def _is_repacked(kind: int, shape: tuple[int, ...], isa: Collection[str]) -> bool:
    rows = next((REPACKED[name][kind] for name in isa if kind in REPACKED.get(name, ())), 0)
    return bool(rows) and len(shape) == 2 and shape[1] % rows == 0


def _compute_bytes(header: Header, *, cells: int, batch: int, rows: int) -> int:
    """Return the scratch memory of the widest moment of a step: in a feed-forward block, or at the logits.

    Fitted to what llama.cpp reserves: a mask in F16 over all cells, and a few rows of floats a token.
    """
    width, inner = _number(header, "embedding_length"), _number(header, "feed_forward_length")
    embedding = header.tensors.get("token_embd.weight")
    vocabulary = embedding.shape[-1] if embedding else 0
    body = 2 * batch * cells + FLOAT_BYTES * batch * (3 * inner + 4 * width)
    head = FLOAT_BYTES * (rows * vocabulary + 2 * (batch + rows) * width)
    return max(body, head)


def _number(header: Header, key: str) -> int:
    value: Any = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, list):  # one a layer
        value = max(value, default=0)
    return value if isinstance(value, int) else 0
