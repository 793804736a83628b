"""The roofline of decoding, bytes read for each token: the weights, and the keys and values of what came before."""

from pathlib import Path
from typing import Any, cast

import msgspec

from fieldlm.engines.llama_layout import layout_of
from fieldlm.engines.memory_plan import row_bytes
from fieldlm.formats.bundle import Bundle, CacheTypes
from fieldlm.formats.gguf import Header, read_header


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one decode step. `is_exact` is False where only the file's size is known (ONNX)."""

    weights: int
    kv_of_token: int
    is_exact: bool

    def at_depth(self, tokens: float) -> float:
        """Return the bytes read for one token after `tokens` others."""
        return self.weights + self.kv_of_token * tokens


def reading(bundle: Bundle) -> Reading:
    """Look the bytes up in the GGUF's tensor table, an adapter's included."""
    base, adapter = bundle.need("base"), bundle.path("adapter")
    if bundle.manifest.engine != "llama":
        return Reading(weights=bundle.manifest.size, kv_of_token=0, is_exact=False)
    header = read_header(base)
    extra = _tensor_bytes(adapter) if adapter else 0
    return Reading(
        weights=_read_weights(header) + extra, kv_of_token=_kv_bytes(header, bundle.manifest.cache), is_exact=True
    )


def tensor_bytes(bundle: Bundle) -> int:
    """Return the size of all base weights: llama-bench's `model_size`."""
    base = bundle.need("base")
    return _tensor_bytes(base) if bundle.manifest.engine == "llama" else base.stat().st_size


def _tensor_bytes(path: Path) -> int:
    return sum(tensor.size for tensor in read_header(path).tensors.values())


def _read_weights(header: Header) -> int:
    """Sum what a step touches: of an embedding that is not the head too, one row, which is nothing."""
    tied = "output.weight" not in header.tensors
    return sum(tensor.size for name, tensor in header.tensors.items() if tied or name != "token_embd.weight")


def _kv_bytes(header: Header, cache: CacheTypes | None) -> int:
    """Return the bytes of one token's keys and values in `cache`; 0 when the header does not say their shape."""
    heads_at = _number(header, "attention.head_count")
    layers, width = _number(header, "block_count"), _number(header, "embedding_length")
    if not (layers and width and heads_at):
        return 0
    head = width // heads_at
    keys = _number(header, "attention.key_length") or head
    values = _number(header, "attention.value_length") or head
    kv_heads = _value(header, "attention.head_count_kv")
    total_heads = sum(cast(list[int], kv_heads)) if isinstance(kv_heads, list) else layers * int(kv_heads or heads_at)
    layout = layout_of(None, cache)
    return total_heads * (row_bytes(keys, layout.key_type) + row_bytes(values, layout.value_type))


def _value(header: Header, key: str) -> Any:
    return header.metadata.get(f"{header.architecture}.{key}")


def _number(header: Header, key: str) -> int:
    value = _value(header, key)
    return value if isinstance(value, int) else 0
