"""Profile linter: find what is impossible in a profile, before a device finds it.

`lint` gives the reasons to refuse it; `cautions` what is allowed and slow. Which file types llama.cpp repacks for an
instruction set follows ggml-cpu/repack.cpp of the pinned version; only the bulk type of a mix counts (Q4_K of Q4_K_M).
"""

from collections.abc import Iterator

import msgspec

from fieldlm.formats.profile import Profile

# Bits per weight of the bulk tensors, from gguf-py's GGML_QUANT_SIZES.
QUANT_BITS = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0,
    "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K_M": 5.5, "Q5_K_S": 5.5, "Q5_0": 5.5, "Q5_1": 6.0,
    "Q4_K_M": 4.5, "Q4_K_S": 4.5, "Q4_0": 4.5, "Q4_1": 5.0, "IQ4_NL": 4.5, "IQ4_XS": 4.25, "MXFP4_MOE": 4.25,
    "Q3_K_L": 3.4375, "Q3_K_M": 3.4375, "Q3_K_S": 3.4375, "Q2_K": 2.625, "Q2_K_S": 2.625,
}  # fmt: skip
KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625, "q5_0": 0.6875, "q4_0": 0.5625}
# llama.cpp compiles these CUDA flash-attention pairs by default (ggml/CMakeLists.txt).
CUDA_KV = {"f16", "bf16", "q8_0", "q4_0"}
REPACKED = {
    "avx2": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"},
    "avx512f": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q2_K"},
    "dotprod": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0"},
}
ARCH_OF_ISA = {
    **dict.fromkeys(("neon", "dotprod", "fp16", "i8mm", "sve", "sve2", "sme"), "aarch64"),
    **dict.fromkeys(("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"), "x86_64"),
}
# F16 keys and values of one token of a 360M model (32 layers, 5 heads of 64): the yardstick for "the cache fits".
YARDSTICK_KV_VALUES = 32 * 5 * (64 + 64)
UNCOUNTED = {"match", "references", "accelerators", "sources"}


def lint(profile: Profile) -> list[str]:
    """Return why no device could be like this, or could not serve like this; empty when nothing is wrong."""
    checks = (_sources, _memory, _cpu, _gguf, _kv, _onnx, _accelerators, _power, _heat, _expectation, _matching)
    return [reason for check in checks for reason in check(profile)]


def cautions(profile: Profile) -> list[str]:
    """Return what works and is slower, or takes more memory, than it could."""
    if any(accelerator.used for accelerator in profile.accelerators):
        return []
    fast = repacked(profile)
    twice = [
        f"runtime.mmap = true keeps {quant} in memory twice: as it lies in the file and repacked"
        for quant in profile.gguf.quants
        if profile.runtime.mmap and bulk_type(quant) in fast
    ]
    return twice + [
        f"{quant} has no repacked kernel on {', '.join(profile.cpu.isa) or profile.cpu.arch}; its prefill is slow"
        for quant in profile.gguf.quants
        if bulk_type(quant) not in fast
    ]


def bulk_type(quant: str) -> str:
    """Return the tensor type that most weights of a file type have: Q4_K for Q4_K_M."""
    return quant.removesuffix("_MOE").removesuffix("_M").removesuffix("_S").removesuffix("_L")


def repacked(profile: Profile) -> set[str]:
    """Return the tensor types that llama.cpp rearranges for this profile's CPU."""
    return {quant for isa in profile.cpu.isa for quant in REPACKED.get(isa, set())}


def kv_mb(profile: Profile) -> float:
    """Return the KV cache of all parallel answers at full context for the yardstick model, in megabytes."""
    bytes_of_value = sum(KV_BYTES.get(kind, 4.0) for kind in _kv_types(profile)) / 2
    return profile.gguf.context * profile.runtime.parallel * YARDSTICK_KV_VALUES * bytes_of_value / 1e6


def _kv_types(profile: Profile) -> tuple[str, str]:
    """Return the types of keys and values; those a profile leaves open are F16 unless a bundle asks for less."""
    return profile.gguf.kv_k or "f16", profile.gguf.kv_v or "f16"


def _numbers(profile: Profile) -> Iterator[tuple[str, float]]:
    for section, table in msgspec.to_builtins(profile).items():
        if section in UNCOUNTED or not isinstance(table, dict):
            continue
        for name, value in table.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{section}.{name}", value


def _sources(profile: Profile) -> Iterator[str]:
    for name, value in _numbers(profile):
        said = profile.sources.get(name)
        if said is None:
            yield f"{name} = {value:g} has no kind and no source; write {{ value = {value:g}, kind = …, source = … }}"
        elif not said.source.strip():
            yield f"{name} = {value:g} is called {said.kind} and names no source"
        if value < 0 or (value == 0 and name != "power.idle_w"):
            yield f"{name} = {value:g}; want more than 0, or leave it out"
    for row in (*profile.references, *profile.power.modes, *profile.accelerators):
        if not row.source.strip():
            yield f"a row of {type(row).__name__} names no source: {row}"


def _memory(profile: Profile) -> Iterator[str]:
    memory = profile.memory
    if memory.total_mb is not None and memory.model_budget_mb > memory.total_mb - memory.reserve_mb:
        yield (
            f"memory.model_budget_mb = {memory.model_budget_mb} does not fit: "
            f"total {memory.total_mb} − reserve {memory.reserve_mb} = {memory.total_mb - memory.reserve_mb}"
        )
    if memory.bandwidth_gb_s and memory.read_gb_s and memory.read_gb_s > memory.bandwidth_gb_s:
        yield f"memory.read_gb_s = {memory.read_gb_s} is more than the theory allows, {memory.bandwidth_gb_s}"


def _cpu(profile: Profile) -> Iterator[str]:
    cpu = profile.cpu
    if cpu.cores is not None:
        for name, count in (("decode_threads", cpu.decode_threads), ("prefill_threads", cpu.prefill_threads)):
            if count is not None and count > cpu.cores:
                yield f"cpu.{name} = {count} is more than the {cpu.cores} cores"
        if cpu.big_cores is not None and cpu.big_cores > cpu.cores:
            yield f"cpu.big_cores = {cpu.big_cores} is more than the {cpu.cores} cores"
    if cpu.big_cores is not None and cpu.decode_threads > cpu.big_cores:
        yield f"cpu.decode_threads = {cpu.decode_threads} is more than the {cpu.big_cores} big cores"
    for isa in (*cpu.isa, *profile.match.isa):
        if ARCH_OF_ISA[isa] != cpu.arch:
            yield f"{isa} does not exist on {cpu.arch}"


def _gguf(profile: Profile) -> Iterator[str]:
    gguf = profile.gguf
    if not gguf.quants:
        yield "gguf.quants is empty; name at least one file type"
    for quant in gguf.quants:
        if quant not in QUANT_BITS:
            yield f"gguf.quants has {quant!r}, which the pinned llama.cpp cannot write; it can {', '.join(QUANT_BITS)}"
    if gguf.default_quant not in gguf.quants:
        yield f"gguf.default_quant = {gguf.default_quant!r} is not among gguf.quants"


def _kv(profile: Profile) -> Iterator[str]:
    gguf = profile.gguf
    keys, values = _kv_types(profile)
    for name, kind in (("kv_k", keys), ("kv_v", values)):
        if kind not in KV_BYTES:
            yield f"gguf.{name} = {kind!r}; want one of {', '.join(KV_BYTES)}"
    if values.startswith("q") and not gguf.flash_attention:
        yield f"gguf.kv_v = {values!r} needs flash_attention = true"
    on_cuda = any(a.kind == "cuda" and a.used for a in profile.accelerators)
    if on_cuda and gguf.flash_attention and (keys != values or keys not in CUDA_KV):
        known = ", ".join(sorted(CUDA_KV))
        yield f"the pair {keys}-{values} has no CUDA flash-attention kernel; want both the same, of {known}"
    budget_mb = profile.memory.model_budget_mb
    if kv_mb(profile) > budget_mb / 2:
        yield (
            f"the KV cache of {profile.runtime.parallel} × {gguf.context} tokens takes {kv_mb(profile):.0f} MB "
            f"for a 360M model, more than half of the budget of {budget_mb} MB"
        )


def _onnx(profile: Profile) -> Iterator[str]:
    if "onnx" not in profile.engines:
        return
    onnx = profile.onnx
    if onnx.block_size not in (16, 32, 64, 128, 256):
        yield f"onnx.block_size = {onnx.block_size}; want 16, 32, 64, 128 or 256"
    if onnx.accuracy_level not in range(1, 5):
        yield f"onnx.accuracy_level = {onnx.accuracy_level}; want 1 to 4"


def _accelerators(profile: Profile) -> Iterator[str]:
    for accelerator in profile.accelerators:
        if accelerator.used and "onnx" in profile.engines:
            yield f"accelerator {accelerator.name} would stand idle: the ONNX engine computes on the CPU"
        if accelerator.kind == "cuda" and accelerator.used and not accelerator.compute_capability:
            yield f"accelerator {accelerator.name} has no compute_capability; nothing can be built for it"
        if accelerator.memory == "own" and accelerator.used and accelerator.memory_mb is None:
            yield f"accelerator {accelerator.name} has its own memory of unknown size; a model may not fit"
        if accelerator.memory == "unified" and not profile.memory.unified:
            yield f"accelerator {accelerator.name} shares the CPU's memory; memory.unified must be true"
        own_mb, budget_mb = accelerator.memory_mb, profile.memory.model_budget_mb
        if accelerator.used and accelerator.memory == "own" and own_mb and budget_mb > own_mb:
            yield f"memory.model_budget_mb = {budget_mb} is more than {accelerator.name} has, {own_mb}"


def _power(profile: Profile) -> Iterator[str]:
    power = profile.power
    if power.idle_w and power.load_w and power.idle_w >= power.load_w:
        yield f"power.idle_w = {power.idle_w:g} is not below power.load_w = {power.load_w:g}"
    if (power.idle_w or power.load_w) and not power.domain:
        yield "power.idle_w and load_w say not where they were measured; set power.domain (wall, rail, package)"
    if sum(mode.default for mode in power.modes) > 1:
        yield f"more than one default power mode: {', '.join(mode.name for mode in power.modes if mode.default)}"


def _heat(profile: Profile) -> Iterator[str]:
    limit = profile.thermal.throttle_c
    if limit is not None and not 40 <= limit <= 120:
        yield f"thermal.throttle_c = {limit:g}; no chip throttles there, want 40 to 120"


def _expectation(profile: Profile) -> Iterator[str]:
    low, high = profile.expect.bandwidth_percent_low, profile.expect.bandwidth_percent_high
    if low is not None and high is not None and low >= high:
        yield f"expect.bandwidth_percent_low = {low:g} is not below bandwidth_percent_high = {high:g}"
    ceiling = profile.bandwidth_gb_s
    for reference in profile.references:
        bits = QUANT_BITS.get(reference.quant)
        billions = _billions(reference.model)
        if not (ceiling and bits and billions and reference.decode_tokens_s):
            continue
        speed = reference.decode_tokens_s
        if speed * billions * bits / 8 > ceiling:
            yield f"{speed:g} tokens/s of {reference.model} {reference.quant} need more than {ceiling:g} GB/s"


def _billions(model: str) -> float | None:
    """Read the billions of parameters out of a model's name: 3 for Llama-3.2-3B, 0.135 for SmolLM-135M."""
    for word in model.replace(" ", "-").split("-"):
        number, unit = word[:-1], word[-1:].upper()
        if unit in ("B", "M") and number.replace(".", "", 1).isdigit():
            return float(number) / (1 if unit == "B" else 1000)
    return None


def _matching(profile: Profile) -> Iterator[str]:
    if profile.match.memory_mb and profile.match.memory_mb[0] >= profile.match.memory_mb[1]:
        yield f"match.memory_mb = {list(profile.match.memory_mb)} is empty; want [least, most]"
    total_mb = profile.memory.total_mb
    if profile.match.memory_mb and total_mb and not (total_mb * 0.85 <= profile.match.memory_mb[1]):
        yield f"match.memory_mb = {list(profile.match.memory_mb)} leaves out the profile's own {total_mb} MB"
    missing = set(profile.match.isa) - set(profile.cpu.isa)
    if missing:
        yield f"match.isa asks for {', '.join(sorted(missing))}, which cpu.isa does not have"
