"""The pages of a bench and of a comparison, of made-up figures whose words a test may change."""

from collections.abc import Callable
from typing import Any

from fieldlm.bench.comparison import Comparison, Difference
from fieldlm.bench.report import bench_page, comparison_page
from fieldlm.bench.result import Interval


def bench_pages(spell: Callable[[str], str]) -> dict[str, str]:
    """Return both pages by name."""
    return {
        "bench": bench_page([_row(spell, 512, 0), _row(spell, 0, 128)]),
        "comparison": comparison_page(_found(spell)),
    }


def _interval(*samples: float) -> Interval:
    middle = sorted(samples)[len(samples) // 2]
    return Interval(median=middle, low=middle * 0.97, high=middle * 1.03, samples=samples)


def _row(spell: Callable[[str], str], prompt: int, gen: int) -> dict[str, Any]:
    speeds = (101.2, 99.8, 97.1, 96.0, 95.5) if prompt else (9.9, 10.1, 10.0, 9.8, 10.2)
    moment = {"temperature_c": 61.2, "load_average": 0.4}
    return {
        "n_prompt": prompt, "n_gen": gen, "n_depth": 2048, "n_threads": 4, "n_ubatch": 256, "type_k": "f16",
        "type_v": "q8_0", "load_mode": "mmap", "cpu_info": spell("Cortex-A76"), "gpu_info": "",
        "model_type": spell("llama 135M Q4_1"), "build_commit": spell("llama-cpp-python-0.3.36"),
        "test_time": "2026-11-20T10:00:00Z", "avg_ts": sum(speeds) / 5, "samples_ts": speeds,
        "fieldlm": {
            "prefill_tokens_s": _interval(*speeds) if prompt else None,
            "decode_tokens_s": _interval(*speeds) if gen else None,
            "ttft_ms": _interval(*(5e5 / speed for speed in speeds)) if prompt else None,
            "bandwidth_percent": _interval(78.0, 80.0, 81.0) if gen else None,
            "energy": {
                "source": {"source": spell("ina219"), "covers": spell("board")}, "why_not": [],
                "joules_per_token": _interval(0.52, 0.53, 0.51),
            },
            "environment": {
                "profile": spell("rpi5-8gb"), "kernel": spell("6.6.31"), "facts": {"governor": spell("ondemand")},
            },
            "bandwidth": {"read_gb_s": 12.1}, "memory_mb": {"peak": 310.0}, "load_s": 0.41, "before": moment,
            "after": moment, "sha256": {"model.gguf": "c0" * 32},
            "remarks": [spell("void: the CPU was throttled by heat"), spell("it ran on battery")],
        },
    }  # fmt: skip


def _found(spell: Callable[[str], str]) -> Comparison:
    ratios = (
        ("pp512", 1.12, 1.05, 1.19, 0.001),
        ("tg128", 0.95, 0.92, 0.98, 0.01),
        ("tg128 @ d2048", 1.01, 0.97, 1.05, 0.6),
    )
    differences = [
        Difference(
            test=spell(test), a=_interval(10.0, 10.2, 9.9), b=_interval(10.0 * ratio, 10.2 * ratio), ratio=ratio,
            low=low, high=high, p=p, differs={"threads": (spell("4"), spell("8"))},
        )
        for test, ratio, low, high, p in ratios
    ]  # fmt: skip
    one = Difference(
        test="pp64", a=_interval(9.0), b=_interval(9.1), ratio=1.01, low=None, high=None, p=None, differs={}
    )
    return Comparison(
        a=spell("yesterday.json"), b=spell("today.json"), differences=(*differences, one),
        alone=(spell("pp64 is in today.json alone"),), remarks=(spell("A: it ran on battery"),),
    )  # fmt: skip
