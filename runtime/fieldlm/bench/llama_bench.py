"""llama-bench's fields, all that `llama-bench -o json` has and that its own compare-llama-bench.py asks for."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fieldlm.bench.result import Interval, Result
from fieldlm.engines import engine_kind
from fieldlm.engines.llama_layout import KV_TYPES, layout_of
from fieldlm.formats.bundle import Bundle
from fieldlm.hardware.detect import Detection

# What an engine of ours does in no other way, as llama-bench names it.
FIXED: dict[str, Any] = {
    "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0,
    "no_kv_offload": False, "devices": "auto", "tensor_split": "0.00", "tensor_buft_overrides": "none",
    "use_direct_io": False, "embeddings": False, "no_op_offload": 0, "no_host": False, "fit_target": 0,
    "fit_min_ctx": 0, "n_depth": 0,
}  # fmt: skip


def rows(bundle: Bundle, result: Result, found: Detection) -> list[dict[str, Any]]:
    """Return two rows: the prompt test and the generation test."""
    prefill_s = [sample.prefill_s for sample in result.measured.samples]
    decode_s = [sample.decode_s for sample in result.measured.samples]
    head, spec = _head(bundle, result, found), result.spec
    return [
        {**head, "n_prompt": spec.prompt_tokens, "n_gen": 0, **_series(prefill_s, result.prefill)},
        {**head, "n_prompt": 0, "n_gen": spec.gen_tokens, **_series(decode_s, result.decode)},
    ]


def _head(bundle: Bundle, result: Result, found: Detection) -> dict[str, Any]:
    manifest, measured = bundle.manifest, result.measured
    layout = layout_of(result.spec.profile, manifest.cache)
    names = {number: name for name, number in KV_TYPES.items()}
    kind = engine_kind(manifest.engine)
    # Only llama.cpp keeps keys and values in 16 bits unless it is told otherwise, and can be told.
    is_told = kind.cache_type == "f16"
    return {
        "build_commit": measured.engine_version,
        "build_number": 0,
        "cpu_info": found.facts["cpu_name"],
        "gpu_info": measured.gpu,
        "backends": measured.gpu.partition(" ")[0].rstrip("0123456789") or "CPU",
        "model_filename": str(bundle.need("base")),
        "model_type": f"{manifest.model.architecture} {manifest.model.parameters / 1e6:.0f}M {manifest.recipe.quant}",
        "model_size": kind.weight_bytes(bundle),
        "model_n_params": manifest.model.parameters,
        "n_batch": measured.batch,
        "n_ubatch": measured.batch,
        "n_threads": result.spec.threads,
        "type_k": names[layout.key_type] if is_told else kind.cache_type,
        "type_v": names[layout.value_type] if is_told else kind.cache_type,
        "n_gpu_layers": measured.gpu_layers,
        "flash_attn": -1 if layout.flash_attention is None else int(layout.flash_attention),
        # Both names are in use: older versions of the tools ask for use_mmap, newer ones for load_mode.
        "use_mmap": layout.is_mapped,
        "load_mode": "mmap" if layout.is_mapped else "none",
        **FIXED,
        "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _series(seconds: Sequence[float], speed: Interval) -> dict[str, Any]:
    nanoseconds = [round(value * 1e9) for value in seconds]
    return {
        "avg_ns": round(float(np.mean(nanoseconds))),
        "stddev_ns": round(_deviation(nanoseconds)),
        "avg_ts": float(np.mean(speed.samples)),
        "stddev_ts": _deviation(speed.samples),
        "samples_ns": nanoseconds,
        "samples_ts": speed.samples,
    }


def _deviation(samples: Sequence[float]) -> float:
    return float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0
