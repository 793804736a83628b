"""What a profile says of caches, mapping and accelerators reaches the engine, or is refused; nothing is passed over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fieldlm.core import extras
from fieldlm.core.errors import BundleError, EngineError, MissingDependencyError, ProfileError
from fieldlm.engines import EngineOptions, Sampling, onnx, open_engine
from fieldlm.engines.binding.log import LOG_WARN
from fieldlm.engines.llama import LlamaEngine
from fieldlm.engines.llama_api import log
from fieldlm.engines.llama_devices import ComputeDevice, check_offload, devices, promised
from fieldlm.engines.llama_layout import ALL_LAYERS, F16, KV_TYPES, NO_LAYERS, Layout, layout_of
from fieldlm.formats.bundle import Bundle, CacheTypes
from fieldlm.formats.profile import Accelerator, Profile, load_profile, profile_names
from fieldlm.hardware.facts import meminfo_mb
from fieldlm.hardware.limits import LIVE

PROFILE = load_profile("generic-x86-64-avx2")
(GEFORCE,) = load_profile("laptop-nvidia").accelerators
Q8_0 = KV_TYPES["q8_0"]
PROMPT = "<|im_start|>user\nCount to ten.<|im_end|>\n<|im_start|>assistant\n"


def with_(section: str, **values: Any) -> Profile:
    return msgspec.structs.replace(PROFILE, **{section: msgspec.structs.replace(getattr(PROFILE, section), **values)})


@pytest.fixture
def opened(base_bundle: Bundle) -> Iterator[list[LlamaEngine]]:
    made: list[LlamaEngine] = []
    yield made
    for engine in made:
        engine.close()


def engine_for(profile: Profile | None, bundle: Bundle, opened: list[LlamaEngine]) -> LlamaEngine:
    engine = open_engine(bundle, EngineOptions(threads=1, context=256, parallel=2, profile=profile))
    assert isinstance(engine, LlamaEngine)
    opened.append(engine)
    return engine


def said(engine: LlamaEngine) -> str:
    return "".join(chunk.text for chunk in engine.start(engine.tokenize(PROMPT), Sampling(max_tokens=8)))


def is_mapped(path: Path) -> bool:
    return str(path.resolve()) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_can_be_laid_out(name: str) -> None:
    profile = load_profile(name)
    layout = layout_of(profile)
    is_used = any(accelerator.used for accelerator in profile.accelerators)
    assert (layout.gpu is not None, layout.gpu_layers) == (is_used, ALL_LAYERS if is_used else NO_LAYERS)
    assert layout.is_mapped is profile.runtime.mmap


def test_without_a_profile_llama_cpp_decides() -> None:
    assert layout_of(None) == Layout(flash_attention=None, gpu_layers=ALL_LAYERS)


def test_a_type_no_cache_has_is_refused() -> None:
    with pytest.raises(ProfileError, match="keys and values as 'q3_k'; want one of f32, f16"):
        layout_of(with_("gguf", kv_k="q3_k"))


def test_keys_and_values_are_held_as_the_profile_says(base_bundle: Bundle, opened: list[LlamaEngine]) -> None:
    plain = engine_for(PROFILE, base_bundle, opened)
    small = engine_for(with_("gguf", kv_k="q8_0", kv_v="q8_0", flash_attention=True), base_bundle, opened)
    assert small.memory_mb()["kv"] == pytest.approx(plain.memory_mb()["kv"] * 34 / 64, rel=0.01)
    assert said(small) == said(plain)


def test_what_a_cache_remembers_fits_only_a_cache_of_its_kind(base_bundle: Bundle, opened: list[LlamaEngine]) -> None:
    small = engine_for(with_("gguf", kv_k="q8_0", kv_v="q8_0", flash_attention=True), base_bundle, opened)
    expected = said(small)
    tokens = small.tokenize(PROMPT)
    found = small.remembered(tokens)
    assert found
    again = engine_for(with_("gguf", kv_k="q8_0", kv_v="q8_0", flash_attention=True), base_bundle, opened)
    assert again.build == small.build
    assert again.remember(*found)
    assert said(again) == expected
    others = [with_("gguf", kv_k="q8_0"), with_("gguf", flash_attention=False), PROFILE]
    builds = {engine_for(profile, base_bundle, opened).build for profile in others}
    assert len(builds | {small.build}) == 4


def test_flash_attention_is_left_out_where_the_profile_says_so(base_bundle: Bundle, opened: list[LlamaEngine]) -> None:
    with_it = engine_for(with_("gguf", flash_attention=True), base_bundle, opened)
    without = engine_for(with_("gguf", flash_attention=False), base_bundle, opened)
    assert said(without) == said(with_it)
    with pytest.raises(EngineError, match="flash_attn"):
        engine_for(with_("gguf", flash_attention=False, kv_v="q8_0"), base_bundle, opened)


def test_weights_are_mapped_only_where_the_profile_says_so(base_bundle: Bundle, opened: list[LlamaEngine]) -> None:
    path = base_bundle.need("base")
    read = engine_for(PROFILE, base_bundle, opened)
    assert not is_mapped(path)
    mapped = engine_for(with_("runtime", mmap=True), base_bundle, opened)
    assert is_mapped(path)
    assert said(mapped) == said(read)


def test_llama_cpp_says_what_it_can_compute_on() -> None:
    (cpu,) = [device for device in devices() if device.name == "CPU"]
    assert cpu.description
    assert cpu.total_mb == pytest.approx(meminfo_mb(LIVE, "MemTotal"), rel=0.01)


def test_a_gpu_that_this_build_does_not_see_is_refused_before_the_weights_are_read(base_bundle: Bundle) -> None:
    promises = msgspec.structs.replace(PROFILE, accelerators=(GEFORCE,))
    with pytest.raises(MissingDependencyError, match=r"promises GeForce .*\(cuda\), .* sees only CPU here") as caught:
        open_engine(base_bundle, EngineOptions(threads=1, context=256, profile=promises))
    assert 'CMAKE_ARGS="-DGGML_CUDA=on" pip install' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_debian_package_without_the_gpu_says_how_one_with_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mark := tmp_path / "cpu-flags").write_text("\n")
    monkeypatch.setattr(extras, "PACKAGE_MARK", mark)
    with pytest.raises(MissingDependencyError, match='CMAKE_ARGS="-DGGML_CUDA=on" make deb CPU=native') as caught:
        promised(GEFORCE, [ComputeDevice("CPU", "Intel", 1, 2)], can_offload=False)
    assert "pip" not in str(caught.value)


def test_the_gpu_that_is_promised_is_told_from_another() -> None:
    cpu, vulkan = ComputeDevice("CPU", "AMD EPYC", 1, 2), ComputeDevice("Vulkan0", "llvmpipe", 1, 2)
    cuda = ComputeDevice("CUDA0", "Orin", 5000, 7600)
    assert promised(GEFORCE, [cpu, vulkan, cuda]) == cuda
    with pytest.raises(MissingDependencyError, match="built without and sees only CPU here") as caught:
        promised(GEFORCE, [cpu], can_offload=False)
    assert caught.value.exit_code == 2, "starting again would not help"
    with pytest.raises(
        MissingDependencyError, match=r"could use a GPU, sees only CPU, Vulkan0 here; .* driver"
    ) as caught:
        promised(GEFORCE, [cpu, vulkan], can_offload=True)
    assert caught.value.exit_code == 1, "the driver may only be late"
    npu = Accelerator(kind="npu", name="RKNPU2", memory="unified", used=True, source="x")
    with pytest.raises(MissingDependencyError, match=r"RKNPU2, and llama.cpp has no way to use it \(npu\)"):
        promised(npu, [cpu])


def test_layers_that_stayed_behind_are_an_error() -> None:
    with log.listening():
        log.callback(LOG_WARN - 1, b"load_tensors: offloaded 31/31 layers to GPU\n", None)
        check_offload(GEFORCE, log.offloaded)
        log.callback(LOG_WARN - 1, b"load_tensors: offloaded 12/31 layers to GPU\n", None)
        with pytest.raises(EngineError, match="12 of 31 layers went there"):
            check_offload(GEFORCE, log.offloaded)
    with log.listening(), pytest.raises(EngineError, match="0 of all layers went there"):
        check_offload(GEFORCE, log.offloaded)


def test_an_onnx_bundle_is_refused_where_a_gpu_would_stand_idle(base_bundle: Bundle) -> None:
    promises = msgspec.structs.replace(PROFILE, accelerators=(GEFORCE,))
    with pytest.raises(
        MissingDependencyError, match="ONNX bundles are computed on the CPU; compile for the llama engine"
    ):
        onnx.open(base_bundle, EngineOptions(profile=promises))
    with pytest.raises(MissingDependencyError, match=r"promises CUDAExecutionProvider, and this onnxruntime has .*CPU"):
        onnx.open(
            base_bundle,
            EngineOptions(profile=with_("onnx", providers=("CUDAExecutionProvider", "CPUExecutionProvider"))),
        )


def test_a_cache_that_the_profile_leaves_open_is_the_bundles(base_bundle: Bundle, opened: list[LlamaEngine]) -> None:
    coarse = CacheTypes(keys="q8_0", values="q8_0")
    assert layout_of(PROFILE, coarse).key_type == Q8_0
    assert layout_of(with_("gguf", kv_k="f16"), coarse) == Layout(key_type=F16, value_type=Q8_0, gpu_layers=NO_LAYERS)
    without = layout_of(with_("gguf", flash_attention=False), coarse)
    assert (without.key_type, without.value_type) == (Q8_0, F16), "llama.cpp reads coarse values with it alone"
    with pytest.raises(BundleError, match="the bundle wants keys and values as 'q3_k'; want one of f32, f16"):
        layout_of(None, CacheTypes(keys="q3_k", values="f16"))
    manifest = msgspec.structs.replace(base_bundle.manifest, cache=coarse)
    small = engine_for(PROFILE, msgspec.structs.replace(base_bundle, manifest=manifest), opened)
    plain = engine_for(PROFILE, base_bundle, opened)
    assert small.memory_mb()["kv"] == pytest.approx(plain.memory_mb()["kv"] * 34 / 64, rel=0.01)
