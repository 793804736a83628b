"""llama-bench's 44 fields, in its order and with its types, so that what reads its results reads ours.

They are those of llama.cpp's tools/llama-bench at the version that serves here. What is written down is what ran.
"""

import time
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from fieldlm.bench.result import Interval, Result
from fieldlm.engines import engine_kind
from fieldlm.engines.llama_layout import KV_TYPES, layout_of
from fieldlm.formats.bundle import Bundle
from fieldlm.hardware.detect import Detection

FIELDS: dict[str, type] = {
    "build_commit": str, "build_number": int, "cpu_info": str, "gpu_info": str, "backends": str,
    "model_filename": str, "model_type": str, "model_size": int, "model_n_params": int, "n_batch": int,
    "n_ubatch": int, "n_threads": int, "cpu_mask": str, "cpu_strict": bool, "poll": int, "type_k": str, "type_v": str,
    "n_gpu_layers": int, "n_cpu_moe": int, "split_mode": str, "main_gpu": int, "no_kv_offload": bool,
    "flash_attn": int, "devices": str, "tensor_split": str, "tensor_buft_overrides": str, "load_mode": str,
    "lazy_mode": str, "embeddings": bool, "no_op_offload": int, "no_host": bool, "repack": bool, "fit_target": int,
    "fit_min_ctx": int, "n_prompt": int, "n_gen": int, "n_depth": int, "test_time": str, "avg_ns": int,
    "stddev_ns": int, "avg_ts": float, "stddev_ts": float,
}  # fmt: skip
"""Those of one value; in its JSON there are two lists behind them."""
SAMPLES = ("samples_ns", "samples_ts")

# What an engine of ours does in no other way, as llama-bench names it.
FIXED: dict[str, Any] = {
    "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0,
    "no_kv_offload": False, "devices": "auto", "tensor_split": "0.00", "tensor_buft_overrides": "none",
    "lazy_mode": "auto", "embeddings": False, "no_op_offload": 0, "no_host": False, "fit_target": 0, "fit_min_ctx": 0,
}  # fmt: skip


def rows(bundle: Bundle, result: Result, found: Detection) -> list[dict[str, Any]]:
    """Return a row for the prompt test and one for the generation test, where they were run; one for both in one."""
    head, spec, made = _head(bundle, result, found), result.spec, list[dict[str, Any]]()
    if spec.is_combined:
        test = {"n_prompt": spec.prompt_tokens, "n_gen": spec.gen_tokens, "n_threads": spec.threads}
        both_s = [each.prefill_s + each.decode_s for each in result.measured.samples]
        return [_whole(head | test | _series(both_s, result.combined))]
    if result.has_prefill:
        # Only llama.cpp reads prompts with threads of their own.
        own = spec.prefill_threads if _is_llama(bundle) else None
        test = {"n_prompt": spec.prompt_tokens, "n_gen": 0, "n_threads": own or spec.threads}
        made.append(head | test | _series([each.prefill_s for each in result.measured.samples], result.prefill))
    if result.has_decode:
        test = {"n_prompt": 0, "n_gen": spec.gen_tokens, "n_threads": spec.threads}
        made.append(head | test | _series([each.decode_s for each in result.measured.samples], result.decode))
    return [_whole(row) for row in made]


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` in llama-bench's order; raises KeyError for one that lacks a field."""
    return {name: row[name] for name in (*FIELDS, *SAMPLES)}


def _head(bundle: Bundle, result: Result, found: Detection) -> dict[str, Any]:
    manifest, measured = bundle.manifest, result.measured
    layout = layout_of(result.spec.profile, manifest.cache)
    names = {number: name for name, number in KV_TYPES.items()}
    kind = engine_kind(manifest.engine)
    is_told = _is_llama(bundle)
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
        "n_ubatch": measured.ubatch or measured.batch,
        "type_k": names[layout.key_type] if is_told else kind.cache_type,
        "type_v": names[layout.value_type] if is_told else kind.cache_type,
        "n_gpu_layers": measured.gpu_layers,
        "flash_attn": -1 if layout.flash_attention is None else int(layout.flash_attention),
        "load_mode": "mmap" if layout.is_mapped else "none",
        "repack": measured.repacks,
        "n_depth": result.spec.depth,
        **FIXED,
        "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _is_llama(bundle: Bundle) -> bool:
    """Whether it runs in llama.cpp: nothing else keeps keys and values in 16 bits unless it is told otherwise."""
    return engine_kind(bundle.manifest.engine).cache_type == "f16"


def _series(seconds: Sequence[float], speed: Interval) -> dict[str, Any]:
    nanoseconds = [round(value * 1e9) for value in seconds]
    return {
        "avg_ns": round(fmean(nanoseconds)),
        "stddev_ns": round(_deviation(nanoseconds)),
        "avg_ts": fmean(speed.samples),
        "stddev_ts": _deviation(speed.samples),
        "samples_ns": nanoseconds,
        "samples_ts": speed.samples,
    }


def _deviation(samples: Sequence[float]) -> float:
    return stdev(samples) if len(samples) > 1 else 0.0
