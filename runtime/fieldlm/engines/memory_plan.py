"""The memory plan: what a GGUF will take, from its header alone, and whether the machine has it.

Without this a context that is too large ends in the kernel killing the process, or, worse, another one. What the
header does not say counts as nothing, so that a model we know little of is tried rather than refused.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldlm.core.errors import EngineError
from fieldlm.engines.llama_layout import DEFAULT_LAYOUT, F16, Layout
from fieldlm.engines.prompt_lookup import MOST_ROWS
from fieldlm.formats.gguf import BLOCKS, Header
from fieldlm.hardware.facts import meminfo_mb, read_facts
from fieldlm.hardware.limits import LIVE
from fieldlm.hardware.sensors import memory_available_mb

MB = 1e6
FLOAT_BYTES = 4
PREFILL_ALONE = 256  # prompt tokens a step while no answer is being written: enough to keep the cores busy
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
    """A model does not fit into the memory that is free now; `reason` is what an update says then.

    `context` is how many tokens would fit, 0 where none do.
    """

    reason = "memory"

    def __init__(self, message: str, *, context: int = 0) -> None:
        super().__init__(message)
        self.context = context


def servable(header: Header, *, context: int, parallel: int) -> tuple[int, int]:
    """Return the tokens of an answer, and the answers at a time, with which llama.cpp computes the model of `header`.

    LongRoPE has two rotations, and llama.cpp takes the one for long texts as soon as the whole cache has more cells
    than the model's original positions, however short a text is (llama-model.cpp, get_rope_factors; issue 24823). So
    all answers together get no more than those.
    """
    original = _number(header, "rope.scaling.original_context_length") // CELL_STEP * CELL_STEP
    if not original or not any("rope_factors_long" in name for name in header.tensors):
        return context, parallel
    context = min(context, original)
    return context, max(1, min(parallel, original // context))


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
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
    layout: Layout = DEFAULT_LAYOUT,
) -> MemoryPlan:
    """Foresee what the weights of `header` take with `parallel` answers of `context` tokens, `batch` tokens a step.

    `isa` is what the CPU has; a GPU lays nothing out anew.
    """
    isa = () if layout.gpu else isa
    context, parallel = servable(header, context=context, parallel=parallel)
    own, shared = (context, parallel) if layout.has_own_cells else (context * parallel, 1)
    cells = -(-own // CELL_STEP) * CELL_STEP * shared
    doubled = _doubled(header, isa)
    return MemoryPlan(
        weights=(sum(tensor.size for tensor in header.tensors.values()) + doubled) / MB,
        kv=cells * kv_bytes(header, layout.key_type, layout.value_type) / MB,
        compute=_compute_bytes(
            header,
            cells=cells,
            batch=min(batch, context * parallel),
            rows=max(parallel, MOST_ROWS),
            has_scores=layout.flash_attention is False,
        )
        / MB,
        loading=max((t.size for t in header.tensors.values() if _is_repacked(t.type, t.shape, isa)), default=0) / MB,
    )


def ensure_fits(
    header: Header,
    path: Path,
    *,
    context: int,
    parallel: int,
    batch: int,
    layout: Layout = DEFAULT_LAYOUT,
    gpu_free_mb: int | None = None,
    root: Path = LIVE,
) -> MemoryPlan | None:
    """Return the plan for the weights at `path`, None where the machine does not say what memory it has.

    `gpu_free_mb` is what the layout's GPU has left. Raises NoRoomError with what is needed, what there is and what
    would fit, when it cannot fit.
    """
    free_mb = _free_mb(layout, gpu_free_mb, root)
    if free_mb is None:
        return None
    isa = read_facts(root).isa
    context = min(context, _number(header, "context_length") or context)
    context, parallel = servable(header, context=context, parallel=parallel)

    def planned(context: int, parallel: int) -> MemoryPlan:
        return plan(header, context=context, parallel=parallel, batch=batch, isa=isa, layout=layout)

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
        f"free; {_advice(shorter, fewer)}",
        context=shorter,
    )


def ensure_caches_fit(name: str, *, token_bytes: int, context: int, parallel: int, root: Path = LIVE) -> None:
    """Raise NoRoomError when keys and values of `token_bytes` a token do not fit beside weights that are loaded.

    For caches whose memory the system gives piece by piece: too many would not fail here and now, but some day.
    """
    free_mb = _free_mb(DEFAULT_LAYOUT, None, root)

    def fits(context: int, parallel: int) -> bool:
        return free_mb is None or token_bytes * context * parallel / MB <= free_mb

    if fits(context, parallel):
        return
    shorter = CELL_STEP * _largest((context - 1) // CELL_STEP, lambda steps: fits(CELL_STEP * steps, parallel))
    fewer = _largest(parallel - 1, lambda parallel: fits(context, parallel))
    raise NoRoomError(
        f"{name} needs {token_bytes * context * parallel / MB:.0f} MB for keys and values of {parallel} × {context} "
        f"tokens and {free_mb} MB are free beside its weights; {_advice(shorter, fewer)}"
    )


def _free_mb(layout: Layout, gpu_free_mb: int | None, root: Path) -> int | None:
    """Return the memory that is free where weights and caches go; None where nobody says."""
    here = memory_available_mb(root) if meminfo_mb(root, "MemAvailable") else None
    if layout.gpu is None or gpu_free_mb is None:
        return here
    # A GPU that shares the CPU's memory calls all of it its own, whatever the system and control groups need of it.
    return gpu_free_mb if layout.gpu.memory == "own" or here is None else min(gpu_free_mb, here)


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
        row_bytes(keys, key_type) + row_bytes(values, value_type)
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


def row_bytes(width: int, kind: int) -> int:
    """Return the bytes of `width` numbers of the ggml type `kind`."""
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


def _compute_bytes(header: Header, *, cells: int, batch: int, rows: int, has_scores: bool) -> int:
    """Return the scratch memory of the widest moment of a step: in a feed-forward block, or at the logits.

    Fitted to what llama.cpp reserves: a mask in F16 over all cells, and a few rows of floats a token. Without flash
    attention, whose tiles need no memory, the scores of every head over all cells are there at once.
    """
    width, inner = _number(header, "embedding_length"), _number(header, "feed_forward_length")
    embedding = header.tensors.get("token_embd.weight")
    vocabulary = embedding.shape[-1] if embedding else 0
    scores = FLOAT_BYTES * batch * cells * _number(header, "attention.head_count") if has_scores else 0
    body = 2 * batch * cells + FLOAT_BYTES * batch * (3 * inner + 4 * width) + scores
    head = FLOAT_BYTES * (rows * vocabulary + 2 * (batch + rows) * width)
    return max(body, head)


def _number(header: Header, key: str) -> int:
    value: Any = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, list):  # one a layer
        value = max(value, default=0)
    return value if isinstance(value, int) else 0
